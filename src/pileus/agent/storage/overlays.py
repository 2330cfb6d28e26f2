"""Overlays: qcow2 files that hold what was written since they were laid over another file.

They are ours, but QEMU writes to them, and a guest may have got hold of its QEMU. So what an overlay says it lies on is
compared with what it was laid on before qemu-img opens it: none can have the host's files read, or written over.
"""

import asyncio
import os
import struct
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Final

import msgspec

from pileus.diskimages.qemuimg import tell_percent
from pileus.kernel.errors import Conflict, Unavailable
from pileus.kernel.programs import run

_CREATE_S: Final = 30.0
_COPY_S: Final = 4 * 3600.0

# https://www.qemu.org/docs/master/interop/qcow2.html
_HEADER: Final = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_MAGIC: Final = b"QFI\xfb"
_BACKING_FORMAT: Final = 0xE2792ACA
_DIRTY: Final = 1
_KNOWN_FEATURES: Final = _DIRTY
"""What an overlay may say that it needs; above all not a data file elsewhere."""
_EXTENSIONS_AT_MOST: Final = 64 * 1024


class Extent(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a disk, and in which file its content is."""

    start: int
    length: int
    depth: int
    """How many files below the topmost."""
    zero: bool
    """Whether it reads as zeroes."""
    data: bool
    offset: int | None = None
    """Where it is in that file, in bytes."""


class _Header(msgspec.Struct, frozen=True, kw_only=True):
    size_bytes: int
    backing: str
    backing_format: str


def format_of(file: Path) -> str:
    """The format of a file of a volume, by its name, which is ours."""
    return "qcow2" if file.suffix == ".qcow2" else "raw"


def size_of(file: Path) -> int:
    """How large a disk in this file is, in bytes. Blocking.

    Raises:
        Conflict: it is no overlay as we make them.
    """
    return file.stat().st_size if format_of(file) == "raw" else _header(file).size_bytes


async def create(file: Path, *, over: Path, size_bytes: int) -> None:
    """Lay an empty overlay over a file of the same folder; it has reached the disk when this returns."""
    # Unsafely: qemu-img is not to open what a guest may be writing to.
    command = ("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", format_of(over), "-b", over.name)
    await run(*command, str(file), str(size_bytes), timeout_s=_CREATE_S)
    await asyncio.to_thread(_bring_to_disk, file)


async def enlarge(file: Path, size_bytes: int) -> bool:
    """Make an overlay larger that no guest uses; whether it could be done: a guest that uses it has to do it."""
    said = await run(
        "qemu-img", "resize", "-q", "-f", "qcow2", str(file), str(size_bytes), timeout_s=_CREATE_S, accept=(0, 1)
    )
    del said  # that it is locked is all that can be in the way of it
    return size_of(file) >= size_bytes


async def merge_down(chain: list[Path]) -> None:
    """Write what the first file of a chain holds into the second, in place; the first stays as it is.

    Raises:
        Conflict: an overlay does not lie on what it should.
        ProgramFailed: there is no room, or a guest uses them.
    """
    check(chain)
    await run("qemu-img", "commit", "-q", "-d", "-f", "qcow2", str(chain[0]), timeout_s=_COPY_S)


async def rebase(file: Path, *, over: Path) -> None:
    """Let an overlay that no guest uses lie on another file with the same content."""
    command = ("qemu-img", "rebase", "-q", "-u", "-f", "qcow2", "-F", format_of(over), "-b", over.name)
    await run(*command, str(file), timeout_s=_CREATE_S)


async def pack(chain: list[Path], target: Path, told: Callable[[float], None]) -> None:
    """Write what a chain of files holds into one compressed qcow2 file, on disk when this returns.

    The files may be in use as long as nobody writes to them.

    Raises:
        Conflict: an overlay does not lie on what it should.
        ProgramFailed: there is no room.
    """
    check(chain)
    # The guests have the better claim to the CPUs.
    command = ("nice", "-n", "19", "qemu-img", "convert", "-p", "-c", "-U", "-f", format_of(chain[0]), "-O", "qcow2")
    await run(*command, str(chain[0]), str(target), timeout_s=_COPY_S, heard=lambda said: tell_percent(said, told))
    await asyncio.to_thread(_bring_to_disk, target)


async def extents(chain: list[Path]) -> list[Extent]:
    """Where the content of a chain of files is, which may be in use as long as nobody writes to them.

    Raises:
        Conflict: an overlay does not lie on what it should.
    """
    check(chain)
    said = await run(
        "qemu-img", "map", "--output=json", "-U", "-f", format_of(chain[0]), str(chain[0]), timeout_s=_COPY_S
    )
    return msgspec.json.decode(said, type=list[Extent])


def check(chain: list[Path]) -> None:
    """See to it that every overlay of a chain lies on the next file of it, and on nothing else. Blocking.

    Raises:
        Conflict: one does not.
    """
    for upper, lower in pairwise(chain):
        header = _header(upper)
        # QEMU writes whole paths when it has merged what was between.
        if header.backing not in (lower.name, str(lower)) or header.backing_format != format_of(lower):
            internal = f"{upper} lies on {header.backing!r} ({header.backing_format}) instead of {lower.name}"
            raise Conflict("a layer of the volume is not what was made", internal=internal)


def _bring_to_disk(file: Path) -> None:
    file.chmod(0o600)
    with file.open("rb") as made:
        os.fsync(made.fileno())


def _header(file: Path) -> _Header:
    try:
        with file.open("rb") as opened:
            head = opened.read(_EXTENSIONS_AT_MOST)
        (magic, version, backing_at, backing_length, _, size, *_, features, _, _, _, length) = _HEADER.unpack_from(head)
    except (OSError, struct.error) as why:
        raise Unavailable("a layer of the volume cannot be read", internal=f"{file}: {why}") from why
    if magic != _MAGIC or version != 3 or features & ~_KNOWN_FEATURES:
        internal = f"{file}: {magic!r}, version {version}, features {features:#x}"
        raise Conflict("a layer of the volume is not what was made", internal=internal)
    backing = head[backing_at : backing_at + backing_length] if backing_at else b""
    return _Header(
        size_bytes=size,
        backing=backing.decode(errors="replace"),
        backing_format=_extension(head, length).decode(errors="replace"),
    )


def _extension(head: bytes, at: int) -> bytes:
    """The header extension that names the format of what the overlay lies on."""
    while at + 8 <= len(head):
        kind, length = struct.unpack_from(">II", head, at)
        if kind == 0:
            break
        if kind == _BACKING_FORMAT:
            return head[at + 8 : at + 8 + length]
        at += 8 + (length + 7) // 8 * 8
    return b""
