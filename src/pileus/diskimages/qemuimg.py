"""Looks into disk images and converts them with qemu-img, behind the walls of `jail.py`.

The format is always the declared one and never guessed (a raw image may pretend to be a qcow2 that names the host's
files), and the header was looked at by `headers.py` before the program opens the file.
"""

import asyncio
import os
import re
import shutil
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec

from pileus.diskimages.headers import DiskFormat, virtual_size
from pileus.diskimages.jail import CANNOT, Limits, jailed
from pileus.kernel.errors import Conflict, Invalid, TimedOut, Unavailable
from pileus.kernel.ids import new_id
from pileus.kernel.programs import ProgramFailed, run
from pileus.kernel.units import GIB, MIB, size_text

_MEMORY_BYTES: Final = 1 * GIB
_LOOK_S: Final = 60
_CONVERT_S: Final = 4 * 3600
_AT_ONCE: Final = 2
"""Conversions at the same time: more would only slow each other, and what else runs here, down."""
_DRIVERS: Final = {DiskFormat.ISO: "raw"}
_OPTIONS: Final = {DiskFormat.VMDK: ("-o", "subformat=streamOptimized")}
"""The vmdk that is made to be sent: in one file, which may be called anything."""
_PERCENT: Final = re.compile(r"\((\d+(?:\.\d+)?)/100%\)")

Told = Callable[[float], None]
"""Is told how far a conversion is, between 0 and 1."""


class _DataFile(msgspec.Struct, rename="kebab"):
    data_file: str | None = None


class _Specific(msgspec.Struct):
    data: _DataFile = msgspec.field(default_factory=_DataFile)


class _Info(msgspec.Struct, rename="kebab"):
    virtual_size: int
    encrypted: bool = False
    backing_filename: str | None = None
    format_specific: _Specific = msgspec.field(default_factory=_Specific)


class QemuImg:
    """qemu-img, where it is installed."""

    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def inspect(self, path: Path, format: DiskFormat) -> int:
        """The size in bytes of the disk that a file describes.

        Raises:
            Invalid: it is not of this format, is damaged, encrypted, too large, or refers to other files.
            Unavailable: there is no qemu-img here, or nothing to confine it with.
        """
        declared = await asyncio.to_thread(virtual_size, path, format)
        if format in (DiskFormat.RAW, DiskFormat.ISO):
            return declared
        async with _job(path) as job:
            command = ["info", "--output=json", "--image-opts", _opened(format)]
            said = await _run(job, command, Limits(_MEMORY_BYTES, _LOOK_S, 0), f"the image cannot be read as {format}")
        try:
            info = msgspec.json.decode(said, type=_Info)
        except msgspec.DecodeError as strange:
            raise Invalid(f"the image cannot be read as {format}", internal=str(strange)) from strange
        if info.backing_filename is not None or info.format_specific.data.data_file is not None:
            raise Invalid("the image needs another file, which is refused")
        if info.encrypted:
            raise Invalid("the image is encrypted: nobody here has its key")
        if format in (DiskFormat.QCOW2, DiskFormat.VMDK) and info.virtual_size != declared:
            raise Invalid("the image's header is damaged: it is a disk of two sizes")
        return info.virtual_size

    async def convert(
        self, source: Path, target: Path, *, format: DiskFormat, to: DiskFormat, at_most_bytes: int, told: Told
    ) -> None:
        """Write an inspected image's content as another format, not ISO; zeroes take no room.

        Args:
            source: the image, in the folder that the target goes to.
            target: is made, and has reached the disk when this returns.
            format: of the source.
            to: of the target.
            at_most_bytes: how large the target may become.
            told: is told how far it is.

        Raises:
            Invalid: it cannot be read to its end.
            Conflict: it does not fit into `at_most_bytes`.
            Unavailable: there is no qemu-img here, or nothing to confine it with.
        """
        command = ["convert", "-p", "-S", "64k", "--image-opts", _opened(format), "-O", to, *_OPTIONS.get(to, ()), _OUT]
        limits = Limits(_MEMORY_BYTES, _CONVERT_S, at_most_bytes)
        async with self._slots, _job(source) as job:
            try:
                await _run(job, command, limits, "the image cannot be converted", lambda said: tell_percent(said, told))
            except Invalid as failed:
                made = await asyncio.to_thread(_size, job / _OUT)
                if made >= at_most_bytes - MIB:
                    raise Conflict(
                        f"converted, the image takes more than the {size_text(at_most_bytes)} there are for it",
                        internal=failed.internal,
                    ) from failed
                raise
            await asyncio.to_thread(_take, job / _OUT, target)


_IN, _OUT = "in", "out"


def _opened(format: DiskFormat) -> str:
    """The image as qemu-img is to open it: every layer named, so that nothing is taken from its name or its bytes."""
    driver = _DRIVERS.get(format, str(format))
    return f"driver={driver},read-only=on,file.driver=file,file.filename={_IN},file.locking=off"


async def _run(
    job: Path, command: list[str], limits: Limits, wrong: str, heard: Callable[[str], None] | None = None
) -> str:
    program = shutil.which("qemu-img", path="/usr/local/bin:/usr/bin:/bin")
    if program is None:
        raise Unavailable("qemu-img is not installed here: images of this format cannot be opened")
    try:
        return await run(*jailed([program, *command], job, limits), timeout_s=2.0 * limits.cpu_s, heard=heard)
    except ProgramFailed as failed:
        if failed.exit_status == CANNOT:
            raise Unavailable("this machine cannot confine qemu-img", internal=failed.said) from failed
        raise Invalid(wrong, internal=failed.internal) from failed
    except TimedOut as late:
        raise Invalid(f"{wrong} in time", internal=late.internal) from late


def tell_percent(said: str, told: Told) -> None:
    """Tell how far qemu-img is, by what it printed."""
    if found := _PERCENT.findall(said):
        told(min(float(found[-1]) / 100, 1.0))


@asynccontextmanager
async def _job(source: Path) -> AsyncGenerator[Path]:
    """A folder beside an image for one run, in which the image is `in`, for whoever it runs as to read."""
    folder = source.with_name(f"{source.name}.{new_id()}.job")
    try:
        await asyncio.to_thread(_prepare, folder, source)
        yield folder
    finally:
        # Not in a thread: whoever is cancelled here would leave before it is done.
        shutil.rmtree(folder, ignore_errors=True)


def _prepare(folder: Path, source: Path) -> None:
    folder.mkdir(0o700)
    (folder / _IN).hardlink_to(source)
    # The folder around it lets nobody in but us.
    source.chmod(0o644)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _take(made: Path, target: Path) -> None:
    with made.open("rb") as file:
        os.fchown(file.fileno(), os.geteuid(), os.getegid())
        os.fchmod(file.fileno(), 0o600)
        os.fsync(file.fileno())
    made.replace(target)
