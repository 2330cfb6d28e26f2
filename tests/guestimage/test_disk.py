"""The parts of a bootable disk."""

import struct

import pytest

from pileus.guestimage.disk import master_boot_record
from pileus.kernel.units import MIB


def test_the_first_partition_is_the_active_one() -> None:
    record = master_boot_record(
        b"\xeb" * 512, disk_id=b"abcd", partitions={0xEF: (MIB, 20 * MIB), 0x83: (21 * MIB, 107 * MIB)}
    )
    table = [struct.unpack("<B3xB3xII", record[at : at + 16]) for at in (446, 462, 478, 494)]
    assert table == [(0x80, 0xEF, 2048, 40960), (0, 0x83, 43008, 219136), (0, 0, 0, 0), (0, 0, 0, 0)]


def test_boot_code_leaves_the_rest_of_the_record_alone() -> None:
    record = master_boot_record(b"\xeb" * 512, disk_id=b"abcd", partitions={0x83: (MIB, MIB)})
    assert len(record) == 512
    assert (record[:440], record[440:446], record[510:]) == (b"\xeb" * 440, b"abcd\0\0", b"\x55\xaa")


def test_a_record_has_room_for_four_partitions() -> None:
    with pytest.raises(ValueError, match="four"):
        master_boot_record(b"", disk_id=b"abcd", partitions=dict.fromkeys(range(1, 6), (MIB, MIB)))
