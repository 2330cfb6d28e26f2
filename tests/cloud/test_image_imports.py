"""Images from the web: what is there arrives, and nobody is asked whom strangers must not ask."""

import asyncio
import socket
from collections.abc import AsyncIterator
from hashlib import sha256
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from pileus.cloud.images import web
from pileus.cloud.images.fetching import ATTEMPTS
from pileus.cloud.images.model import IMAGES
from pileus.cloud.images.web import PublicWeb, source_of
from pileus.kernel.errors import Conflict, Forbidden, Invalid, PileusError, Unavailable
from pileus.operations.caller import Role
from pileus.testing.cloud import SimulatedCloud, simulated_cloud
from pileus.testing.diskimages import qcow2, vmdk
from pileus.testing.fleet import SimulatedFleet
from pileus.testing.links import until
from pileus.testing.memorystore import MemoryStore
from pileus.testing.people import People
from pileus.testing.requests import over, refusal, shown

RAW = bytes(range(256)) * 100
URL = "https://images.example.com/disk.raw?token=secret"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pileus.cloud.images.fetching._PAUSE_S", 0.0)


async def begin(cloud: SimulatedCloud, **more: Any) -> tuple[str, str]:
    """The task and the image of an import."""
    answer = await cloud.client.post("/v1/images/import", json={"name": "far", "format": "raw", "url": URL, **more})
    assert answer.status_code == 202, answer.text
    return answer.json()["task_id"], answer.json()["image"]["id"]


async def ended(cloud: SimulatedCloud, **more: Any) -> tuple[str, str]:
    """How an import ends, and why."""
    task, _ = await begin(cloud, **more)
    found = await over(cloud, task)
    return found.state, found.cause.code if found.cause else ""


async def test_an_image_is_imported(cloud: SimulatedCloud) -> None:
    cloud.fleet.web.pages[URL] = RAW
    task, id = await begin(cloud, sha256=sha256(RAW).hexdigest(), size_bytes=len(RAW))
    assert (await over(cloud, task)).state == "done"
    image = await shown(cloud.client, f"images/{id}")
    assert (image["state"], image["size_bytes"]) == ("active", len(RAW))
    assert image["source"] == "https://images.example.com/disk.raw", "what may be secret is not shown"
    assert (await cloud.client.get(f"/v1/images/{id}/data")).content == RAW


async def test_what_breaks_off_goes_on_where_it_stopped(cloud: SimulatedCloud) -> None:
    cloud.fleet.web.pages[URL] = RAW
    cloud.fleet.web.breaks_after = 10_000
    assert await ended(cloud, sha256=sha256(RAW).hexdigest()) == ("done", "")
    assert cloud.fleet.web.asked == [0, 10_000, 20_000]


async def test_a_server_that_sends_no_parts_begins_anew(cloud: SimulatedCloud) -> None:
    cloud.fleet.web.pages[URL] = RAW
    cloud.fleet.web.sends_parts = False
    cloud.fleet.web.faults.fail("web.fetch", Unavailable("away"), times=2)
    assert await ended(cloud, sha256=sha256(RAW).hexdigest()) == ("done", "")


async def test_a_server_that_does_not_say_how_much_it_sends_is_believed_at_its_end(cloud: SimulatedCloud) -> None:
    cloud.fleet.web.pages[URL] = RAW
    cloud.fleet.web.says_size = False
    assert await ended(cloud) == ("done", "")


async def test_an_import_goes_on_in_the_controllers_next_life(tmp_path: Path) -> None:
    store = MemoryStore()
    async with simulated_cloud(tmp_path, store=store, hosts=1) as cloud:
        cloud.fleet.web.pages[URL] = RAW
        cloud.fleet.web.breaks_after, cloud.fleet.web.hangs = 5_000, True
        task, id = await begin(cloud)
        await until(lambda: cloud.controller.engine.world.files.arrived.get(id) == 5_000)
    fleet = SimulatedFleet(1, clock=cloud.clock)
    fleet.hosts[0].id = cloud.fleet.hosts[0].id
    fleet.web.pages[URL] = RAW
    async with simulated_cloud(tmp_path, store=MemoryStore(store.disk), fleet=fleet) as cloud:
        assert (await over(cloud, task)).state == "done"
        assert fleet.web.asked == [5_000]
        assert (await cloud.client.get(f"/v1/images/{id}/data")).content == RAW


