"""Images in other formats: `pileus image-export download` brings one that was made."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from pileus.cli.commands import Command
from pileus.cli.progress import later
from pileus.cli.session import COMMON, AsCommon, Session


def commands(session: Session) -> Mapping[str, Command]:
    """The commands, by verb."""

    async def download(
        record: Annotated[str, Parameter(help="Name or id.")],
        /,
        *,
        file: Annotated[Path, Parameter(help="Where to write it.")],
        common: AsCommon = COMMON,
    ) -> None:
        """Write an image export to a file, checked by its SHA-256. The export stays.

        What breaks off goes on by itself; after an interruption, by the same command once more.
        """
        from pileus.cli.names import Names
        from pileus.client.downloads import download as fetch

        session.use(common)
        async with session.client() as client:
            export = await Names(client, session.document).record("image-export", record)
            path = f"/v1/image-exports/{export['id']}"
            with ExitStack() as bar:
                progress = later(session, f"download {export['name']}", bar)
                await fetch(client, export, file.expanduser(), progress=progress, say=session.say, path=path)
        session.say(f"sha256 {export['sha256']}: right")

    return {"download": download}
