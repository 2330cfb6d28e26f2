"""Copies and writes files without filling their holes. Blocking: call it in a thread."""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from pileus.kernel.units import KIB, MIB

_FICLONE: Final = 0x40049409
"""Share all blocks with another file: ioctl_ficlone(2)."""
_PIECE: Final = 8 * MIB
_BLOCK: Final = 64 * KIB
_ZEROES: Final = bytes(_BLOCK)
_NOT_BY_KERNEL: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ETXTBSY, errno.EXDEV})


def clone(source: Path, target: Path, told: Callable[[float], None], stopped: Callable[[], bool]) -> None:
    """Make a new file with the same content, by shared blocks where the file system can, else by a sparse copy.

    When this returns, the copy has reached the disk. It ends early and incomplete when `stopped`.

    Raises:
        OSError: the target is there already, or there is no room.
    """
    with source.open("rb") as old, target.open("xb") as new:
        target.chmod(0o600)
        if not _share_blocks(old.fileno(), new.fileno()):
            _copy(old.fileno(), new.fileno(), told, stopped)
        os.fsync(new.fileno())
    told(1.0)


def copy_extents(
    parts: Sequence[tuple[Path, int, int, int]],
    target: Path,
    told: Callable[[float], None],
    stopped: Callable[[], bool],
) -> None:
    """Make a new file of parts of others: each its file, where it begins there, where it goes, and its length.

    When this returns, the copy has reached the disk. It ends early and incomplete when `stopped`.

    Raises:
        OSError: the target is there already, a part is not, or there is no room.
    """
    total, done = sum(length for *_, length in parts), 0
    with ExitStack() as files, target.open("xb") as new:
        target.chmod(0o600)
        opened = {file: files.enter_context(file.open("rb")).fileno() for file in {file for file, *_ in parts}}
        for file, offset, start, length in parts:
            position = 0
            while position < length and not stopped():
                data = os.pread(opened[file], min(_PIECE, length - position), offset + position)
                if not data:
                    raise OSError(errno.EIO, "the file ended early while it was copied")
                os.pwrite(new.fileno(), data, start + position)
                position += len(data)
                told((done + position) / total)
            done += length
        os.fsync(new.fileno())
    told(1.0)


def _share_blocks(source: int, target: int) -> bool:
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as why:
        if why.errno in _NOT_BY_KERNEL or why.errno == errno.ENOTTY:
            return False
        raise
    return True


def _copy(source: int, target: int, told: Callable[[float], None], stopped: Callable[[], bool]) -> None:
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    for start, end in data_of(source, size):
        position = start
        while position < end:
            if stopped():
                return
            position += _copy_piece(source, target, position, min(_PIECE, end - position))
            told(position / size)


def _copy_piece(source: int, target: int, position: int, length: int) -> int:
    try:
        copied = os.copy_file_range(source, target, length, position, position)
    except OSError as why:
        if why.errno not in _NOT_BY_KERNEL:
            raise
        copied = os.pwrite(target, os.pread(source, length, position), position)
    if not copied:
        raise OSError(errno.EIO, "the file ended early while it was copied")
    return copied


def data_of(file: int, size: int) -> Iterator[tuple[int, int]]:
    """The parts of a file that are not holes."""
    end = 0
    while end < size:
        try:
            start = os.lseek(file, end, os.SEEK_DATA)
        except OSError as why:
            if why.errno == errno.ENXIO:  # nothing but a hole from here on
                return
            raise
        end = os.lseek(file, start, os.SEEK_HOLE)
        yield start, end


class SparseWriter:
    """Writes a new file from its beginning, and makes holes of what is zero."""

    def __init__(self, path: Path) -> None:
        self.size = 0
        self._file = path.open("xb")
        path.chmod(0o600)

    def write(self, data: bytes) -> None:
        """Append."""
        for start in range(0, len(data), _BLOCK):
            block = data[start : start + _BLOCK]
            if block != _ZEROES[: len(block)]:
                os.pwrite(self._file.fileno(), block, self.size)
            self.size += len(block)

    def finish(self) -> None:
        """Bring everything to the disk."""
        os.ftruncate(self._file.fileno(), self.size)
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