@pytest.mark.parametrize(
    ("page", "wish", "cause"),
    [
        (None, {}, "conflict"),
        (RAW, {"sha256": "0" * 64}, "invalid"),
        (RAW, {"size_bytes": 1}, "invalid"),
        (qcow2(backing_at=512), {"format": "qcow2"}, "invalid"),
        (RAW, {"format": "vmdk"}, "invalid"),
        (b"", {}, "conflict"),
    ],
    ids=["nothing there", "damaged", "another size", "backing file", "another format", "empty"],
)
async def test_what_is_not_what_it_should_be_leaves_nothing(
    cloud: SimulatedCloud, page: bytes | None, wish: dict[str, Any], cause: str
) -> None:
    if page is not None:
        cloud.fleet.web.pages[URL] = page
    task, id = await begin(cloud, **wish)
    found = await over(cloud, task)
    assert found.cause is not None
    assert (found.state, found.cause.code) == ("undone", cause)
    assert id not in cloud.state[IMAGES]
    assert not [each for each in (cloud.data / "images").iterdir() if each.name.startswith(id)]


async def test_a_server_that_never_sends_anything_is_given_up(cloud: SimulatedCloud) -> None:
    cloud.fleet.web.pages[URL] = RAW
    cloud.fleet.web.breaks_after = 0
    task, _ = await begin(cloud)
    await until(lambda: len(cloud.fleet.web.asked) >= ATTEMPTS)
    assert (await cloud.client.post(f"/v1/tasks/{task}/cancel")).is_success
    assert (await over(cloud, task)).state == "undone"


async def test_the_quota_is_asked_before_anything_is_fetched(cloud: SimulatedCloud, people: People) -> None:
    project = await people.project("small")
    await cloud.client.patch(f"/v1/projects/{project}", json={"quota": {"image_gib": 0}})
    member = await people.person(Role.MEMBER, project)
    cloud.fleet.web.pages[URL] = vmdk()
    answer = await member.client.post("/v1/images/import", json={"name": "far", "format": "vmdk", "url": URL})
    found = await over(cloud, answer.json()["task_id"])
    assert found.cause is not None
    assert found.cause.code == "quota-exceeded"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://example.com/x",
        "file:///etc/shadow",
        "//example.com/x",
        "https://",
        "https:///x",
        "https://me:secret@example.com/x",
        "https://me@example.com/x",
        "https://example.com:99999/",
        "https://example.com:0/",
        "https://[::1/x",
        "javascript:alert(1)",
        "x" * 5000,
    ],
)
async def test_what_is_no_url_of_the_web_is_refused(cloud: SimulatedCloud, url: str) -> None:
    answer = await cloud.client.post("/v1/images/import", json={"name": "far", "format": "raw", "url": url})
    assert refusal(answer) == (400, "invalid", {"url"})


# Whom the controller asks, by a real server on this machine.


class Server:
    """Answers by path, and counts."""

    def __init__(self) -> None:
        self.answers: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.port = 0

    def page(self, path: str, status: str, body: bytes = b"", **headers: str) -> None:
        lines = [f"HTTP/1.1 {status}", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
        lines += [f"content-length: {len(body)}", "connection: close"]
        self.answers[path] = "\r\n".join(lines).encode() + b"\r\n\r\n" + body

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.asked.append(head)
        writer.write(self.answers[head.split()[1]])
        await writer.drain()
        writer.close()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    async with listening:
        yield server


def allowing(*allowed: str) -> PublicWeb:
    return PublicWeb([ip_network(each) for each in allowed], lambda: {"203.0.113.7"})


async def fetched(public: PublicWeb, url: str, *, start: int = 0) -> bytes:
    async with public.fetch(url, start=start, validator="") as page:
        return b"".join([piece async for piece in page.body])


def looked_up(monkeypatch: pytest.MonkeyPatch, *answers: str) -> list[str]:
    """Let names lead to these addresses, one for each question; says what was asked."""
    asked: list[str] = []

    async def getaddrinfo(host: str, port: int, **_: object) -> list[Any]:
        asked.append(host)
        address = answers[min(len(asked), len(answers)) - 1]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo, raising=False)
    return asked


