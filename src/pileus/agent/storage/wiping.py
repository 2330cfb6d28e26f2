"""Overwrites files before their space is given back. Blocking: call it in a thread.

One pass of zeros over all that is allocated is what NIST SP 800-88 (Rev. 1, appendix A) calls *clear* for a disk:
enough against whoever reads what the disk answers, and random data would make it no better. It reaches what was written
only where a block is overwritten in its place: a copy-on-write file system puts the zeros elsewhere, and so does the
translation layer of an SSD. What a guest has discarded itself belongs to the file no more, and is not reached either.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from pileus.agent.storage.sparse import data_of
from pileus.kernel.units import MIB

_PIECE: Final = 4 * MIB
_BATCH: Final = 256 * MIB
"""What is overwritten before the disk is waited for: at most so much is done again after a crash."""
_ZEROES: Final = memoryview(bytes(_PIECE))


def wipe_folder(folder: Path, told: Callable[[float], None], stopped: Callable[[], bool]) -> None:
    """Overwrite and remove every file of a folder, then the folder; nothing if there is none.

    It ends early and incomplete when `stopped`; whoever calls it again goes on there.

    Raises:
        OSError: a file cannot be written.
    """
    if not folder.exists():
        return
    files = list(folder.iterdir())
    sizes = [file.stat().st_blocks for file in files]
    for number, file in enumerate(files):
        wipe(file, _part_of(told, sizes, number), stopped)
        if stopped():
            return
        file.unlink()
    folder.rmdir()


def wipe(file: Path, told: Callable[[float], None], stopped: Callable[[], bool]) -> None:
    """Overwrite what is allocated to a file, from its end, which is cut off as the zeros have reached the disk.

    It ends early when `stopped`, and else leaves the file empty.

    Raises:
        OSError: the file cannot be written.
    """
    with file.open("rb+") as opened:
        target = opened.fileno()
        extents = list(data_of(target, os.fstat(target).st_size))
        total, done, waiting = sum(end - start for start, end in extents), 0, 0
        for start, behind in reversed(extents):
            position = behind
            while position > start:
                if stopped():
                    return
                length = min(_PIECE, position - start)
                position -= length
                _overwrite(target, position, length)
                done, waiting = done + length, waiting + length
                if waiting >= _BATCH:
                    os.fsync(target)
                    os.ftruncate(target, position)
                    waiting = 0
                told(done / total)
        # Zeros that wait for the disk would be dropped with what is cut off.
        os.fsync(target)
        os.ftruncate(target, 0)
        os.fsync(target)


def _overwrite(target: int, start: int, length: int) -> None:
    written = 0
    while written < length:
        written += os.pwrite(target, _ZEROES[: length - written], start + written)


def _part_of(told: Callable[[float], None], sizes: Sequence[int], number: int) -> Callable[[float], None]:
    total, before = max(1, sum(sizes)), sum(sizes[:number])
    return lambda part: told((before + part * sizes[number]) / total)
