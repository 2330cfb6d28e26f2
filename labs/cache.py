"""What labs share: the guests' images, Open vSwitch and OVN. Fetched and built once, and kept between runs."""

import asyncio
import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from pileus.guestimage import BuiltImage, build, build_appliance
from pileus.guestimage.debian import build_debian
from pileus.machine.ovnprefix import OvnPrograms, ovn_programs

FOLDER = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pileus"
PACKAGES = FOLDER / "mini"
"""The packages that images are built from."""


@contextmanager
def _alone() -> Generator[None]:
    """Two runs of the tests at a time do not build the same."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def mini() -> BuiltImage:
    """The small guest image."""
    with _alone():
        return asyncio.run(build(FOLDER / "mini.qcow2", cache=PACKAGES, say=print))


def appliance() -> Path:
    """The folder of what looks into disks."""
    folder = FOLDER / "appliance"
    with _alone():
        folder.mkdir(exist_ok=True)
        asyncio.run(build_appliance(folder, cache=PACKAGES, say=print))
    return folder


def debian() -> BuiltImage:
    """A full Debian with cloud-init; takes minutes the first time."""
    with _alone():
        return asyncio.run(build_debian(FOLDER / "debian.qcow2", cache=PACKAGES, say=print))


def programs() -> OvnPrograms:
    """Open vSwitch and OVN."""
    with _alone():
        return asyncio.run(ovn_programs(FOLDER, print))


def lend(cache: Path) -> None:
    """Have the cache of an installation begin with all that one fetches: from inside of a lab there is no archive."""
    programs()
    image = mini()
    cache.mkdir(parents=True)
    for each in (FOLDER / "ovn", PACKAGES, image.path, image.path.with_name(f"{image.path.name}.json")):
        (cache / each.name).symlink_to(each)
