"""Packages from a cache, without an archive: small ones made here."""

import os
import shutil
import stat
import struct
from pathlib import Path

import pytest

from pileus.guestimage import packages
from pileus.guestimage.elf import needed_libraries
from pileus.guestimage.packages import Offer, Package, Packages, choose, depends_on, obtain
from pileus.kernel.errors import PileusError, Unavailable
from pileus.kernel.programs import ProgramFailed, run


def program(*needs: str) -> bytes:
    """A 64-bit ELF file with nothing but a dynamic section."""
    names = b"\0" + b"".join(name.encode() + b"\0" for name in needs)
    at = 64 + 2 * 56
    offsets = [names.index(name.encode() + b"\0") for name in needs]
    dynamic = b"".join(struct.pack("<qQ", 1, offset) for offset in offsets)
    dynamic += struct.pack("<qQqQ", 5, 0x1000 + at, 0, 0)
    size_bytes = at + len(names) + len(dynamic)
    headers = struct.pack("<IIQQQQQQ", 1, 5, 0, 0x1000, 0, size_bytes, size_bytes, 0x1000)
    headers += struct.pack("<IIQQQQQQ", 2, 6, at + len(names), 0, 0, len(dynamic), len(dynamic), 8)
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header += struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    return header + headers + names + dynamic


def unpacked(folder: Path, name: str, files: dict[str, bytes]) -> Package:
    for path, content in files.items():
        (folder / name / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / name / path).write_bytes(content)
    return Package(name=name, file=f"{name}_1_amd64.deb", root=folder / name)


async def packed(cache: Path, name: str, version: str, *, depends: str = "libc6") -> None:
    root = cache.parent / f"{name}-{version}"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: {version}\nArchitecture: amd64\nMaintainer: Nobody <n@example.org>\n"
        f"Depends: {depends}\nDescription: test\n"
    )
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/tool").write_text(version)
    for folder in (root, root / "DEBIAN"):
        folder.chmod(stat.S_IMODE(folder.stat().st_mode) & ~0o7000)
    await run("dpkg-deb", "--build", str(root), str(cache / f"{name}_{version}_amd64.deb"), timeout_s=60)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "_PAUSES_S", (0.0, 0.0))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    if shutil.which("dpkg-deb") is None:
        pytest.skip("dpkg-deb is not installed")
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


@pytest.fixture
def said() -> list[str]:
    return []


def test_a_program_names_the_libraries_it_needs() -> None:
    assert needed_libraries(program("liba.so.1", "libc.so.6")) == ["liba.so.1", "libc.so.6"]
    assert needed_libraries(program()) == []


def test_what_is_no_program_is_refused() -> None:
    with pytest.raises(ValueError, match="ELF"):
        needed_libraries(b"#!/bin/sh\n")


def test_libraries_are_gathered_with_those_that_they_need_themselves(tmp_path: Path) -> None:
    tool = unpacked(tmp_path, "tool", {"usr/bin/tool": program("liba.so.1")})
    packages = Packages(
        [
            tool,
            unpacked(tmp_path, "liba1", {"usr/lib/x86_64-linux-gnu/liba.so.1": program("libc.so.6")}),
            unpacked(
                tmp_path,
                "libc6",
                {
                    "lib/x86_64-linux-gnu/libc.so.6": program("ld-linux-x86-64.so.2"),
                    "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2": program(),
                },
            ),
        ]
    )
    assert sorted(packages.libraries([tool.find("usr/bin/tool")])) == ["ld-linux-x86-64.so.2", "liba.so.1", "libc.so.6"]


def test_a_library_that_is_nowhere_is_named(tmp_path: Path) -> None:
    tool = unpacked(tmp_path, "tool", {"usr/bin/tool": program("libnowhere.so.9")})
    with pytest.raises(PileusError, match=r"tool needs libnowhere\.so\.9"):
        Packages([tool]).libraries([tool.find("usr/bin/tool")])


