"""Building the appliance: a kernel and an initramfs that set a password in the disk of a guest that does not run.

It knows ext2, ext3, ext4, XFS and btrfs, as the kernel of the small image does. What it does is in `within/init`.
"""

import asyncio
import gzip
from collections.abc import Callable
from pathlib import Path

import msgspec

from pileus.guestimage import built
from pileus.guestimage.initramfs import Entry, cpio, drivers, programs, shell
from pileus.guestimage.packages import Packages, choose, kernel_of, obtain
from pileus.kernel.files import write_atomically
from pileus.kernel.programs import run

KERNEL, INITRAMFS = "kernel", "initramfs"
_PROGRAMS = {"util-linux": ("sbin/blkid",)}
_PACKAGES = ("busybox-static", "libblkid1", "libc6", "util-linux")
_INIT = Path(__file__).with_name("within") / "init"
_FOLDERS = ("dev", "mnt", "proc", "sys")


class _Certificate(msgspec.Struct, frozen=True, kw_only=True):
    recipe: str


async def build_appliance(folder: Path, *, cache: Path, say: Callable[[str], None]) -> None:
    """Have `kernel` and `initramfs` in this folder; returns at once if nothing has changed that they are made of.

    Args:
        folder: that is there already.
        cache: folder for packages and what was unpacked from them, as for the small image.
        say: is told what happens, a line each.

    Raises:
        Unavailable: packages could be had neither from the archive nor from the cache.
        ProgramFailed: one of the programs failed.
    """
    kernel = await kernel_of(cache=cache, say=say)
    offers = await choose([kernel, *_PACKAGES], cache=cache, say=say)
    certificate = msgspec.json.encode(
        _Certificate(recipe=await asyncio.to_thread(built.recipe, *(offer.file for offer in offers)))
    )
    if await asyncio.to_thread(_is_there, folder, certificate):
        return
    packages = await obtain(offers, cache=cache, say=say)
    say("building the appliance for disks of stopped instances")
    busybox = packages["busybox-static"].find("bin/busybox")
    applets = (await run(str(busybox), "--list", timeout_s=10)).split()
    await asyncio.to_thread(_write, folder, packages, kernel, applets, certificate)


def _is_there(folder: Path, certificate: bytes) -> bool:
    file = _certificate(folder)
    return file.exists() and file.read_bytes() == certificate


def _write(folder: Path, packages: Packages, kernel: str, applets: list[str], certificate: bytes) -> None:
    root = packages[kernel].root
    tree = {path: Entry.folder() for path in _FOLDERS}
    tree |= shell(packages, applets)
    tree |= drivers(root, ("virtio_pci", "virtio_blk"), listed="drivers")
    for each in ("xfs", "btrfs"):
        # Only when it is needed: btrfs measures for seconds which way of reckoning is the fastest.
        tree |= drivers(root, (each,), listed=each)
    tree |= programs(packages, _PROGRAMS)
    tree["init"] = Entry.file(_INIT.read_bytes(), executable=True)
    version = kernel.removeprefix("linux-image-")
    _certificate(folder).unlink(missing_ok=True)
    write_atomically(folder / KERNEL, packages[kernel].find(f"boot/vmlinuz-{version}").read_bytes(), mode=0o644)
    write_atomically(folder / INITRAMFS, gzip.compress(cpio(tree), 6, mtime=0), mode=0o644)
    write_atomically(_certificate(folder), certificate, mode=0o644)


def _certificate(folder: Path) -> Path:
    return folder / "made-from.json"
