"""Building the small image: which packages, in which form, and whether it has to be built at all."""

import asyncio
import tempfile
from collections.abc import Callable
from pathlib import Path

from pileus.guestimage import built, disk, initramfs
from pileus.guestimage.built import BuiltImage
from pileus.guestimage.packages import Packages, choose, kernel_of, obtain
from pileus.kernel.programs import run
from pileus.kernel.units import MIB, size_text

_LIBRARIES = (
    *("libblkid1", "libcom-err2", "libcrypt1", "libext2fs2", "libglib2.0-0", "libgmp10", "libnuma1"),
    *("libtomcrypt1", "libtommath1", "liburing2", "libuuid1", "zlib1g"),
)
_PACKAGES = ("busybox-static", *initramfs.PROGRAMS, *disk.GRUB_PACKAGES, *_LIBRARIES)
_COMMAND_LINE = "rdinit=/init console=tty0 console=ttyS0 panic=5 quiet net.ifnames=0 memhp_default_state=online"
_VIRTUAL_SIZE_BYTES = 128 * MIB
_DATA = disk.FileSystem(label="PILEUSDATA", uuid="50696c65-7573-4d69-8e69-446174610001")


def _silent(_: str) -> None:
    pass


async def build(output: Path, *, cache: Path, say: Callable[[str], None] = _silent) -> BuiltImage:
    """Build the small guest image, or return at once if it is there and nothing it is made of has changed.

    Needs apt with its package lists (or a cache from before), dpkg-deb, mke2fs and qemu-img; installs nothing.

    Args:
        output: where the qcow2 file goes; it appears there complete or not at all.
        cache: folder for packages and what was unpacked from them; some 250 MB, may be deleted at any time.
        say: is told what happens, a line each.

    Raises:
        Unavailable: packages could be had neither from the archive nor from the cache.
        ProgramFailed: one of the programs failed.
    """
    kernel = await kernel_of(cache=cache, say=say)
    offers = await choose([kernel, *_PACKAGES], cache=cache, say=say)
    recipe = await asyncio.to_thread(built.recipe, *(offer.file for offer in offers))
    if found := await asyncio.to_thread(built.find, output, recipe):
        return found
    packages = await obtain(offers, cache=cache, say=say)
    say(f"building {output.name}")
    await asyncio.to_thread(output.parent.mkdir, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".image-") as work:
        file = Path(work, output.name)
        await _write(file, packages, kernel)
        image = await asyncio.to_thread(
            built.place,
            *(file, output, recipe),
            virtual_size_bytes=_VIRTUAL_SIZE_BYTES,
            description=f"Pileus mini guest: Debian's {kernel} with busybox; log in as root with an SSH key",
        )
    say(f"{output.name} is {size_text(image.size_bytes)}")
    return image


async def _write(output: Path, packages: Packages, kernel: str) -> None:
    busybox = packages["busybox-static"].find("bin/busybox")
    applets = (await run(str(busybox), "--list", timeout_s=10)).split()
    initrd = await asyncio.to_thread(initramfs.root_file_system, packages, kernel=kernel, applets=applets)
    version = kernel.removeprefix("linux-image-")
    loader = await disk.make_loader(packages, command_line=_COMMAND_LINE, work=output.parent)
    await disk.write_disk(
        output,
        loader=loader,
        kernel=packages[kernel].find(f"boot/vmlinuz-{version}").read_bytes(),
        initrd=initrd,
        size_bytes=_VIRTUAL_SIZE_BYTES,
        file_system=_DATA,
    )