def test_a_file_is_found_before_and_after_the_merge_of_usr(tmp_path: Path) -> None:
    package = unpacked(tmp_path, "tools", {"usr/sbin/a": b"a", "sbin/b": b"b"})
    assert package.find("sbin/a").read_bytes() == b"a"
    assert package.find("usr/sbin/b").read_bytes() == b"b"
    with pytest.raises(PileusError, match="has no sbin/c"):
        package.find("sbin/c")


async def test_without_an_archive_the_newest_in_the_cache_is_taken(cache: Path, said: list[str]) -> None:
    for age, version in enumerate(("2", "1")):
        await packed(cache, "pileus-test-tool", version)
        os.utime(cache / f"pileus-test-tool_{version}_amd64.deb", (1000 - age, 1000 - age))
    offers = await choose(["pileus-test-tool"], cache=cache, say=said.append)
    assert offers == [Offer(name="pileus-test-tool", file="pileus-test-tool_2_amd64.deb")]
    assert said == ["apt knows no packages: taking those kept from before"]


async def test_a_package_that_nobody_has_is_named(cache: Path, said: list[str]) -> None:
    with pytest.raises(Unavailable, match="pileus-test-nothing"):
        await choose(["pileus-test-nothing"], cache=cache, say=said.append)


async def test_a_cached_package_is_unpacked_once(cache: Path, said: list[str]) -> None:
    await packed(cache, "pileus-test-tool", "1")
    offers = [Offer(name="pileus-test-tool", file="pileus-test-tool_1_amd64.deb")]
    first = (await obtain(offers, cache=cache, say=said.append))["pileus-test-tool"]
    second = (await obtain(offers, cache=cache, say=said.append))["pileus-test-tool"]
    assert first == second
    assert first.find("usr/bin/tool").read_text() == "1"
    assert [path.name for path in (cache / "unpacked").iterdir()] == ["pileus-test-tool_1_amd64"]
    assert said == []


async def test_a_package_that_changed_on_the_way_is_refused(cache: Path, said: list[str]) -> None:
    await packed(cache, "pileus-test-tool", "1")
    offer = Offer(name="pileus-test-tool", file="pileus-test-tool_1_amd64.deb", sha256="00")
    with pytest.raises(Unavailable):
        await obtain([offer], cache=cache, say=said.append)
    assert len([each for each in said if "trying again" in each]) == 2


async def test_a_package_that_does_not_come_at_first_is_fetched_again(
    cache: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = cache.parent / "archive"
    elsewhere.mkdir()
    await packed(elsewhere, "pileus-test-tool", "1")
    tries = 0

    async def fetch(*command: str, timeout_s: float) -> str:
        nonlocal tries
        if "download" not in command:
            return await run(*command, timeout_s=timeout_s)
        tries += 1
        if tries == 1:
            raise ProgramFailed(command, 100, "File has unexpected size. Mirror sync in progress?")
        shutil.copy(elsewhere / "pileus-test-tool_1_amd64.deb", cache)
        return ""

    monkeypatch.setattr(packages, "run", fetch)
    offer = Offer(name="pileus-test-tool", file="pileus-test-tool_1_amd64.deb")
    found = (await obtain([offer], cache=cache, say=said.append))["pileus-test-tool"]
    assert (found.find("usr/bin/tool").read_text(), tries) == ("1", 2)
    assert "could not be fetched: pileus-test-tool; trying again" in said[1]


async def test_of_alternatives_the_first_is_depended_on(cache: Path, said: list[str]) -> None:
    await packed(cache, "pileus-test-tool", "1", depends="libc6 (>= 2.34), mawk | awk, zlib1g")
    offer = Offer(name="pileus-test-tool", file="pileus-test-tool_1_amd64.deb")
    assert await depends_on(offer, cache=cache, say=said.append) == ["libc6", "mawk", "zlib1g"]
