"""What the header of a disk image says, read without any program that would follow it.

A file may come from anybody. Only what is understood is accepted; what refers to other files (backing files, data
files, extents, parents) is refused, because whoever opens it later might follow.
"""

import os
import re
import struct
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO, Final
from uuid import UUID

from pileus.kernel.errors import Invalid
from pileus.kernel.units import KIB, MIB, TIB

MAX_VIRTUAL: Final = 64 * TIB
"""How large a disk may say that it is, in bytes."""


class DiskFormat(StrEnum):
    """The formats that are taken in."""

    RAW = "raw"
    QCOW2 = "qcow2"
    VMDK = "vmdk"
    VHDX = "vhdx"
    VPC = "vpc"
    ISO = "iso"


AS_THEY_ARE: Final = frozenset({DiskFormat.RAW, DiskFormat.QCOW2, DiskFormat.ISO})
"""The formats that are kept; the others are converted to qcow2 when they arrive."""


def virtual_size(path: Path, format: DiskFormat) -> int:
    """The size in bytes of the disk that a file describes.

    Raises:
        Invalid: it is not of this format, is damaged, encrypted, too large, or refers to other files.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not size:
            raise Invalid("the image is empty")
        looks = _looks_like(file, size)
        if looks is not format and (format is not DiskFormat.RAW or looks in _NEVER_RAW):
            said = f"is {looks}" if looks else f"is not {format}"
            raise Invalid(f"the image {said}, not {format}" if looks else f"the image {said}", fields={"format": said})
        found = _READERS[format](file, size)
    if not 0 < found <= MAX_VIRTUAL:
        raise Invalid("the image's header is damaged: it is a disk of no possible size")
    return found


def looks_like(path: Path) -> DiskFormat:
    """The format that a file seems to have, and raw if none: for those who choose one, not for those who check it."""
    with path.open("rb") as file:
        return _looks_like(file, os.fstat(file.fileno()).st_size) or DiskFormat.RAW


_VPC: Final = b"conectix"
_NEVER_RAW: Final = frozenset({DiskFormat.QCOW2, DiskFormat.VMDK, DiskFormat.VHDX})
"""What nobody means when they say raw: no boot sector begins like these."""


def _looks_like(file: BinaryIO, size: int) -> DiskFormat | None:
    head = _read(file, 0, 32)
    if head.startswith(b"QFI\xfb"):
        return DiskFormat.QCOW2
    if head.startswith((b"KDMV", b"COWD", b"# Disk DescriptorFile")):
        return DiskFormat.VMDK
    if head.startswith(b"vhdxfile"):
        return DiskFormat.VHDX
    if head.startswith(_VPC) or (size >= _VPC_FOOTER.size and _read(file, size - 512, 8) == _VPC):
        return DiskFormat.VPC
    if _read(file, _ISO_AT + 1, 5) == b"CD001":
        return DiskFormat.ISO
    return None


def _read(file: BinaryIO, at: int, length: int) -> bytes:
    file.seek(at)
    return file.read(length)


def _unpack(form: struct.Struct, file: BinaryIO, at: int) -> tuple[int, ...]:
    data = _read(file, at, form.size)
    if len(data) < form.size:
        raise Invalid("the image is cut short")
    return form.unpack(data)


def _needs_another(what: str) -> Invalid:
    return Invalid(f"the image needs another file ({what}); flatten it with `qemu-img convert`")


def _raw(_file: BinaryIO, size: int) -> int:
    return size


# qcow2: docs/interop/qcow2.txt of QEMU. Version, backing file's offset, cluster bits, size, encryption; of version 3
# also the incompatible features.

_QCOW2: Final = struct.Struct(">4xIQ4xIQI")
_QCOW2_FEATURES: Final = struct.Struct(">Q")
_QCOW2_FEATURES_AT: Final = 72
_QCOW2_EXTERNAL_DATA: Final = 1 << 2
_QCOW2_KNOWN: Final = 0b11111


def _qcow2(file: BinaryIO, _size: int) -> int:
    version, backing_at, cluster_bits, virtual, encrypted = _unpack(_QCOW2, file, 0)
    if version not in (2, 3) or not 9 <= cluster_bits <= 21:
        raise Invalid("the image's header is damaged")
    if backing_at:
        raise _needs_another("a backing file")
    if encrypted:
        raise Invalid("the image is encrypted: nobody here has its key")
    if version == 3:
        (features,) = _unpack(_QCOW2_FEATURES, file, _QCOW2_FEATURES_AT)
        if features & _QCOW2_EXTERNAL_DATA:
            raise _needs_another("a data file")
        if features & ~_QCOW2_KNOWN:
            raise Invalid("the image uses features of qcow2 that are not known here")
    return virtual


# vmdk: "Virtual Disk Format 5.0" of VMware. Of a sparse extent: what it is made of up to the size of its descriptor
# (version, flags, capacity, grain size, the descriptor's place and size), and the place of the grain directory.

_SECTOR: Final = 512
_VMDK_SPARSE: Final = b"KDMV"
_VMDK: Final = struct.Struct("<4xIIQQQQ4x8xQ")
_VMDK_AT_END: Final = 0xFFFF_FFFF_FFFF_FFFF
_VMDK_FOOTER_FROM_END: Final = 2 * _SECTOR
_VMDK_DESCRIPTOR: Final = 20 * _SECTOR
"""As much of the descriptor as QEMU reads, from the second sector, wherever the header says that it is."""
_VMDK_EXTENT: Final = re.compile(rb"^\s*(?:RW|RDONLY|NOACCESS)\s+\d+\s+(\w+)", re.MULTILINE)
_VMDK_WHOLE: Final = (b"monolithicsparse", b"streamoptimized")


def _vmdk(file: BinaryIO, size: int) -> int:
    if _read(file, 0, 4) != _VMDK_SPARSE:
        # A descriptor alone, or the old format of which one disk is many files.
        raise _needs_another("a vmdk in several parts")
    *header, directory_at = _unpack(_VMDK, file, 0)
    if directory_at == _VMDK_AT_END:
        at = max(size - _VMDK_FOOTER_FROM_END, 0)
        *footer, directory_at = _unpack(_VMDK, file, at)
        if _read(file, at, 4) != _VMDK_SPARSE or footer != header or directory_at == _VMDK_AT_END:
            raise Invalid("the image's header and its end do not agree")
    _, _, capacity, _, descriptor_at, _ = header
    if not capacity or descriptor_at != 1:
        raise _needs_another("a vmdk in several parts")
    descriptor = _read(file, _SECTOR, _VMDK_DESCRIPTOR).partition(b"\0")[0].lower()
    if b"parentfilenamehint" in descriptor or re.search(rb"parentcid\s*=\s*(?!ffffffff)", descriptor):
        raise _needs_another("a parent")
    kind = re.search(rb'createtype\s*=\s*"(\w+)"', descriptor)
    extents = _VMDK_EXTENT.findall(descriptor.upper())
    if kind is None or kind[1] not in _VMDK_WHOLE or extents != [b"SPARSE"]:
        raise _needs_another("a vmdk in several parts")
    return capacity * _SECTOR


# vhdx: [MS-VHDX] of Microsoft. Two region tables, one of which leads to the metadata.

_VHDX_REGIONS_AT: Final = (192 * KIB, 256 * KIB)
_VHDX_TABLE: Final = struct.Struct("<4sII4x")
_VHDX_REGION: Final = struct.Struct("<16sQII")
_VHDX_METADATA: Final = UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e").bytes_le
_VHDX_ITEMS: Final = struct.Struct("<8s2xH20x")
_VHDX_ITEM: Final = struct.Struct("<16sIII4x")
_VHDX_PARAMETERS: Final = UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b").bytes_le
_VHDX_SIZE: Final = UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8").bytes_le
_VHDX_PARENT: Final = UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c").bytes_le
_VHDX_HAS_PARENT: Final = 1 << 1
_VHDX_MOST: Final = 2047
"""Entries of a table (section 2.2.3.1)."""


def _vhdx(file: BinaryIO, _size: int) -> int:
    sizes = {_vhdx_size(file, at) for at in _VHDX_REGIONS_AT}
    if len(sizes) != 1:
        raise Invalid("the image's two headers do not agree")
    return sizes.pop()


def _vhdx_size(file: BinaryIO, at: int) -> int:
    signature, _, count = _VHDX_TABLE.unpack(_whole(file, at, _VHDX_TABLE.size))
    if signature != b"regi" or count > _VHDX_MOST:
        raise Invalid("the image's header is damaged")
    table = _whole(file, at + _VHDX_TABLE.size, count * _VHDX_REGION.size)
    regions = {each[0]: each[1] for each in _VHDX_REGION.iter_unpack(table)}
    if len(regions) != count or _VHDX_METADATA not in regions:
        raise Invalid("the image's header is damaged")
    items = _vhdx_items(file, regions[_VHDX_METADATA])
    if _VHDX_PARENT in items:
        raise _needs_another("a parent")
    if not {_VHDX_PARAMETERS, _VHDX_SIZE} <= set(items):
        raise Invalid("the image's header is damaged")
    (_, flags) = struct.unpack("<II", _whole(file, items[_VHDX_PARAMETERS], 8))
    if flags & _VHDX_HAS_PARENT:
        raise _needs_another("a parent")
    (virtual,) = struct.unpack("<Q", _whole(file, items[_VHDX_SIZE], 8))
    return virtual


def _vhdx_items(file: BinaryIO, at: int) -> dict[bytes, int]:
    signature, count = _VHDX_ITEMS.unpack(_whole(file, at, _VHDX_ITEMS.size))
    if signature != b"metadata" or count > _VHDX_MOST:
        raise Invalid("the image's header is damaged")
    table = _whole(file, at + _VHDX_ITEMS.size, count * _VHDX_ITEM.size)
    items = {each[0]: at + each[1] for each in _VHDX_ITEM.iter_unpack(table)}
    if len(items) != count:
        raise Invalid("the image's header is damaged")
    return items


def _whole(file: BinaryIO, at: int, length: int) -> bytes:
    try:
        data = _read(file, at, length)
    except (OSError, ValueError):  # a place that no file can have
        data = b""
    if len(data) < length:
        raise Invalid("the image is cut short")
    return data


# vpc: "Virtual Hard Disk Image Format Specification" of Microsoft. Current size and kind of disk, in the last sector.

_VPC_FOOTER: Final = struct.Struct(">8s40xQ4xI448x")
_VPC_DIFFERENCING: Final = 4
_VPC_KINDS: Final = (2, 3, _VPC_DIFFERENCING)


def _vpc(file: BinaryIO, size: int) -> int:
    footers: list[tuple[int, int]] = []
    for at in (0, size - _VPC_FOOTER.size):
        signature, virtual, kind = _VPC_FOOTER.unpack(_whole(file, max(at, 0), _VPC_FOOTER.size))
        if signature == _VPC:
            footers.append((virtual, kind))
    virtual, kind = footers[-1]
    if any(each != (virtual, kind) for each in footers) or kind not in _VPC_KINDS:
        raise Invalid("the image's header is damaged")
    if kind == _VPC_DIFFERENCING:
        raise _needs_another("a parent")
    return virtual


# iso: ECMA-119. The primary volume descriptor is in sector 16; at 80 of it is how many sectors of 2048 bytes there are.

_ISO_AT: Final = 16 * 2 * KIB
_ISO_SECTORS_AT: Final = _ISO_AT + 80


def _iso(file: BinaryIO, size: int) -> int:
    (sectors,) = struct.unpack("<I", _whole(file, _ISO_SECTORS_AT, 4))
    if sectors * 2 * KIB > size + MIB:  # some writers count padding that they do not write
        raise Invalid("the image is cut short")
    return size


_READERS: Final = {
    DiskFormat.RAW: _raw,
    DiskFormat.QCOW2: _qcow2,
    DiskFormat.VMDK: _vmdk,
    DiskFormat.VHDX: _vhdx,
    DiskFormat.VPC: _vpc,
    DiskFormat.ISO: _iso,
}
