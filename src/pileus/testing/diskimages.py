"""Headers of disk images, written by hand: good ones, and what somebody with bad intentions would send.

And what stands in for qemu-img where all is simulated: it believes headers, and converts nothing but them.
"""

import asyncio
import struct
from pathlib import Path
from uuid import UUID

from pileus.agent.faults import Faults
from pileus.diskimages.headers import DiskFormat, virtual_size
from pileus.diskimages.qemuimg import Told
from pileus.kernel.errors import Conflict
from pileus.kernel.units import GIB, KIB, MIB

_SECTOR = 512


def qcow2(
    *,
    version: int = 3,
    backing_at: int = 0,
    cluster_bits: int = 16,
    size: int = GIB,
    features: int = 0,
    encrypted: int = 0,
) -> bytes:
    """A qcow2 header, with enough behind it to be one."""
    header = struct.pack(">4sIQIIQI", b"QFI\xfb", version, backing_at, 9, cluster_bits, size, encrypted)
    return (header.ljust(72, b"\0") + struct.pack(">Q", features)).ljust(1024, b"\0")


def vmdk_descriptor(extents: str, *, kind: str = "monolithicSparse", parent: str = "ffffffff", more: str = "") -> bytes:
    """The text that says what a vmdk is made of."""
    text = (
        f'# Disk DescriptorFile\nversion=1\nCID=01234567\nparentCID={parent}\ncreateType="{kind}"\n{more}\n{extents}\n'
    )
    return text.encode()


def vmdk(
    *,
    size: int = GIB,
    kind: str = "monolithicSparse",
    extents: str = 'RW 2097152 SPARSE "image.vmdk"',
    parent: str = "ffffffff",
    more: str = "",
    descriptor_at: int = 1,
    at_end: bool = False,
    size_at_end: int | None = None,
) -> bytes:
    """A vmdk that is one file, with its descriptor inside, and with a second header at its end if `at_end`."""
    descriptor = vmdk_descriptor(extents, kind=kind, parent=parent, more=more)
    body = bytes(_SECTOR * (descriptor_at - 1)) + descriptor.ljust(20 * _SECTOR, b"\0")
    header = _vmdk_header(size, descriptor_at, 0xFFFF_FFFF_FFFF_FFFF if at_end else 40)
    if not at_end:
        return header + body
    footer = _vmdk_header(size if size_at_end is None else size_at_end, descriptor_at, 40)
    return header + body + bytes(_SECTOR) + footer + bytes(_SECTOR)


def _vmdk_header(size: int, descriptor_at: int, directory_at: int) -> bytes:
    said = struct.pack("<4sIIQQQQIQQ", b"KDMV", 1, 3, size // _SECTOR, 128, descriptor_at, 20, 512, 21, directory_at)
    return said.ljust(_SECTOR, b"\0")


def vhdx(
    *,
    size: int = GIB,
    other_size: int | None = None,
    has_parent: bool = False,
    locator: bool = False,
    regions: int = 1,
    metadata_at: int = MIB,
) -> bytes:
    """A vhdx up to the end of its metadata; `other_size` is what the second region table leads to."""
    image = bytearray(3 * MIB)
    image[:8] = b"vhdxfile"
    places = (metadata_at, metadata_at if other_size is None else 2 * MIB)
    for table_at, at in zip((192 * KIB, 256 * KIB), places, strict=True):
        region = struct.pack("<16sQII", UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e").bytes_le, at, MIB, 1)
        image[table_at : table_at + 48] = struct.pack("<4sII4x", b"regi", 0, regions) + region
    for at, declared in ((MIB, size), (2 * MIB, size if other_size is None else other_size)):
        image[at : at + 66 * KIB] = _vhdx_metadata(declared, has_parent=has_parent, locator=locator)
    return bytes(image)


def _vhdx_metadata(size: int, *, has_parent: bool, locator: bool) -> bytes:
    items = [
        (UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b"), struct.pack("<II", 32 * MIB, 2 if has_parent else 0)),
        (UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8"), struct.pack("<Q", size)),
    ]
    if locator:
        items.append((UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c"), bytes(20)))
    table = struct.pack("<8s2xH20x", b"metadata", len(items))
    data = b""
    for id, value in items:
        table += struct.pack("<16sIII4x", id.bytes_le, 64 * KIB + len(data), len(value), 0)
        data += value
    return (table.ljust(64 * KIB, b"\0") + data).ljust(66 * KIB, b"\0")


def vpc(*, size: int = GIB, kind: int = 3) -> bytes:
    """The footer of a vpc image, which is at its beginning too if it is not a fixed one."""
    return struct.pack(">8s40xQ4xI448x", b"conectix", size, kind)


def iso(*, sectors: int = 20) -> bytes:
    """The beginning of an ISO 9660 image that says it has so many sectors, and has 20."""
    image = bytearray(20 * 2 * KIB)
    image[32 * KIB : 32 * KIB + 6] = b"\x01CD001"
    struct.pack_into("<I", image, 32 * KIB + 80, sectors)
    return bytes(image)


def _raw(*, size: int) -> bytes:
    return bytes(size)


_EMPTY = {DiskFormat.RAW: _raw, DiskFormat.QCOW2: qcow2, DiskFormat.VMDK: vmdk, DiskFormat.VHDX: vhdx}


class SimulatedDiskTools:
    """Opens disk images by their headers alone; what it converts has the size of a disk and no content."""

    def __init__(self, faults: Faults | None = None) -> None:
        self.faults = faults or Faults()

    async def inspect(self, path: Path, format: DiskFormat) -> int:
        await self.faults.before("disk_tools.inspect")
        found = await asyncio.to_thread(virtual_size, path, format)
        self.faults.after("disk_tools.inspect")
        return found

    async def convert(
        self, source: Path, target: Path, *, format: DiskFormat, to: DiskFormat, at_most_bytes: int, told: Told
    ) -> None:
        await self.faults.before("disk_tools.convert")
        size = await asyncio.to_thread(virtual_size, source, format)
        made = _EMPTY[to](size=size)
        if len(made) > at_most_bytes:
            raise Conflict("converted, the image takes more than there is for it")
        await asyncio.to_thread(target.write_bytes, made)
        told(1.0)
        self.faults.after("disk_tools.convert")
