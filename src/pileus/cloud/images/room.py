"""Room for images on the file system of the controller. It is never filled: the log of the cloud is there too."""

import errno
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from pileus.kernel.errors import NoRoom
from pileus.kernel.units import GIB, size_text

_KEPT_FREE: Final = 2 * GIB
_KEPT_FREE_SHARE: Final = 20
"""Of the file system one part in so many stays free, but not more than `_KEPT_FREE`."""


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """What there is of a file system, in bytes."""

    total_bytes: int
    free_bytes: int
    kept_free_bytes: int
    """What images must leave free."""


class Space(Room, frozen=True, kw_only=True):
    """What images take of the controller's file system, in bytes."""

    images_bytes: int
    arriving_bytes: int
    """Of images that are not complete."""
    exports_bytes: int = 0
    """Of images in other formats, for people to fetch."""


def room_of(folder: Path) -> Room:
    """What there is of the file system that a folder is on. Blocking, though not for long."""
    system = os.statvfs(folder)
    total = system.f_blocks * system.f_frsize
    return Room(
        total_bytes=total,
        free_bytes=system.f_bavail * system.f_frsize,
        kept_free_bytes=min(total // _KEPT_FREE_SHARE, _KEPT_FREE),
    )


def must_have_room(folder: Path, needed: int) -> int:
    """Bytes that there is room for. Raises NoRoom if that is less than this."""
    room = room_of(folder)
    free, kept = room.free_bytes, room.kept_free_bytes
    if needed > free - kept:
        raise NoRoom(
            f"the controller has {size_text(free)} of {size_text(room.total_bytes)} free and keeps {size_text(kept)} of"
            f" that for itself: {size_text(needed)} do not fit; delete images, or give it more"
        )
    return free - kept


@contextmanager
def room_is_short() -> Generator[None]:
    """Say NoRoom where the file system is full all the same."""
    try:
        yield
    except OSError as failed:
        if failed.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise NoRoom("the controller has no room for this image", internal=str(failed)) from failed
