"""The FAT16 writer, read back by a small reader that follows the format's description and not our code."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from pileus.guestimage.fat import fat16
from pileus.kernel.units import MIB


class Reader:
    def __init__(self, image: bytes) -> None:
        self.image = image
        sector, self.per_cluster, reserved, tables, root_entries, small, _, table_sectors = struct.unpack_from(
            "<HBHBHHBH", image, 11
        )
        assert image[510:512] == b"\x55\xaa"
        assert sector == 512
        sectors = small or struct.unpack_from("<I", image, 32)[0]
        assert sectors * 512 == len(image)
        root = (reserved + tables * table_sectors) * 512
        self.root = image[root : root + root_entries * 32]
        self.data = root + root_entries * 32
        self.clusters = (len(image) - self.data) // 512 // self.per_cluster
        tables_at = reserved * 512
        first, second = (
            image[tables_at + copy * table_sectors * 512 : tables_at + (copy + 1) * table_sectors * 512]
            for copy in range(tables)
        )
        assert first == second
        assert len(first) // 2 >= self.clusters + 2
        self.table = struct.unpack(f"<{len(first) // 2}H", first)

    def chain(self, cluster: int) -> bytes:
        size_bytes = self.per_cluster * 512
        content = b""
        while cluster < 0xFFF8:
            at = self.data + (cluster - 2) * size_bytes
            content += self.image[at : at + size_bytes]
            cluster = self.table[cluster]
        return content

    def files(self, folder: bytes | None = None, path: str = "") -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        long_name = ""
        for at in range(0, len(self.root if folder is None else folder), 32):
            entry = (self.root if folder is None else folder)[at : at + 32]
            attributes, (cluster,), (size_bytes,) = (
                entry[11],
                struct.unpack("<H", entry[26:28]),
                struct.unpack("<I", entry[28:]),
            )
            if entry[0] == 0:
                break
            if attributes == 0x0F:
                part = (entry[1:11] + entry[14:26] + entry[28:32]).decode("utf-16-le")
                long_name = part.split("\0")[0] + long_name
                continue
            short = entry[:8].decode().rstrip() + ("." + entry[8:11].decode().rstrip()).rstrip(".")
            name, long_name = long_name or short, ""
            if attributes & 0x08 or name in (".", ".."):
                continue
            if attributes & 0x10:
                found |= self.files(self.chain(cluster), f"{path}{name}/")
            else:
                found[path + name] = self.chain(cluster)[:size_bytes] if size_bytes else b""
        return found


def test_files_come_back_with_their_long_names() -> None:
    files = {
        "openstack/latest/meta_data.json": b"{}",
        "openstack/latest/user_data": b"#!/bin/sh\n",
        "vmlinuz": b"x" * 5000,
        "EFI/BOOT/BOOTX64.EFI": b"MZ",
        "empty": b"",
        "thirteen.long": b"13",
    }
    assert Reader(fat16(files, label="config-2", size_bytes=4 * MIB)).files() == files


def test_the_label_is_the_one_given() -> None:
    reader = Reader(fat16({}, label="config-2", size_bytes=4 * MIB))
    assert reader.image[43:54] == reader.root[:11] == b"config-2   "


def test_names_that_shorten_alike_stay_apart() -> None:
    files = {f"a long name {number}.json": str(number).encode() for number in range(20)} | {"ALONGN~1.JSO": b"!"}
    reader = Reader(fat16(files, label="x", size_bytes=4 * MIB))
    assert reader.files() == files
    short = [reader.root[at : at + 11] for at in range(0, len(reader.root), 32) if reader.root[at + 11] & 0x0F != 0x0F]
    assert len(set(filter(any, short))) == len(files) + 1


@pytest.mark.parametrize("size_mib", [3, 31, 33, 130])
def test_any_size_has_as_many_clusters_as_fat16_may_have(size_mib: int) -> None:
    assert 4085 <= Reader(fat16({"a": b"a"}, label="x", size_bytes=size_mib * MIB)).clusters <= 65524


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        fat16({"large": bytes(5 * MIB)}, label="x", size_bytes=4 * MIB)
    with pytest.raises(ValueError, match="too small"):
        fat16({}, label="x", size_bytes=MIB)
    with pytest.raises(ValueError, match="too large"):
        fat16({}, label="x", size_bytes=8192 * MIB)


NAMES = some.text("abcXYZ019_-. é", min_size=1, max_size=30).filter(
    lambda name: name.strip(". ") == name and name.upper() != name.lower()
)


@settings(max_examples=30, deadline=None)
@given(
    some.dictionaries(
        some.lists(NAMES, min_size=1, max_size=3).map("/".join), some.binary(max_size=3000), max_size=12
    ).filter(
        lambda files: (
            len({part.lower() for path in files for part in path.split("/")})
            == sum(path.count("/") + 1 for path in files)
        )
    )
)
def test_whatever_goes_in_comes_out(files: dict[str, bytes]) -> None:
    assert Reader(fat16(files, label="x", size_bytes=3 * MIB)).files() == files
