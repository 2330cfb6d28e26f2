"""Images to the cloud and back, checked by their SHA-256."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from pileus.client.client import Client, Reply
from pileus.client.records import Record
from pileus.kernel.errors import Conflict, Invalid, PileusError

Progress = Callable[[int, int], None]
"""Is told how many bytes have passed, of how many."""

_CHUNK = 1024 * 1024


async def upload(client: Client, fields: Record, file: Path, *, progress: Progress, expected: str = "") -> Record:
    """Make an image of a file: its record, then its data. The record does not outlive a failure.

    Args:
        client: of the cloud.
        fields: of the image's record.
        file: the disk.
        progress: is told how it goes.
        expected: the SHA-256 that the file must have, in hex; empty takes it as it is.

    Raises:
        PileusError: the API refuses it, or what arrived is not what was sent.
    """
    try:
        size = (await asyncio.to_thread(file.stat)).st_size
    except OSError as failed:
        raise Invalid(f"{file} cannot be read: {failed.strerror}", fields={"file": "cannot be read"}) from failed
    image: Record = (await client.send("POST", "/v1/images", fields, plans=True)).body
    try:
        return await _upload_data(client, image, file, size, progress, expected)
    except BaseException:
        with suppress(PileusError):
            await asyncio.shield(client.send("DELETE", f"/v1/images/{image['id']}", plans=True))
        raise


async def _upload_data(
    client: Client, image: Record, file: Path, size: int, progress: Progress, expected: str
) -> Record:
    digest = sha256()
    query = {"sha256": expected or None}
    headers = {"content-type": "application/octet-stream", "content-length": str(size)}
    async with client.stream(
        "PUT",
        f"/v1/images/{image['id']}/data",
        query=query,
        headers=headers,
        content=_read(file, size, digest, progress),
        read_timeout_s=600.0,
    ) as response:
        reply = Reply(status=response.status_code, headers=response.headers, content=await response.aread())
    arrived: Record = reply.body
    if arrived["sha256"] != digest.hexdigest():
        raise Conflict("what arrived is not what was sent", because={"sent": digest.hexdigest(), **_sum(arrived)})
    return arrived


def _sum(image: Record) -> dict[str, str]:
    return {"arrived": str(image["sha256"])}


async def _read(file: Path, size: int, digest: Any, progress: Progress) -> AsyncIterator[bytes]:  # noqa: ANN401 - hashlib
    sent = 0
    with file.open("rb") as source:
        while chunk := await asyncio.to_thread(source.read, _CHUNK):
            await asyncio.to_thread(digest.update, chunk)
            yield chunk
            sent += len(chunk)
            progress(sent, size)


async def download(client: Client, image: Record, file: Path, *, progress: Progress) -> None:
    """Write an image's data to a file, which appears only when all of it is there and right.

    Raises:
        PileusError: the API refuses it, or what arrived is not the image.
    """
    part = file.with_name(f".{file.name}.part")
    digest = sha256()
    arrived = 0
    try:
        with part.open("wb") as target:
            async with client.stream("GET", f"/v1/images/{image['id']}/data") as response:
                async for chunk in response.aiter_raw(_CHUNK):
                    await asyncio.to_thread(_write, target, digest, chunk)
                    arrived += len(chunk)
                    progress(arrived, image["size_bytes"])
            target.flush()
            await asyncio.to_thread(os.fsync, target.fileno())
        if digest.hexdigest() != image["sha256"]:
            raise Conflict("what arrived is not the image", because={"arrived": digest.hexdigest(), **_sum(image)})
        part.replace(file)
    except OSError as failed:
        raise Invalid(f"{file} cannot be written: {failed.strerror}", fields={"file": "cannot be written"}) from failed
    finally:
        part.unlink(missing_ok=True)


def _write(target: Any, digest: Any, chunk: bytes) -> None:  # noqa: ANN401 - a file, and hashlib
    target.write(chunk)
    digest.update(chunk)
