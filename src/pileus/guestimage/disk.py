"""Bootable disks: a partition table, GRUB for BIOS and UEFI, a boot partition, and an ext4 partition to the end."""

import asyncio
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path

import msgspec

from pileus.guestimage.fat import fat16
from pileus.guestimage.packages import Packages
from pileus.kernel.programs import run
from pileus.kernel.units import MIB

GRUB_PACKAGES = (
    *("grub-common", "grub-efi-amd64-bin", "grub-pc-bin"),
    *("libc6", "libdevmapper1.02.1", "liblzma5", "libpcre2-8-0", "libselinux1", "libudev1"),
)
"""GRUB's images, the program that puts them together, and its libraries."""

_SECTOR_BYTES = 512
_BOOT_AT = MIB
_BOOT_CODE_BYTES = 440
# Both firmwares take a partition of this type: UEFI looks for it, GRUB does not care.
_EFI_SYSTEM, _LINUX = 0xEF, 0x83
_MODULES = ("part_msdos", "fat", "linux", "reboot")


class Loader(msgspec.Struct, frozen=True, kw_only=True):
    """GRUB in its two forms."""

    boot_sector: bytes
    core: bytes
    """For BIOS: lies between the boot sector and the first partition."""
    efi: bytes


async def make_loader(packages: Packages, *, command_line: str, work: Path) -> Loader:
    """GRUB with its few commands built in: load /vmlinuz and /initrd from the partition it came from."""
    script = work / "grub.cfg"
    script.write_text(f"linux /vmlinuz {command_line}\ninitrd /initrd\nboot\n")
    mkimage = packages["grub-common"].find("usr/bin/grub-mkimage")
    bios = packages["grub-pc-bin"].find("usr/lib/grub/i386-pc/boot.img").parent
    efi = packages["grub-efi-amd64-bin"].find("usr/lib/grub/x86_64-efi/kernel.img").parent
    for folder, format, prefix, modules in (
        (bios, "i386-pc", "(,msdos1)/", ("biosdisk", *_MODULES)),
        (efi, "x86_64-efi", "/", _MODULES),
    ):
        await packages.run(
            mkimage,
            *("-d", str(folder), "-O", format, "-p", prefix, "-c", str(script), "-o", str(work / format)),
            *modules,
            timeout_s=60,
        )
    return Loader(
        boot_sector=(bios / "boot.img").read_bytes(),
        core=(work / "i386-pc").read_bytes(),
        efi=(work / "x86_64-efi").read_bytes(),
    )


def master_boot_record(boot_code: bytes, *, disk_id: bytes, partitions: Mapping[int, tuple[int, int]]) -> bytes:
    """The first sector of a disk.

    Args:
        boot_code: what the BIOS runs; its first 440 bytes are taken.
        disk_id: four bytes.
        partitions: by type, each with its start and size in bytes; the first is the active one.

    Raises: ValueError for more than four partitions.
    """
    if len(partitions) > 4:
        raise ValueError("a partition table has room for four")
    table = b""
    for type, (start, size_bytes) in partitions.items():
        active = 0x00 if table else 0x80
        # The addresses by cylinder, head and sector are out of range, as everywhere since disks are above 8 GB.
        sectors = start // _SECTOR_BYTES, size_bytes // _SECTOR_BYTES
        table += struct.pack("<B3sB3sII", active, b"\xfe\xff\xff", type, b"\xfe\xff\xff", *sectors)
    return boot_code[:_BOOT_CODE_BYTES] + disk_id + b"\0\0" + table.ljust(64, b"\0") + b"\x55\xaa"


async def write_disk(
    output: Path, *, loader: Loader, kernel: bytes, initrd: bytes, size_bytes: int, file_system: "FileSystem"
) -> None:
    """Write a compressed qcow2 disk that starts this kernel, with the rest of it as one ext4 file system."""
    files = {"vmlinuz": kernel, "initrd": initrd, "EFI/BOOT/BOOTX64.EFI": loader.efi}
    boot_bytes = (sum(map(len, files.values())) // MIB + 2) * MIB
    data_at = _BOOT_AT + boot_bytes
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".disk-") as work:
        raw, data = Path(work, "raw"), Path(work, "data")
        partitions = {_EFI_SYSTEM: (_BOOT_AT, boot_bytes), _LINUX: (data_at, size_bytes - data_at)}
        await asyncio.to_thread(_write_boot_part, raw, loader, files, partitions, size_bytes)
        await file_system.make(data, size_bytes - data_at)
        copy = (f"if={data}", f"of={raw}", "bs=1M", f"seek={data_at // MIB}", "conv=notrunc,sparse")
        await run("dd", *copy, timeout_s=300)
        await run("qemu-img", "convert", "-c", "-O", "qcow2", str(raw), str(output), timeout_s=600)


def _write_boot_part(
    raw: Path,
    loader: Loader,
    files: Mapping[str, bytes],
    partitions: Mapping[int, tuple[int, int]],
    size_bytes: int,
) -> None:
    start, boot_bytes = partitions[_EFI_SYSTEM]
    with raw.open("wb") as disk:
        disk.truncate(size_bytes)
        disk.write(master_boot_record(loader.boot_sector, disk_id=b"plus", partitions=partitions))
        disk.write(loader.core)
        if disk.tell() > start:
            raise ValueError("GRUB does not fit before the first partition")
        disk.seek(start)
        hidden_sectors = start // _SECTOR_BYTES
        disk.write(fat16(files, label="PILEUSBOOT", size_bytes=boot_bytes, hidden_sectors=hidden_sectors))


class FileSystem(msgspec.Struct, frozen=True, kw_only=True):
    """An ext4 file system, with what lies in a folder as its content."""

    label: str
    uuid: str
    content: Path | None = None

    async def make(self, file: Path, size_bytes: int) -> None:
        """Write it into a new file of this size."""
        content = ("-d", str(self.content)) if self.content else ()
        options = f"hash_seed={self.uuid},root_owner=0:0,lazy_itable_init=0"
        await run(
            *("env", "E2FSPROGS_FAKE_TIME=1704067200", "mke2fs", "-q", "-t", "ext4", "-b", "4096", "-L", self.label),
            *("-U", self.uuid, "-E", options, *content, str(file), f"{size_bytes // 1024}k"),
            timeout_s=600,
        )