async def test_the_host_that_is_named_is_asked_and_told_its_name(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.page("/disk?x=1", "200 OK", RAW)
    looked_up(monkeypatch, "127.0.0.1")
    assert await fetched(allowing("127.0.0.0/8"), f"http://images.example.com:{server.port}/disk?x=1#part") == RAW
    assert f"host: images.example.com:{server.port}" in server.asked[0].lower()


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.9.9.9",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "198.18.0.1",
        "203.0.113.7",
        "[::]",
        "[::1]",
        "[fe80::1]",
        "[fd00::1]",
        "[ff02::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:169.254.169.254]",
        "[2002:7f00:1::]",
        "[64:ff9b::7f00:1]",
        "2130706433",
        "0x7f.1",
        "017700000001",
        "localhost",
    ],
)
async def test_nobody_is_asked_whom_strangers_must_not_ask(address: str) -> None:
    with pytest.raises((Forbidden, Unavailable)):
        await fetched(allowing(), f"http://{address}:1/latest/meta-data")


async def test_addresses_of_hosts_and_of_this_machine_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    public = PublicWeb([], lambda: {"8.8.8.8"})
    assert not public._may_ask(ip_address("8.8.8.8"))  # pyright: ignore[reportPrivateUsage]
    assert public._may_ask(ip_address("8.8.4.4"))  # pyright: ignore[reportPrivateUsage]

    def here(_address: web.Address, _allowed: object) -> bool:
        return True

    monkeypatch.setattr(web, "_is_this_machine", here)
    with pytest.raises(Forbidden):
        await fetched(public, "http://8.8.4.4:1/")


async def test_a_name_that_leads_elsewhere_a_moment_later_leads_nowhere(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.page("/", "200 OK", RAW)
    asked = looked_up(monkeypatch, "127.0.0.2", "127.0.0.1")
    with pytest.raises(Unavailable):
        await fetched(allowing("127.0.0.2/32"), f"http://rebinds.example.com:{server.port}/")
    assert (asked, server.asked) == (["rebinds.example.com"], []), "looked up once, and that address was asked"


async def test_redirections_are_followed_and_checked_like_the_first(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    public = allowing("127.0.0.1/32")
    at = f"http://127.0.0.1:{server.port}"
    server.page("/disk", "200 OK", RAW)
    server.page("/there", "302 Found", location="/disk")
    server.page("/inside", "302 Found", location="http://169.254.169.254/latest/meta-data")
    server.page("/file", "302 Found", location="file:///etc/shadow")
    server.page("/nowhere", "302 Found")
    server.page("/round", "307 Temporary Redirect", location="/round")
    assert await fetched(public, f"{at}/there") == RAW
    for path, error in (("/inside", Forbidden), ("/file", Invalid), ("/round", Conflict), ("/nowhere", Conflict)):
        with pytest.raises(error):
            await fetched(public, f"{at}{path}")


async def test_answers_that_are_none_are_refused(server: Server) -> None:
    public, at = allowing("127.0.0.1/32"), f"http://127.0.0.1:{server.port}"
    server.page("/gone", "404 Not Found")
    server.page("/busy", "503 Service Unavailable")
    server.page("/packed", "200 OK", RAW, content_encoding="gzip")
    server.page("/other", "206 Partial Content", RAW, content_range="bytes 7-9/10")
    errors: dict[str, type[PileusError]] = {
        "/gone": Conflict,
        "/busy": Unavailable,
        "/packed": Conflict,
        "/other": Conflict,
    }
    for path, error in errors.items():
        with pytest.raises(error):
            await fetched(public, f"{at}{path}", start=5)
    assert "range: bytes=5-" in server.asked[0].lower()
    server.page("/part", "206 Partial Content", RAW[5:], content_range=f"bytes 5-{len(RAW) - 1}/{len(RAW)}")
    assert await fetched(public, f"{at}/part", start=5) == RAW[5:]


def test_what_may_be_secret_in_a_url_is_not_told() -> None:
    assert source_of("https://example.com:8443/a/b?signature=x#y") == "https://example.com:8443/a/b"
