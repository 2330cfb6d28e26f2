"""Images up and down: `pileus image upload` makes the record and sends the data, `pileus image download` brings it."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from pileus.cli.commands import Command
from pileus.cli.progress import later, shown
from pileus.cli.session import COMMON, AsCommon, Session
from pileus.client.records import Record
from pileus.diskimages.headers import looks_like


def commands(session: Session) -> Mapping[str, Command]:
    """The commands, by verb."""

    async def upload(
        name: Annotated[str, Parameter(help="What to call it.")],
        /,
        *,
        file: Annotated[Path, Parameter(help="The disk, or the ISO.")],
        format: Annotated[
            Literal["raw", "qcow2", "vmdk", "vhdx", "vpc", "iso"] | None,
            Parameter(help="Of the file; without it, what the file looks like."),
        ] = None,
        description: str = "",
        public: Annotated[bool, Parameter(negative=(), help="For every project to use.")] = False,
        default_user: Annotated[str, Parameter(help="Who to sign in as.")] = "",
        template: Annotated[
            Literal["linux", "linux-uefi", "legacy", "windows", "windows-virtio"],
            Parameter(help="The devices that guests are given."),
        ] = "linux",
        architecture: Annotated[str, Parameter(help="Such as x86_64, for people to know.")] = "",
        min_disk_gib: Annotated[int, Parameter(help="The smallest disk that it runs on.")] = 0,
        min_memory_mib: Annotated[int, Parameter(help="The least memory that it runs with.")] = 0,
        sha256: Annotated[str, Parameter(help="What the file's SHA-256 must be, in hex.")] = "",
        common: AsCommon = COMMON,
    ) -> None:
        """Make an image of a file: its record, then its data, checked by its SHA-256 and converted if need be.

        What breaks off goes on by itself; after an interruption, by the same command once more. If the file is refused,
        the record is removed again.
        """
        from pileus.cli.tasks import finish
        from pileus.client.images import upload as send

        session.use(common)
        file = file.expanduser()
        fields: Record = {
            "name": name,
            "format": format or _format_of(file),
            "description": description,
            "public": public,
            "default_user": default_user,
            "template": template,
            "architecture": architecture,
            "min_disk_gib": min_disk_gib,
            "min_memory_mib": min_memory_mib,
        }
        async with session.client() as client:
            with ExitStack() as bar:
                progress = bar.enter_context(shown(session, f"upload {name}"))

                async def wait(task: str) -> None:
                    bar.close()
                    await finish(session, client, task)

                image = await send(client, fields, file, progress=progress, expected=sha256, wait=wait)
        session.say(f"sha256 {image['sha256']}: right")
        session.printer.record(image)

    async def download(
        record: Annotated[str, Parameter(help="Name or id.")],
        /,
        *,
        file: Annotated[Path, Parameter(help="Where to write it.")],
        format: Annotated[
            Literal["raw", "qcow2", "vmdk", "vhdx"] | None,
            Parameter(help="What to have it converted to; without it, as it is kept."),
        ] = None,
        common: AsCommon = COMMON,
    ) -> None:
        """Write an image's data to a file, checked by its SHA-256.

        What breaks off goes on by itself; after an interruption, by the same command once more. In another format it is
        exported first, and the export deleted when the file is there.
        """
        from pileus.cli.names import Names
        from pileus.cli.tasks import finish
        from pileus.client.downloads import download as fetch
        from pileus.client.downloads import export

        session.use(common)
        file = file.expanduser()
        async with session.client() as client:
            image = await Names(client, session.document).record("image", record)

            async def wait(task: str) -> None:
                await finish(session, client, task)

            with ExitStack() as bar:
                progress = later(session, f"download {image['name']}", bar)
                if format in (None, image["format"]):
                    await fetch(client, image, file, progress=progress, say=session.say)
                else:
                    image = await export(client, image, format, file, progress=progress, say=session.say, wait=wait)
        session.say(f"sha256 {image['sha256']}: right")

    return {"upload": upload, "download": download}


def _format_of(file: Path) -> str:
    try:
        return looks_like(file)
    except OSError:
        return "raw"  # the upload says what is wrong with the file
