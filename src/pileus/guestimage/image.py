"""Building the small image: which packages, in which form, and whether it has to be built at all."""

import asyncio
import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from pileus.guestimage import disk, initramfs
from pileus.guestimage.packages import Offer, Packages, choose, depends_on, obtain
from pileus.kernel.programs import run
from pileus.kernel.units import MIB, size_text

KERNEL = "linux-image-cloud-amd64"
_LIBRARIES = (
    *("libblkid1", "libc6", "libcom-err2", "libcrypt1", "libdevmapper1.02.1", "libext2fs2", "libglib2.0-0"),
    *("libgmp10", "liblzma5", "libnuma1", "libpcre2-8-0", "libselinux1", "libtomcrypt1", "libtommath1", "libudev1"),
    *("liburing2", "libuuid1", "zlib1g"),
)
_PACKAGES = ("busybox-static", *initramfs.PROGRAMS, *disk.GRUB_PACKAGES, *_LIBRARIES)
_COMMAND_LINE = "rdinit=/init console=tty0 console=ttyS0 panic=5 quiet net.ifnames=0 memhp_default_state=online"
_VIRTUAL_SIZE_BYTES = 128 * MIB
_DATA = disk.FileSystem(label="PILEUSDATA", uuid="50696c65-7573-4d69-8e69-446174610001")


class BuiltImage(msgspec.Struct, frozen=True, kw_only=True):
    """A disk image in qcow2."""

    path: Path
    sha256: str
    size_bytes: int
    """Of the file."""
    virtual_size_bytes: int
    """Of the disk that a guest sees: the smallest root disk it can be started from."""
    description: str


class _Certificate(msgspec.Struct, frozen=True, kw_only=True):
    """What lies beside an image and tells what it was made from."""

    recipe: str
    sha256: str
    size_bytes: int
    virtual_size_bytes: int
    description: str


def silent(_: str) -> None:
    """Say nothing."""


async def build(output: Path, *, cache: Path, say: Callable[[str], None] = silent) -> BuiltImage:
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
    kernel_offer, *_ = await choose([KERNEL], cache=cache, say=say)
    kernel, *_ = [
        name for name in await depends_on(kernel_offer, cache=cache, say=say) if name.startswith("linux-image-")
    ]
    offers = await choose([kernel, *_PACKAGES], cache=cache, say=say)
    recipe = await asyncio.to_thread(_recipe, offers)
    if found := await asyncio.to_thread(_found, output, recipe):
        return found
    packages = await obtain(offers, cache=cache, say=say)
    say(f"building {output.name}")
    await asyncio.to_thread(output.parent.mkdir, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".image-") as work:
        file = Path(work, output.name)
        await _write(file, packages, kernel)
        description = f"Pileus mini guest: Debian's {kernel} with busybox; log in as root with an SSH key"
        certificate = await asyncio.to_thread(_certify, file, recipe, description)
        await asyncio.to_thread(_place, file, certificate, output)
    say(f"{output.name} is {size_text(certificate.size_bytes)}")
    return _image(output, certificate)


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


def _recipe(offers: list[Offer]) -> str:
    """A hash of everything the image is made of: the packages by version, and this folder."""
    recipe = hashlib.sha256()
    for offer in sorted(offers, key=lambda each: each.file):
        recipe.update(offer.file.encode())
    folder = Path(__file__).parent
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            recipe.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return recipe.hexdigest()


def _certify(file: Path, recipe: str, description: str) -> _Certificate:
    with file.open("rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    return _Certificate(
        recipe=recipe,
        sha256=sha256,
        size_bytes=file.stat().st_size,
        virtual_size_bytes=_VIRTUAL_SIZE_BYTES,
        description=description,
    )


def _place(file: Path, certificate: _Certificate, output: Path) -> None:
    # The image moves last: whoever finds it finds its certificate too.
    beside = _certificate_of(file)
    beside.write_bytes(msgspec.json.encode(certificate))
    beside.replace(_certificate_of(output))
    file.replace(output)


def _found(output: Path, recipe: str) -> BuiltImage | None:
    try:
        certificate = msgspec.json.decode(_certificate_of(output).read_bytes(), type=_Certificate)
        size_bytes = output.stat().st_size
    except (FileNotFoundError, msgspec.MsgspecError):
        return None
    return _image(output, certificate) if (certificate.recipe, certificate.size_bytes) == (recipe, size_bytes) else None


def _image(output: Path, certificate: _Certificate) -> BuiltImage:
    return BuiltImage(
        path=output,
        sha256=certificate.sha256,
        size_bytes=certificate.size_bytes,
        virtual_size_bytes=certificate.virtual_size_bytes,
        description=certificate.description,
    )


def _certificate_of(output: Path) -> Path:
    return output.with_name(f"{output.name}.json")
