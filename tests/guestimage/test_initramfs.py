"""The root file system: its archive format, the order of its drivers, its scripts."""

import shutil
import stat
import subprocess

import pytest

from pileus.guestimage.initramfs import Entry, cpio, guest_files, in_loading_order


def members(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """A reader of cpio's newc format."""
    found: dict[str, tuple[int, bytes]] = {}
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + index * 8 : at + 14 + index * 8], 16) for index in range(13)]
        mode, size_bytes, name_bytes = fields[1], fields[6], fields[11]
        name = archive[at + 110 : at + 110 + name_bytes - 1].decode()
        content_at = (at + 110 + name_bytes + 3) // 4 * 4
        if name == "TRAILER!!!":
            return found
        found[name] = mode, archive[content_at : content_at + size_bytes]
        at = (content_at + size_bytes + 3) // 4 * 4


def test_an_archive_holds_what_was_put_in_and_the_folders_on_the_way() -> None:
    archive = cpio({"usr/bin/tool": Entry.file(b"#!", executable=True), "bin/tool": Entry.link("../usr/bin/tool")})
    assert members(archive) == {
        "bin": (stat.S_IFDIR | 0o755, b""),
        "bin/tool": (stat.S_IFLNK | 0o777, b"../usr/bin/tool"),
        "usr": (stat.S_IFDIR | 0o755, b""),
        "usr/bin": (stat.S_IFDIR | 0o755, b""),
        "usr/bin/tool": (stat.S_IFREG | 0o755, b"#!"),
    }


def test_the_order_of_making_does_not_change_an_archive() -> None:
    first = cpio({"a": Entry.file(b"1"), "b": Entry.file(b"2")})
    assert first == cpio({"b": Entry.file(b"2"), "a": Entry.file(b"1")})


def test_a_driver_comes_after_those_it_depends_on() -> None:
    depends = {"net": ["failover", "ring"], "failover": ["core"], "ring": ["core"], "core": [], "unused": []}
    assert in_loading_order(["net", "core"], depends) == ["core", "failover", "ring", "net"]


def test_a_driver_that_is_built_in_is_left_out() -> None:
    assert in_loading_order(["ext4", "net"], {"net": ["ipv6"]}) == ["net"]


def test_only_scripts_may_be_executed() -> None:
    files = guest_files()
    assert files["init"].mode == stat.S_IFREG | 0o755
    assert files["etc/inittab"].mode == stat.S_IFREG | 0o644
    assert files["etc/shadow"].mode == stat.S_IFREG | 0o600


def test_the_image_has_no_password() -> None:
    assert guest_files()["etc/shadow"].content.startswith(b"root:*:")


@pytest.mark.parametrize("path", [path for path, entry in guest_files().items() if entry.mode & 0o111])
def test_every_script_can_be_parsed(path: str) -> None:
    shell = shutil.which("sh")
    assert shell
    subprocess.run([shell, "-n"], input=guest_files()[path].content, check=True, timeout=60)
