"""The FAT16 writer, read back by a small reader that follows the format's description and not our code."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from pileus.guestimage.fat import fat16
from pileus.kernel.units import MIB
from pileus.testing.fat import Reader


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
    assert 4101 <= Reader(fat16({"a": b"a"}, label="x", size_bytes=size_mib * MIB)).clusters <= 65508


@pytest.mark.parametrize(("size_mib", "sectors"), [(4, 1), (30, 8), (130, 64), (1000, 64)])
def test_clusters_are_as_large_as_they_may_be(size_mib: int, sectors: int) -> None:
    assert Reader(fat16({"a": b"a"}, label="x", size_bytes=size_mib * MIB)).per_cluster == sectors


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


@settings(max_examples=30)
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
