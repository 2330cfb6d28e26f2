"""Images from the cloud, checked by their SHA-256; a download that breaks off goes on where it stopped.

What has arrived is in a file beside the one that it becomes, which has the beginning of the image's SHA-256 in its
name: `debian.qcow2.5f3a0c9e1b7d2846.part`. So the next download knows whether it is of the same image.
"""

import asyncio
import fcntl
import os
import re
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO, Final, Self

from pileus.client.client import Client
from pileus.client.images import Progress, Wait
from pileus.client.records import Record
from pileus.kernel.errors import Conflict, Invalid, NotFound, PileusError, Unavailable
from pileus.kernel.units import size_text

Say = Callable[[str], None]
"""Is told what somebody who waits wants to know."""

_CHUNK: Final = 1024 * 1024
_PATIENCE_S: Final = 120.0
"""How long the controller may be away without a single byte between."""
_LONGEST_PAUSE_S: Final = 5.0
_DIGITS: Final = 16
"""Of the SHA-256, in the name of a part."""


async def download(client: Client, image: Record, file: Path, *, progress: Progress, say: Say, path: str = "") -> None:
    """Write an image's data to a file, which appears only when all of it is there and right.

    What broke off goes on: within one call whenever the controller is away, and with the next call if the first was
    interrupted. What has arrived of another image for the same file is forgotten.

    Args:
        client: of the cloud.
        image: its record, or one of an export of it.
        file: where to write it; of what is zeroes it has holes.
        progress: is told how it goes.
        say: is told that it goes on, or begins anew.
        path: of the record in the API, if it is not that of an image.

    Raises:
        PileusError: the API refuses it, or what arrived is not the image.
        Unavailable: the controller is away for long; what has arrived waits to be gone on with.
    """
    _must_be_a_file(file)
    if not image["sha256"]:
        raise Conflict(f"{image['name']} has no data yet")
    data = (path or f"/v1/images/{image['id']}") + "/data"
    size = int(image["size_bytes"])
    try:
        with _part_of(file, image, say) as part:
            await asyncio.to_thread(part.take_up)
            if part.arrived:
                say(f"{size_text(part.arrived)} of {size_text(size)} are here: it goes on there")
            while True:
                taken_up = part.arrived
                await _fetch(client, data, part, size, progress)
                await asyncio.to_thread(part.settle)
                if part.sha256 == image["sha256"]:
                    part.file.replace(file)
                    return
                if not taken_up:
                    because = {"arrived": part.sha256, "expected": str(image["sha256"])}
                    part.begin_anew()
                    raise Conflict("what arrived is not the image", because=because)
                say("what was here of it was damaged: it begins anew")
                part.begin_anew()
    except OSError as failed:
        raise Invalid(f"{file} cannot be written: {failed.strerror}", fields={"file": "cannot be written"}) from failed


async def export(
    client: Client, image: Record, format: str, file: Path, *, progress: Progress, say: Say, wait: Wait
) -> Record:
    """Write an image's data to a file in another format: it is converted for that, and what was made is forgotten.

    If that breaks off, what was made is kept for the next call, for as long as the cloud keeps exports.

    Args:
        client: of the cloud.
        image: which one.
        format: which other one.
        file: appears only when all of it is there and right.
        progress: is told how it goes, once it is converted.
        say: is told that it goes on, or begins anew.
        wait: waits for the task that converts it.

    Returns:
        The export, which is forgotten by then.

    Raises:
        PileusError: the API refuses it, or what arrived is not what was converted.
    """
    _must_be_a_file(file)
    made = await _made_before(client, image, format, file)
    if made is None:
        wish = {"image_id": image["id"], "format": format}
        begun = (await client.send("POST", "/v1/image-exports", wish, plans=True)).body
        await wait(begun["task_id"])
        made = (await client.get(f"/v1/image-exports/{begun['image_export']['id']}")).body
    path = f"/v1/image-exports/{made['id']}"
    try:
        await download(client, made, file, progress=progress, say=say, path=path)
    finally:
        if not _part_file(file, made).exists():
            with suppress(PileusError):
                await asyncio.shield(client.send("DELETE", path, plans=True))
    return made


