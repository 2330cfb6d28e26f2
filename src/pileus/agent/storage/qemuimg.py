"""Looks into disk images and converts them with qemu-img.

Images come from strangers. The format is always the declared one and never guessed (a raw image may pretend to be a
qcow2 that names the host's files), files named by an image are refused, and the program has limits on time, memory and
the size of what it writes.
"""

from pathlib import Path
from typing import Final

import msgspec

from pileus.kernel.errors import Conflict, TimedOut
from pileus.kernel.programs import ProgramFailed, run
from pileus.kernel.units import GIB, MIB, size_text

_MEMORY_BYTES: Final = 1 * GIB
_LOOK_S: Final = 30
_CONVERT_S: Final = 1800


class _DataFile(msgspec.Struct, rename="kebab"):
    data_file: str | None = None


class _Specific(msgspec.Struct):
    data: _DataFile = msgspec.field(default_factory=_DataFile)


class _Info(msgspec.Struct, rename="kebab"):
    virtual_size: int
    encrypted: bool = False
    backing_filename: str | None = None
    format_specific: _Specific = msgspec.field(default_factory=_Specific)


async def check(path: Path, *, format: str, virtual_size_bytes: int) -> None:
    """Refuse an image that is not what it was declared to be, or that needs other files.

    Raises:
        Conflict: it is refused, or cannot be read.
    """
    try:
        said = await _limited(
            "qemu-img", "info", "--output=json", "-f", format, str(path), cpu_s=_LOOK_S, largest_file_bytes=0
        )
        info = msgspec.json.decode(said, type=_Info)
    except (ProgramFailed, TimedOut, msgspec.DecodeError) as why:
        raise Conflict(f"the image cannot be read as {format}", internal=_internal(why)) from why
    if info.backing_filename is not None or info.format_specific.data.data_file is not None:
        raise Conflict("the image needs another file, which is refused")
    if info.encrypted:
        raise Conflict("the image is encrypted, which is refused")
    if info.virtual_size != virtual_size_bytes:
        raise Conflict(
            f"the image is a disk of {size_text(info.virtual_size)}, declared were {size_text(virtual_size_bytes)}"
        )


async def convert_to_raw(source: Path, target: Path, *, format: str, virtual_size_bytes: int) -> None:
    """Write a checked image's content as a sparse raw file.

    Raises:
        Conflict: it cannot be read to its end, or there is no room.
    """
    command = ("qemu-img", "convert", "-f", format, "-O", "raw", "-S", "64k", str(source), str(target))
    try:
        await _limited(*command, cpu_s=_CONVERT_S, largest_file_bytes=virtual_size_bytes + MIB)
    except (ProgramFailed, TimedOut) as why:
        raise Conflict("the image cannot be converted", internal=_internal(why)) from why


async def _limited(*command: str, cpu_s: int, largest_file_bytes: int) -> str:
    # Not the address space: the stacks of qemu-img's threads, of which little is used, do not fit into a safe one.
    limits = (f"--data={_MEMORY_BYTES}", f"--cpu={cpu_s}", f"--fsize={largest_file_bytes}", "--core=0")
    return await run("prlimit", *limits, *command, timeout_s=2 * cpu_s)


def _internal(why: Exception) -> str:
    return getattr(why, "internal", "") or str(why)
