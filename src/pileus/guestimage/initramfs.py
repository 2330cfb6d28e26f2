"""The guest's root file system: an initramfs of busybox, drivers, a few programs with their libraries, and scripts."""

import gzip
import lzma
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from pileus.guestimage.packages import Packages
from pileus.kernel.errors import PileusError

PROGRAMS = {
    "dropbear-bin": ("usr/sbin/dropbear", "usr/bin/dropbearkey"),
    "e2fsprogs": ("sbin/e2fsck", "sbin/resize2fs"),
    "qemu-guest-agent": ("usr/sbin/qemu-ga",),
    "util-linux": ("usr/bin/resizepart",),
}
"""What is taken from which package; busybox does the rest."""

_DRIVERS = (
    *("virtio_pci", "virtio_blk", "virtio_net", "virtio_console", "virtio_scsi", "virtio_rng", "virtio_balloon"),
    *("virtio_mem", "virtio_mmio", "sd_mod", "sr_mod", "ata_piix", "ata_generic", "isofs", "vfat"),
    *("nls_cp437", "nls_ascii", "nls_utf8", "nls_iso8859_1", "evdev", "button", "qemu_fw_cfg"),
)
_FOLDERS = ("dev", "etc", "mnt", "proc", "root", "run", "srv", "sys", "tmp", "var/log")
_GUEST = Path(__file__).with_name("guest")


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One member of the root file system."""

    mode: int
    """Kind and permissions, as in stat."""
    content: bytes = b""
    """Of a file its bytes, of a symbolic link its target."""

    @classmethod
    def file(cls, content: bytes, *, executable: bool = False) -> "Entry":
        return cls(mode=stat.S_IFREG | (0o755 if executable else 0o644), content=content)

    @classmethod
    def link(cls, target: str) -> "Entry":
        return cls(mode=stat.S_IFLNK | 0o777, content=target.encode())

    @classmethod
    def folder(cls) -> "Entry":
        return cls(mode=stat.S_IFDIR | 0o755)


def root_file_system(packages: Packages, *, kernel: str, applets: Iterable[str]) -> bytes:
    """The whole root file system as a compressed cpio archive.

    Args:
        packages: what it is made of.
        kernel: name of the package with the kernel and its drivers.
        applets: the commands that busybox offers.
    """
    tree = {path: Entry.folder() for path in _FOLDERS}
    tree |= shell(packages, applets)
    tree["sbin/init"] = Entry.link("../bin/busybox")
    tree |= drivers(packages[kernel].root, _DRIVERS, listed="order")
    tree |= programs(packages, PROGRAMS)
    tree |= guest_files()
    return gzip.compress(cpio(tree), 9, mtime=0)


def guest_files() -> dict[str, Entry]:
    """Our own part of the guest; what begins with #! may be executed."""
    tree: dict[str, Entry] = {}
    for path in sorted(_GUEST.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            tree[path.relative_to(_GUEST).as_posix()] = Entry.file(content, executable=content.startswith(b"#!"))
    tree["etc/shadow"] = Entry(mode=stat.S_IFREG | 0o600, content=tree["etc/shadow"].content)
    return tree


def cpio(tree: Mapping[str, Entry]) -> bytes:
    """An archive in cpio's "newc" format, as the kernel unpacks it; owned by root, without times, sorted by path."""
    complete = {str(folder): Entry.folder() for path in tree for folder in Path(path).parents if str(folder) != "."}
    members = sorted((complete | dict(tree)).items())
    archive = bytearray()
    for number, (path, entry) in enumerate((*members, ("TRAILER!!!", Entry(mode=0))), start=1):
        name = path.encode() + b"\0"
        links = 2 if stat.S_ISDIR(entry.mode) else 1
        # ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        header = (number, entry.mode, 0, 0, links, 0, len(entry.content), 0, 0, 0, 0, len(name), 0)
        archive += b"070701" + b"".join(b"%08x" % field for field in header) + name
        archive += bytes(-len(archive) % 4)
        archive += entry.content
        archive += bytes(-len(archive) % 4)
    return bytes(archive)


def in_loading_order(wanted: Iterable[str], depends: Mapping[str, Iterable[str]]) -> list[str]:
    """The drivers that are there, each after those it depends on; one that the kernel has built in is not listed."""
    order: dict[str, None] = {}

    def load(name: str) -> None:
        if name in depends and name not in order:
            for dependency in depends[name]:
                load(dependency)
            order[name] = None

    for name in wanted:
        load(name)
    return list(order)


def shell(packages: Packages, applets: Iterable[str]) -> dict[str, Entry]:
    """Busybox with the commands that it offers."""
    binary = packages["busybox-static"].find("bin/busybox").read_bytes()
    links = {f"bin/{applet}": Entry.link("busybox") for applet in applets if applet != "busybox"}
    return links | {"bin/busybox": Entry.file(binary, executable=True)}


def drivers(kernel_root: Path, names: Sequence[str], *, listed: str) -> dict[str, Entry]:
    """These drivers with those that they depend on, and a list of them in the order in which they are to be loaded.

    One that the kernel has built in is left out.
    """
    files = {
        path.name.split(".ko")[0].replace("-", "_"): path
        for path in kernel_root.rglob("*.ko*")
        if path.name.endswith((".ko", ".ko.xz"))
    }
    if not files:
        raise PileusError(f"{kernel_root.name} has no drivers")
    wanted: dict[str, bytes] = {}
    depends: dict[str, list[str]] = {}
    waiting = [name for name in names if name in files]
    while waiting:
        name = waiting.pop()
        if name in wanted:
            continue
        content = files[name].read_bytes()
        wanted[name] = lzma.decompress(content) if files[name].suffix == ".xz" else content
        depends[name] = _depends(wanted[name])
        waiting += [dependency for dependency in depends[name] if dependency in files]
    order = in_loading_order(names, depends)
    tree = {f"lib/modules/{name}.ko": Entry.file(wanted[name]) for name in order}
    tree[f"lib/modules/{listed}"] = Entry.file("".join(f"{name}.ko\n" for name in order).encode())
    return tree


def _depends(driver: bytes) -> list[str]:
    # The .modinfo section is a row of NUL-terminated KEY=VALUE.
    found = re.search(rb"depends=([\w,-]*)\0", driver)
    names = found[1].decode().replace("-", "_") if found else ""
    return [name for name in names.split(",") if name]


def programs(packages: Packages, wanted: Mapping[str, Sequence[str]]) -> dict[str, Entry]:
    """Programs, by the packages that they are in, with their libraries."""
    found = [packages[name].find(path) for name, paths in wanted.items() for path in paths]
    tree = {f"usr/sbin/{path.name}": Entry.file(path.read_bytes(), executable=True) for path in found}
    for name, path in packages.libraries(found).items():
        folder = "lib64" if name.startswith("ld-linux") else "lib/x86_64-linux-gnu"
        tree[f"{folder}/{name}"] = Entry.file(path.read_bytes(), executable=True)
    return tree
