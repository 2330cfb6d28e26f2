"""`pileus keypair create`, which can also make the pair."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from pileus.cli.commands import Command, perform
from pileus.cli.session import CHANGING, COMMON, AsChanging, AsCommon, Session
from pileus.kernel.errors import Conflict, Invalid


def commands(session: Session) -> Mapping[str, Command]:
    """The commands, by verb."""

    async def create(
        name: Annotated[str, Parameter(help="What to call it.")],
        /,
        *,
        public_key: Annotated[str | None, Parameter(help="In OpenSSH's format. @FILE reads a file.")] = None,
        generate: Annotated[
            Path | None, Parameter(help="Make a new pair: the private key in this file, the public one beside it.")
        ] = None,
        changing: AsChanging = CHANGING,
        common: AsCommon = COMMON,
    ) -> None:
        """Store an SSH public key, of a pair that exists or of a new one."""
        if (public_key is None) == (generate is None):
            raise Invalid("either --public-key or --generate")
        if generate is not None:
            public_key = await _generated(generate.expanduser(), name)
        given = {"name": name, "public_key": public_key, "changing": changing, "common": common}
        await perform(session.document.nouns["keypair"].operations["create"], session, given)

    return {"create": create}


async def _generated(file: Path, comment: str) -> str:
    from pileus.kernel.programs import run

    if await asyncio.to_thread(file.exists):
        raise Conflict(f"{file} exists")
    await run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(file))
    return await asyncio.to_thread(file.with_name(f"{file.name}.pub").read_text)
