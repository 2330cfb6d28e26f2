"""Downloads that break off, go on, begin anew and get in each other's way, from a server that answers as it is told."""

import asyncio
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from pileus.client.client import Client
from pileus.client.config import Config
from pileus.client.downloads import download, export
from pileus.kernel.errors import Conflict, Invalid, NotFound, Unauthenticated
from pileus.kernel.units import MIB
from pileus.testing.links import until

from .conftest import Server

CONTENT = b"1" * MIB + b"2" * MIB + bytes(MIB) + b"4" * 10 + bytes(90)
IMAGE = {"id": "1", "name": "debian", "sha256": sha256(CONTENT).hexdigest(), "size_bytes": len(CONTENT)}


class Interrupted(Exception):
    """Somebody presses Ctrl-C."""


def interrupted_at(bytes_: int) -> Callable[[int, int], None]:
    def progress(done: int, _of: int) -> None:
        if done >= bytes_:
            raise Interrupted

    return progress


def part_in(folder: Path, content: bytes = CONTENT) -> Path:
    return folder / f"disk.{sha256(content).hexdigest()[:16]}.part"


class Download:
    """Downloads to `folder/disk`, and what was said of it."""

    def __init__(self, config: Config, folder: Path) -> None:
        self._config = config
        self._folder = folder
        self.said: list[str] = []
        self.seen: list[int] = []

    async def __call__(self, progress: Callable[[int, int], None] | None = None) -> bytes:
        file = self._folder / "disk"

        def told(done: int, of: int) -> None:
            self.seen.append(done)
            if progress is not None:
                progress(done, of)

        async with Client(self._config) as client:
            await download(client, IMAGE, file, progress=told, say=self.said.append)
        assert [each.name for each in self._folder.iterdir()] == ["disk"], "only the file is left"
        return file.read_bytes()


@pytest.fixture
def fetch(config: Config, tmp_path: Path) -> Download:
    return Download(config, tmp_path)


@pytest.mark.parametrize("arrived", [MIB, 2 * MIB])
async def test_a_download_that_was_interrupted_goes_on_where_it_stopped(
    server: Server, fetch: Download, arrived: int
) -> None:
    server.answer(200, CONTENT)
    with pytest.raises(Interrupted):
        await fetch(interrupted_at(arrived))
    server.answer(206, CONTENT[arrived:])
    fetch.seen.clear()
    assert await fetch() == CONTENT
    assert server.asked[1].headers["range"] == f"bytes={arrived}-"
    assert fetch.seen[0] == arrived
    assert [said for said in fetch.said if "goes on there" in said] == fetch.said
    assert len(fetch.said) == 1


async def test_a_download_whose_connection_breaks_goes_on_by_itself(server: Server, fetch: Download) -> None:
    server.answer_and_break_off(CONTENT[: 2 * MIB])
    server.answer(206, CONTENT[2 * MIB :])
    assert await fetch() == CONTENT
    assert server.asked[1].headers["range"] == f"bytes={2 * MIB}-"


async def test_a_server_that_knows_no_ranges_is_given_its_time(server: Server, fetch: Download, tmp_path: Path) -> None:
    part_in(tmp_path).write_bytes(CONTENT[:100])
    server.answer(200, CONTENT)
    assert await fetch() == CONTENT


async def test_what_had_arrived_before_the_command_was_killed_is_only_checked(fetch: Download, tmp_path: Path) -> None:
    part_in(tmp_path).write_bytes(CONTENT)
    assert await fetch() == CONTENT


@pytest.mark.parametrize("damaged", [b"x" * 100, CONTENT + b"more"], ids=["other bytes", "too long"])
async def test_what_is_damaged_is_fetched_anew_and_told(
    server: Server, fetch: Download, tmp_path: Path, damaged: bytes
) -> None:
    part_in(tmp_path).write_bytes(damaged)
    if len(damaged) < len(CONTENT):
        server.answer(206, CONTENT[len(damaged) :])
    server.answer(200, CONTENT)
    assert await fetch() == CONTENT
    assert "range" not in server.asked[-1].headers
    assert "begins anew" in fetch.said[-1]


async def test_what_arrived_of_another_image_for_the_same_file_is_forgotten_and_told(
    server: Server, fetch: Download, tmp_path: Path
) -> None:
    part_in(tmp_path, b"what debian was before").write_bytes(CONTENT[:100])
    server.answer(200, CONTENT)
    assert await fetch() == CONTENT
    assert "range" not in server.asked[0].headers
    assert ["begins anew" in said for said in fetch.said] == [True]


async def test_what_is_called_alike_but_is_no_part_is_left_alone(
    server: Server, config: Config, tmp_path: Path
) -> None:
    for name in ("disk.part", "disk.old.part", f"disk.{'g' * 16}.part", f"disk2.{'0' * 16}.part"):
        (tmp_path / name).write_bytes(b"mine")
    server.answer(200, CONTENT)
    async with Client(config) as client:
        await download(client, IMAGE, tmp_path / "disk", progress=lambda _done, _of: None, say=lambda _: None)
    assert {each.read_bytes() for each in tmp_path.glob("*.part")} == {b"mine"}
    assert len(list(tmp_path.iterdir())) == 5


async def test_a_download_that_is_not_the_image_leaves_no_file(server: Server, fetch: Download, tmp_path: Path) -> None:
    server.answer(200, b"something else" * len(CONTENT))
    with pytest.raises(Conflict):
        await fetch()
    assert list(tmp_path.iterdir()) == []


async def test_what_arrived_outlives_a_token_that_has_expired_but_not_the_image(
    server: Server, fetch: Download, tmp_path: Path
) -> None:
    part_in(tmp_path).write_bytes(CONTENT[:100])
    server.answer(401, b'{"type": "/problems/unauthenticated", "detail": "expired"}')
    with pytest.raises(Unauthenticated):
        await fetch()
    assert part_in(tmp_path).read_bytes() == CONTENT[:100]
    server.answer(404, b'{"type": "/problems/not-found", "detail": "gone"}')
    with pytest.raises(NotFound):
        await fetch()
    assert list(tmp_path.iterdir()) == []


async def test_of_two_downloads_to_one_file_the_second_is_refused_and_the_first_goes_on(
    server: Server, fetch: Download
) -> None:
    server.answer(200, CONTENT)
    server.answering.clear()
    first = asyncio.create_task(fetch())
    await until(lambda: server.asked != [])
    with pytest.raises(Conflict, match="another download"):
        await fetch()
    server.answering.set()
    assert await first == CONTENT


async def test_where_no_file_can_be_nothing_is_fetched(server: Server, config: Config, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    async with Client(config) as client:
        for file in (tmp_path / "folder", tmp_path / "missing" / "disk", Path("/"), Path()):
            with pytest.raises(Invalid):
                await download(client, IMAGE, file, progress=lambda _done, _of: None, say=lambda _: None)
        with pytest.raises(Invalid):
            await export(
                client, IMAGE, "raw", Path(), progress=lambda _done, _of: None, say=lambda _: None, wait=client.wait
            )
    assert server.asked == []
    assert [each.name for each in tmp_path.iterdir()] == ["folder"]