async def _made_before(client: Client, image: Record, format: str, file: Path) -> Record | None:
    """The export of which a part is here: somebody else's, or one that is kept on purpose, is left alone."""
    async for made in client.records("/v1/image-exports", image_id=image["id"], format=format, state="available"):
        if _part_file(file, made).exists():
            return made
    return None


async def _fetch(client: Client, data: str, part: "_Part", size: int, progress: Progress) -> None:
    """All that has not arrived."""
    gives_up, pause = time.monotonic() + _PATIENCE_S, 0.1
    progress(part.arrived, size)
    while part.arrived < size:
        try:
            headers = {"range": f"bytes={part.arrived}-"} if part.arrived else {}
            async with client.stream("GET", data, headers=headers) as response:
                known = 0 if response.status_code == HTTPStatus.PARTIAL_CONTENT else part.arrived
                async for piece in response.aiter_raw(_CHUNK):
                    chunk, known = piece[known:], max(0, known - len(piece))
                    await asyncio.to_thread(part.add, chunk)
                    gives_up, pause = time.monotonic() + _PATIENCE_S, 0.1
                    progress(part.arrived, size)
            return
        except NotFound:
            part.begin_anew()
            raise
        except Unavailable:
            if time.monotonic() > gives_up:
                raise
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_S)


class _Part:
    """What has arrived of a download. Blocking."""

    def __init__(self, file: Path, opened: BinaryIO) -> None:
        self.file = file
        self.arrived = 0
        self._opened = opened
        self._digest = sha256()

    @property
    def sha256(self) -> str:
        """Of what has arrived, in hex."""
        return self._digest.hexdigest()

    def take_up(self) -> None:
        """Go on behind what is there."""
        while chunk := self._opened.read(_CHUNK):
            self.arrived += len(chunk)
            self._digest.update(chunk)

    def add(self, chunk: bytes) -> None:
        """What comes next; of what is zeroes there is a hole."""
        if chunk.count(0) == len(chunk):
            self._opened.seek(len(chunk), os.SEEK_CUR)
        else:
            self._opened.write(chunk)
        self._digest.update(chunk)
        self.arrived += len(chunk)

    def settle(self) -> None:
        """Have all of it on the disk."""
        self._opened.truncate()
        self._opened.flush()
        os.fsync(self._opened.fileno())

    def begin_anew(self) -> None:
        """Have nothing of it."""
        self._opened.seek(0)
        self._opened.truncate()
        self._digest = sha256()
        self.arrived = 0

    @classmethod
    def locked(cls, file: Path) -> Self:
        """What is there of it, for one to write at a time.

        Raises:
            Conflict: somebody else does.
        """
        while True:
            opened = os.fdopen(os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666), "r+b")
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Between the two it may have become what it was to become.
                if os.path.samestat(os.fstat(opened.fileno()), file.lstat()):
                    return cls(file, opened)
            except BlockingIOError:
                opened.close()
                raise Conflict(f"another download writes {file}") from None
            except FileNotFoundError:
                pass
            opened.close()

    def close(self) -> None:
        """Let go of it. What is empty is gone."""
        self._opened.flush()
        with suppress(FileNotFoundError):
            is_this = os.path.samestat(os.fstat(self._opened.fileno()), self.file.lstat())
            if is_this and not self.file.lstat().st_size:
                self.file.unlink()
        self._opened.close()


@contextmanager
def _part_of(file: Path, image: Record, say: Say) -> Generator[_Part]:
    """What has arrived of this image for this file, and nothing of others. Raises Conflict, OSError."""
    wanted = _part_file(file, image)
    is_part = re.compile(re.escape(file.name) + rf"\.[0-9a-f]{{{_DIGITS}}}\.part")
    for each in [each for each in file.parent.iterdir() if is_part.fullmatch(each.name) and each != wanted]:
        other = _Part.locked(each)
        other.begin_anew()
        other.close()
        say(f"what was here for {file} was of something else: it begins anew")
    part = _Part.locked(wanted)
    try:
        yield part
    finally:
        part.close()


def _must_be_a_file(file: Path) -> None:
    if file.is_dir():
        raise Invalid(f"{file} is a folder", fields={"file": "is a folder"})


def _part_file(file: Path, image: Record) -> Path:
    return file.with_name(f"{file.name}.{image['sha256'][:_DIGITS]}.part")
