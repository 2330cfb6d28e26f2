"""Headers of disk images, good and hostile, written byte by byte."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pileus.diskimages.headers import MAX_VIRTUAL, DiskFormat, looks_like, virtual_size
from pileus.kernel.errors import Invalid
from pileus.kernel.units import GIB, KIB, MIB
from pileus.testing.diskimages import iso, qcow2, vhdx, vmdk, vmdk_descriptor, vpc

GOOD = {
    "raw": (DiskFormat.RAW, b"\xeb\x63" + bytes(MIB), MIB + 2),
    "qcow2": (DiskFormat.QCOW2, qcow2(size=GIB), GIB),
    "old qcow2": (DiskFormat.QCOW2, qcow2(version=2, size=GIB), GIB),
    "vmdk": (DiskFormat.VMDK, vmdk(size=GIB), GIB),
    "vmdk for streams": (DiskFormat.VMDK, vmdk(size=GIB, kind="streamOptimized", at_end=True), GIB),
    "vhdx": (DiskFormat.VHDX, vhdx(size=GIB), GIB),
    "fixed vpc": (DiskFormat.VPC, bytes(MIB) + vpc(size=MIB, kind=2), MIB),
    "dynamic vpc": (DiskFormat.VPC, vpc(size=GIB) + bytes(KIB) + vpc(size=GIB), GIB),
    "iso": (DiskFormat.ISO, iso(), len(iso())),
}

HOSTILE = {
    "empty": (DiskFormat.RAW, b""),
    "qcow2 said to be raw": (DiskFormat.RAW, qcow2()),
    "vmdk descriptor said to be raw": (DiskFormat.RAW, vmdk_descriptor('RW 2048 FLAT "/etc/shadow" 0')),
    "vhdx said to be raw": (DiskFormat.RAW, vhdx()),
    "raw said to be qcow2": (DiskFormat.QCOW2, bytes(MIB)),
    "qcow2 cut short": (DiskFormat.QCOW2, b"QFI\xfb"),
    "qcow2 with a backing file": (DiskFormat.QCOW2, qcow2(backing_at=512)),
    "old qcow2 with a backing file": (DiskFormat.QCOW2, qcow2(version=2, backing_at=1)),
    "qcow2 with a data file": (DiskFormat.QCOW2, qcow2(features=1 << 2)),
    "qcow2 with an unknown feature": (DiskFormat.QCOW2, qcow2(features=1 << 40)),
    "encrypted qcow2": (DiskFormat.QCOW2, qcow2(encrypted=2)),
    "qcow2 of an unknown version": (DiskFormat.QCOW2, qcow2(version=9)),
    "qcow2 of no size": (DiskFormat.QCOW2, qcow2(size=0)),
    "monstrous qcow2": (DiskFormat.QCOW2, qcow2(size=MAX_VIRTUAL + 1)),
    "qcow2 with monstrous clusters": (DiskFormat.QCOW2, qcow2(cluster_bits=63)),
    "vmdk that is a descriptor alone": (DiskFormat.VMDK, vmdk_descriptor('RW 2048 FLAT "/etc/shadow" 0')),
    "vmdk of the old format": (DiskFormat.VMDK, b"COWD" + bytes(MIB)),
    "vmdk without capacity, whose descriptor is followed": (DiskFormat.VMDK, vmdk(size=0)),
    "vmdk with a flat extent": (DiskFormat.VMDK, vmdk(extents='RW 2048 FLAT "/etc/shadow" 0')),
    "vmdk with two extents": (DiskFormat.VMDK, vmdk(extents='RW 1 SPARSE "a"\nRW 1 FLAT "/etc/shadow" 0')),
    "vmdk of several parts": (DiskFormat.VMDK, vmdk(kind="twoGbMaxExtentSparse")),
    "vmdk with a parent": (DiskFormat.VMDK, vmdk(more='parentFileNameHint="/etc/shadow"')),
    "vmdk with a parent's id": (DiskFormat.VMDK, vmdk(parent="12345678")),
    "vmdk whose descriptor is elsewhere": (DiskFormat.VMDK, vmdk(descriptor_at=2)),
    "vmdk with another size at its end": (
        DiskFormat.VMDK,
        vmdk(kind="streamOptimized", at_end=True, size_at_end=0),
    ),
    "monstrous vmdk": (DiskFormat.VMDK, vmdk(size=1 << 62)),
    "vmdk cut short": (DiskFormat.VMDK, b"KDMV"),
    "vhdx with a parent": (DiskFormat.VHDX, vhdx(has_parent=True)),
    "vhdx with a parent's place": (DiskFormat.VHDX, vhdx(locator=True)),
    "vhdx of two sizes": (DiskFormat.VHDX, vhdx(other_size=MIB)),
    "vhdx with a monstrous table": (DiskFormat.VHDX, vhdx(regions=1 << 31)),
    "vhdx whose metadata is nowhere": (DiskFormat.VHDX, vhdx(metadata_at=1 << 63)),
    "vhdx of no size": (DiskFormat.VHDX, vhdx(size=0)),
    "vhdx cut short": (DiskFormat.VHDX, vhdx()[: 200 * KIB]),
    "vpc that is a difference": (DiskFormat.VPC, vpc(kind=4) + vpc(kind=4)),
    "vpc that says two things": (DiskFormat.VPC, vpc(size=GIB) + vpc(size=MIB)),
    "vpc of an unknown kind": (DiskFormat.VPC, vpc(kind=7) + vpc(kind=7)),
    "iso cut short": (DiskFormat.ISO, iso(sectors=1 << 20)),
    "text said to be an iso": (DiskFormat.ISO, b"x" * MIB),
}


def written(folder: Path, data: bytes) -> Path:
    path = folder / "image"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("case", GOOD)
def test_the_size_of_the_disk_is_read_from_the_header(case: str, tmp_path: Path) -> None:
    format, data, size = GOOD[case]
    path = written(tmp_path, data)
    assert virtual_size(path, format) == size
    assert looks_like(path) is format


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_wrong_or_reaches_outside_itself_is_refused(case: str, tmp_path: Path) -> None:
    format, data = HOSTILE[case]
    with pytest.raises(Invalid):
        virtual_size(written(tmp_path, data), format)


@given(
    format=st.sampled_from(DiskFormat),
    case=st.sampled_from(sorted(GOOD)),
    at=st.integers(0, 400 * KIB),
    junk=st.binary(max_size=64),
    cut=st.integers(0, 400 * KIB),
)
def test_no_damage_to_a_header_does_more_than_have_it_refused(
    tmp_path_factory: pytest.TempPathFactory, format: DiskFormat, case: str, at: int, junk: bytes, cut: int
) -> None:
    _, data, _ = GOOD[case]
    at %= max(len(data), 1)
    path = written(tmp_path_factory.getbasetemp(), (data[:at] + junk + data[at + len(junk) :])[: len(data) - cut])
    with suppress(Invalid):
        assert 0 < virtual_size(path, format) <= MAX_VIRTUAL
