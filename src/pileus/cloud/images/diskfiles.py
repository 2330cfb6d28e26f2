"""What is done with one file that a disk image is in, or arrives in. All but `sent` block."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from io import BufferedWriter
from pathlib import Path
from typing import Final

from pileus.kernel.errors import NotFound
from pileus.kernel.files import sync_folder
from pileus.kernel.units import MIB

_CHUNK: Final = 1 * MIB


async def sent(path: Path, *, start: int, length: int | None) -> AsyncIterator[bytes]:
    """The bytes of a file, or so many from there on. Raises NotFound."""
    try:
        file = await asyncio.to_thread(path.open, "rb")
    except FileNotFoundError:
        raise NotFound("the image has no data here") from None
    with file:
        file.seek(start)
        left = length
        while left is None or left > 0:
            chunk = await asyncio.to_thread(file.read, _CHUNK if left is None else min(_CHUNK, left))
            if not chunk:
                return
            left = None if left is None else left - len(chunk)
            yield chunk


def write_at(opened: int, data: bytes, at: int) -> None:
    """Write all of this there."""
    view = memoryview(data)
    while view:
        written = os.pwrite(opened, view, at)
        at += written
        view = view[written:]


def move(file: Path, place: Path) -> None:
    """Have a file in its place, on disk, in one step."""
    file.replace(place)
    # The new name is durable only when the folder is.
    sync_folder(place.parent)


def sync(file: BufferedWriter) -> None:
    """Bring all that was written to the disk."""
    file.flush()
    os.fsync(file.fileno())


def size_of(path: Path) -> int:
    """Bytes that are in a file; none if it is not there."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def allocated(path: Path) -> int:
    """Bytes that a file takes, if it is there."""
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0


def remove(path: Path) -> None:
    """Have a file or folder no more, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
