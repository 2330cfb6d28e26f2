"""An ISO that installs: it starts the small guest, by GRUB and El Torito, and has that guest's whole disk with it.

https://pdos.csail.mit.edu/6.828/2018/readings/boot-cdrom.pdf (El Torito), ECMA-119 (ISO 9660)
"""

import asyncio
import gzip
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path

import cache

from pileus.guestimage.disk import GRUB_PACKAGES
from pileus.guestimage.packages import choose, obtain
from pileus.kernel.programs import run
from pileus.kernel.units import KIB
from pileus.testing.fat import Reader

_BLOCK = 2 * KIB
_VOLUME, _BOOT, _END, _CATALOG, _PATHS, _PATHS_BIG, _ROOT, _LOADER = range(16, 24)
"""Where what is, in blocks; the files follow the loader."""
_MODULES = ("biosdisk", "iso9660", "linux", "reboot")
_COMMAND_LINE = "rdinit=/init console=tty0 console=ttyS0 panic=5 quiet net.ifnames=0"


def installer_iso() -> bytes:
    """Made of the small image, in some seconds."""
    return asyncio.run(_made(cache.mini().path))


async def _made(image: Path) -> bytes:
    with tempfile.TemporaryDirectory() as work:
        raw = Path(work, "raw")
        await run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(image), str(raw), timeout_s=60)
        disk = raw.read_bytes()
        start, sectors = struct.unpack_from("<II", disk, 446 + 8)
        files = Reader(disk[start * 512 : (start + sectors) * 512]).files()
        loader = await _loader(Path(work))
    content = {"VMLINUZ": files["vmlinuz"], "INITRD": files["initrd"], "DISK.GZ": gzip.compress(disk, 1)}
    return _iso(loader, content)


async def _loader(work: Path) -> bytes:
    """GRUB as a CD boots it."""
    offers = await choose(GRUB_PACKAGES, cache=cache.PACKAGES, say=print)
    packages = await obtain(offers, cache=cache.PACKAGES, say=print)
    script, made = work / "grub.cfg", work / "eltorito"
    script.write_text(f"linux (cd)/vmlinuz {_COMMAND_LINE}\ninitrd (cd)/initrd\nboot\n")
    bios = packages["grub-pc-bin"].find("usr/lib/grub/i386-pc/boot.img").parent
    mkimage = packages["grub-common"].find("usr/bin/grub-mkimage")
    arguments = ("-d", str(bios), "-O", "i386-pc-eltorito", "-p", "(cd)/", "-c", str(script), "-o", str(made))
    await packages.run(mkimage, *arguments, *_MODULES, timeout_s=60)
    return made.read_bytes()


def _iso(loader: bytes, files: Mapping[str, bytes]) -> bytes:
    """An ISO 9660 file system with these files, which starts this loader."""
    at, places = _LOADER + _blocks(loader), dict[str, int]()
    for name, content in files.items():
        places[name] = at
        at += _blocks(content)
    root = _entry(b"\0", _ROOT, _BLOCK, folder=True) + _entry(b"\1", _ROOT, _BLOCK, folder=True)
    for name, content in sorted(files.items()):
        root += _entry(f"{name}.;1".encode() if "." not in name else f"{name};1".encode(), places[name], len(content))
    image = bytearray(at * _BLOCK)
    for block, content in (
        (_VOLUME, _volume(at)),
        (_BOOT, b"\0CD001\1" + b"EL TORITO SPECIFICATION".ljust(64, b"\0") + struct.pack("<I", _CATALOG)),
        (_END, b"\xffCD001\1"),
        (_CATALOG, _catalog()),
        (_PATHS, struct.pack("<BBIHBx", 1, 0, _ROOT, 1, 0)),
        (_PATHS_BIG, struct.pack(">BBIHBx", 1, 0, _ROOT, 1, 0)),
        (_ROOT, root),
        (_LOADER, _informed(loader)),
        *((places[name], content) for name, content in files.items()),
    ):
        image[block * _BLOCK : block * _BLOCK + len(content)] = content
    return bytes(image)


def _volume(blocks: int) -> bytes:
    """The primary volume descriptor."""
    said = b"\1CD001\1\0" + b" " * 32 + b"INSTALLER".ljust(32) + bytes(8) + _both("I", blocks) + bytes(32)
    said += _both("H", 1) + _both("H", 1) + _both("H", _BLOCK) + _both("I", 10)
    said += (
        struct.pack("<II", _PATHS, 0) + struct.pack(">II", _PATHS_BIG, 0) + _entry(b"\0", _ROOT, _BLOCK, folder=True)
    )
    said += b" " * (4 * 128 + 3 * 37) + (b"0" * 16 + b"\0") * 4 + b"\1"
    return said


def _entry(name: bytes, at: int, size: int, *, folder: bool = False) -> bytes:
    body = _both("I", at) + _both("I", size) + bytes((124, 1, 1, 0, 0, 0, 0, 2 if folder else 0, 0, 0))
    body += _both("H", 1) + bytes((len(name),)) + name
    body += bytes(len(body) % 2)
    return bytes((len(body) + 2, 0)) + body


def _both(kind: str, number: int) -> bytes:
    """A number with its lowest byte first, and again with its highest first."""
    return struct.pack(f"<{kind}", number) + struct.pack(f">{kind}", number)


def _catalog() -> bytes:
    """What is booted: one entry, without emulation, of which the BIOS loads four sectors."""
    head = bytearray(struct.pack("<BBH24sHBB", 1, 0, 0, b"installer", 0, 0x55, 0xAA))
    sum_ = sum(struct.unpack("<16H", head))
    struct.pack_into("<H", head, 28, -sum_ & 0xFFFF)
    return bytes(head) + struct.pack("<BBHBBHI20x", 0x88, 0, 0, 0, 0, 4, _LOADER)


def _informed(loader: bytes) -> bytes:
    """The loader, told where it is (the boot information table of mkisofs, which it loads the rest of itself by)."""
    rest = loader[64:].ljust((len(loader) - 64 + 3) // 4 * 4, b"\0")
    checksum = sum(struct.unpack(f"<{len(rest) // 4}I", rest)) & 0xFFFF_FFFF
    return loader[:8] + struct.pack("<IIII40x", _VOLUME, _LOADER, len(loader), checksum) + loader[64:]


def _blocks(content: bytes) -> int:
    return -(-len(content) // _BLOCK)
