"""Images to the cloud, checked by their SHA-256; an upload that breaks off goes on where it stopped."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Final

from pileus.client.client import Client, Reply
from pileus.client.records import Record
from pileus.kernel.errors import Conflict, Invalid, PileusError, Unavailable

Progress = Callable[[int, int], None]
"""Is told how many bytes have passed, of how many."""

Wait = Callable[[str], Awaitable[object]]
"""Waits until the task of this id is done, and raises if it fails."""

_CHUNK: Final = 1024 * 1024
_PART: Final = 64 * 1024 * 1024
"""Bytes of a file that are sent in one request: each is on the controller's disk when it is answered."""
_PATIENCE_S: Final = 120.0
"""How long the controller may be away without a single byte between."""
_LONGEST_PAUSE_S: Final = 5.0
_ANSWER_S: Final = 600.0


async def upload(
    client: Client,
    fields: Record,
    file: Path,
    *,
    progress: Progress,
    expected: str = "",
    wait: Wait | None = None,
) -> Record:
    """Make an image of a file: its record, its data in parts, and the task that checks and converts it.

    What broke off goes on: within one call whenever the controller is away, and with the next call if the first was
    interrupted: an image of that name that waits for this very file is taken up again.

    Args:
        client: of the cloud.
        fields: of the image's record.
        file: the disk.
        progress: is told how it goes.
        expected: the SHA-256 that the file must have, in hex; empty takes it as it is.
        wait: waits for the task, if somebody wants to watch it.

    Raises:
        PileusError: the API refuses it, or the file is not what it should be; then no record is left.
        Unavailable: the controller is away for long; what has arrived waits to be gone on with.
    """
    size, found = await asyncio.to_thread(_measured, file)
    if expected and found != expected.lower():
        raise Invalid("the file is damaged", fields={"sha256": f"is {found}, {expected.lower()} was expected"})
    image = await _begun(client, fields, found)
    if image is None:
        wish = {**fields, "size_bytes": size, "sha256": found}
        image = (await client.send("POST", "/v1/images", wish, plans=True)).body
    try:
        with file.open("rb") as source:
            await _send(client, image, source, size, progress)
        path = f"/v1/images/{image['id']}"
        task = (await client.send("POST", f"{path}/upload/finish", {}, plans=True)).body
        await (wait or client.wait)(task["task_id"])
    except Unavailable:
        raise
    except (PileusError, OSError):
        # What was refused once is refused again.
        with suppress(PileusError):
            await asyncio.shield(client.send("DELETE", f"/v1/images/{image['id']}", plans=True))
        raise
    return (await client.get(path)).body


def _measured(file: Path) -> tuple[int, str]:
    """Size and SHA-256 of a file."""
    try:
        with file.open("rb") as source:
            digest, size = sha256(), 0
            while chunk := source.read(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
    except OSError as failed:
        raise Invalid(f"{file} cannot be read: {failed.strerror}", fields={"file": "cannot be read"}) from failed
    if not size:
        raise Invalid(f"{file} is empty", fields={"file": "is empty"})
    return size, digest.hexdigest()


async def _begun(client: Client, fields: Record, digest: str) -> Record | None:
    """The image of this name that waits for this very file."""
    query = {"name": fields["name"], "state": "queued", "format": fields["format"]}
    async for image in client.records("/v1/images", **query):
        if image["expected_sha256"] == digest:
            return image
    return None


async def _send(client: Client, image: Record, source: BinaryIO, size: int, progress: Progress) -> None:
    """All of the file that has not arrived, part by part."""
    path = f"/v1/images/{image['id']}/upload"
    gives_up, pause = time.monotonic() + _PATIENCE_S, 0.1
    arrived = -1
    while arrived < size:
        try:
            now = int((await client.get(path)).body["offset_bytes"])
            if now > arrived:
                gives_up, pause, arrived = time.monotonic() + _PATIENCE_S, 0.1, now
            progress(arrived, size)
            if arrived < size:
                await _send_part(client, path, source, arrived, size, progress)
        except (Unavailable, Conflict) as broken:
            # Somebody else may send the same file: both go on until all of it is there.
            if time.monotonic() > gives_up or (isinstance(broken, Conflict) and not broken.because):
                raise
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)


async def _send_part(client: Client, path: str, source: BinaryIO, offset: int, size: int, progress: Progress) -> Reply:
    length = min(_PART, size - offset)
    headers = {
        "content-type": "application/octet-stream",
        "content-length": str(length),
        "upload-offset": str(offset),
    }
    content = _read(source, offset, length, lambda sent: progress(offset + sent, size))
    async with client.stream("PATCH", path, headers=headers, content=content, read_timeout_s=_ANSWER_S) as response:
        return Reply(status=response.status_code, headers=response.headers, content=await response.aread())


async def _read(source: BinaryIO, offset: int, length: int, told: Callable[[int], None]) -> AsyncIterator[bytes]:
    sent = 0
    while sent < length:
        chunk = await asyncio.to_thread(os.pread, source.fileno(), min(_CHUNK, length - sent), offset + sent)
        if not chunk:
            raise Invalid("the file has become shorter while it was read", fields={"file": "changes"})
        yield chunk
        sent += len(chunk)
        told(sent)
