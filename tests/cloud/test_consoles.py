"""Consoles: who gets one, with what, and when it ends."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from pileus.cloud.identity.model import GRANTS, TOKENS
from pileus.cloud.instances.consoles import CONSOLES, TOKEN_GOOD_FOR, UNUSED_AT_MOST, OpenConsole
from pileus.cloud.instances.model import INSTANCES, InstanceState
from pileus.controller.consoles import OPEN_AT_MOST
from pileus.kernel.clock import FrozenClock, SystemClock
from pileus.kernel.ids import InstanceId, ProjectId, UserId, new_id
from pileus.link.consoles import ConsoleKind
from pileus.operations.caller import Role
from pileus.state.state import put
from pileus.testing.asgi import Conversation, conversation, status_of
from pileus.testing.cloud import ORIGIN, SimulatedCloud, simulated_cloud
from pileus.testing.fleet import SimulatedFleet
from pileus.testing.links import until
from pileus.testing.memorystore import MemoryStore
from pileus.testing.people import People, Person
from pileus.testing.requests import over, refusal, running


async def access(client: httpx2.AsyncClient, instance: str, **wish: Any) -> dict[str, Any]:
    """The answer to somebody who asks for a console."""
    answer = await client.post(f"/v1/instances/{instance}/consoles", json=wish)
    assert answer.status_code == 201, answer.text
    return answer.json()


@asynccontextmanager
async def at(cloud: SimulatedCloud, url: str) -> AsyncGenerator[Conversation]:
    """A WebSocket at the URL of a console, which is accepted."""
    path, _, query = url.partition("?")
    async with conversation(cloud.controller.api, path, query=query.encode(), socket=True) as talk:
        assert (await talk.answer())["type"] == "websocket.accept"
        yield talk


async def closed(talk: Conversation) -> int:
    """The code with which a socket is closed, whatever it shows before that."""
    while (message := await talk.answer())["type"] == "websocket.send":
        pass
    assert message["type"] == "websocket.close"
    assert len(message["reason"].encode()) <= 123, "a closing frame holds no more"
    return int(message["code"])


async def refused(cloud: SimulatedCloud, url: str) -> int:
    async with at(cloud, url) as talk:
        return await closed(talk)


async def shows(talk: Conversation, wanted: bytes) -> None:
    shown = b""
    while wanted not in shown:
        shown += (await talk.answer())["bytes"]


@asynccontextmanager
async def open_console(
    cloud: SimulatedCloud, client: httpx2.AsyncClient, instance: str
) -> AsyncGenerator[Conversation]:
    """A console that shows what its guest says."""
    url = (await access(client, instance))["url"]
    async with at(cloud, url) as talk:
        await shows(talk, b"login: ")
        yield talk


@pytest.fixture
async def member(people: People) -> Person:
    return await people.person(Role.MEMBER, await people.project("one"))


@pytest.fixture
async def instance(cloud: SimulatedCloud, member: Person) -> str:
    return (await running(cloud, member.client))["id"]


async def test_a_console_carries_what_is_typed_and_what_is_shown(
    cloud: SimulatedCloud, member: Person, instance: str
) -> None:
    async with open_console(cloud, member.client, instance) as talk:
        talk.tell({"type": "websocket.receive", "bytes": b"who?\r"})
        await shows(talk, b"who?\r\n")


@pytest.mark.parametrize(("role", "status"), [(Role.READER, 404), (Role.ADMIN, 404), (Role.PLATFORM, 201)])
async def test_a_console_is_given_to_members_of_its_own_project(
    cloud: SimulatedCloud, people: People, member: Person, instance: str, role: Role, status: int
) -> None:
    stranger = await people.person(role, await people.project("other"))
    reader = await people.person(Role.READER, member.project_id)
    path = f"/v1/instances/{instance}/consoles"
    answer = await stranger.client.post(path, json={})
    assert answer.status_code == (403 if role is Role.READER else status)
    assert refusal(await reader.client.post(path, json={}))[:2] == (403, "forbidden")


async def test_a_token_is_good_once(cloud: SimulatedCloud, member: Person, instance: str) -> None:
    url = (await access(member.client, instance))["url"]
    async with at(cloud, url) as talk:
        await shows(talk, b"login: ")
        assert await refused(cloud, url) == 4401
    assert await refused(cloud, url) == 4401


async def test_of_many_who_come_with_one_token_at_once_one_gets_in(
    cloud: SimulatedCloud, member: Person, instance: str
) -> None:
    url = (await access(member.client, instance))["url"]
    async with AsyncExitStack() as stack:
        talks = [await stack.enter_async_context(at(cloud, url)) for _ in range(20)]
        firsts = [await talk.answer() for talk in talks]
    assert sorted(first["type"] for first in firsts) == [*["websocket.close"] * 19, "websocket.send"]


async def test_a_token_is_for_one_instance_and_used_up_at_another(
    cloud: SimulatedCloud, member: Person, instance: str
) -> None:
    other = (await running(cloud, member.client, name="other"))["id"]
    url = (await access(member.client, instance))["url"]
    assert await refused(cloud, url.replace(instance, other)) == 4401
    assert await refused(cloud, url) == 4401


@pytest.mark.parametrize("query", ["", "?token=", "?token=x", "?token=" + "x" * 43, "?other=1"])
async def test_without_a_good_token_there_is_no_console(
    cloud: SimulatedCloud, member: Person, instance: str, query: str
) -> None:
    assert await refused(cloud, f"/v1/instances/{instance}/console{query}") == 4401
    assert await refused(cloud, f"/v1/instances/{new_id()}/console{query}") == 4401
    path = f"/v1/instances/{instance}/console"
    async with conversation(cloud.controller.api, path, token=member.token, socket=True) as talk:
        await talk.answer()
        assert await closed(talk) == 4401, "an API token opens no console by itself"


async def test_a_viewer_that_wants_bytes_gets_its_subprotocol(
    cloud: SimulatedCloud, member: Person, instance: str
) -> None:
    path, _, query = (await access(member.client, instance))["url"].partition("?")

    async def asking_for_bytes(scope: Any, receive: Any, send: Any) -> None:
        await cloud.controller.api({**scope, "subprotocols": ["chat", "binary"]}, receive, send)

    async with conversation(asking_for_bytes, path, query=query.encode(), socket=True) as talk:
        assert (await talk.answer())["subprotocol"] == "binary"


async def test_the_oldest_of_too_many_tokens_is_worth_nothing(
    cloud: SimulatedCloud, people: People, member: Person, instance: str
) -> None:
    other = await people.person(Role.MEMBER, member.project_id)
    others = (await access(other.client, instance))["url"]
    urls = [(await access(member.client, instance))["url"] for _ in range(UNUSED_AT_MOST + 1)]
    assert await refused(cloud, urls[0]) == 4401
    for url in (urls[1], urls[-1], others):
        async with at(cloud, url) as talk:
            await shows(talk, b"login: ")


async def test_thousands_of_tokens_that_nobody_uses_take_no_room(
    cloud: SimulatedCloud, member: Person, instance: str
) -> None:
    before = cloud.state.sequence
    answers = await asyncio.gather(
        *(member.client.post(f"/v1/instances/{instance}/consoles", json={}) for _ in range(500))
    )
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["url"] for answer in answers}) == 500
    assert cloud.state.sequence == before


async def test_nobody_has_consoles_without_end(cloud: SimulatedCloud, member: Person, instance: str) -> None:
    now = cloud.now()
    opened = [
        OpenConsole(
            id=new_id(),
            created_at=now,
            project_id=member.project_id,
            instance_id=InstanceId(instance),
            user_id=member.user_id,
            kind=ConsoleKind.SERIAL,
        )
        for _ in range(OPEN_AT_MOST)
    ]
    await cloud.state.commit(map(put, opened), ORIGIN)
    assert await refused(cloud, (await access(member.client, instance))["url"]) == 4429


async def test_who_was_at_a_console_and_when_is_in_the_log(
    cloud: SimulatedCloud, member: Person, instance: str
) -> None:
    url = (await access(member.client, instance))["url"]
    async with at(cloud, url) as talk:
        await shows(talk, b"login: ")
        (console,) = cloud.state[CONSOLES]
        assert (console.instance_id, console.user_id, console.kind) == (instance, member.user_id, "serial")
    await until(lambda: not len(cloud.state[CONSOLES]))
    answer = await member.client.get("/v1/events?kind=console")
    events = answer.json()["items"]
    assert [(each["operation"], each["actor"]) for each in events] == [
        ("instance.console", f"user:{member.user_id}"),
        ("instance.console_closed", f"user:{member.user_id}"),
    ]
    assert events[0]["after"]["instance_id"] == events[1]["before"]["instance_id"] == instance
    assert url.partition("token=")[2] not in answer.text


async def test_a_console_ends_with_the_token_of_its_user(cloud: SimulatedCloud, member: Person, instance: str) -> None:
    async with open_console(cloud, member.client, instance) as talk:
        token = cloud.state[TOKENS].by("user", member.user_id)[0].id
        assert (await member.client.delete(f"/v1/tokens/{token}")).status_code == 204
        assert await closed(talk) == 4403
    await until(lambda: not len(cloud.state[CONSOLES]))


async def test_a_console_ends_with_the_role_of_its_user(cloud: SimulatedCloud, member: Person, instance: str) -> None:
    grant = cloud.state[GRANTS].one("grant", (member.user_id, member.project_id, None, None))
    assert grant is not None
    async with open_console(cloud, member.client, instance) as talk:
        wish = {"user_id": member.user_id, "project_id": member.project_id, "role": "reader"}
        assert (await cloud.client.post("/v1/grants", json=wish)).is_success
        assert await closed(talk) == 4403


async def test_a_token_is_worth_nothing_once_its_user_is_kept_out(
    cloud: SimulatedCloud, member: Person, instance: str
) -> None:
    url = (await access(member.client, instance))["url"]
    assert (await cloud.client.patch(f"/v1/users/{member.user_id}", json={"enabled": False})).is_success
    assert await refused(cloud, url) == 4403


@pytest.mark.parametrize("verb", ["stop", "delete"])
async def test_a_console_ends_with_its_guest(cloud: SimulatedCloud, member: Person, instance: str, verb: str) -> None:
    path = f"/v1/instances/{instance}"
    async with open_console(cloud, member.client, instance) as talk:
        answer = await (member.client.post(f"{path}/stop") if verb == "stop" else member.client.delete(path))
        assert await closed(talk) in (1000, 4409)
        await over(cloud, answer.json()["task_id"])
    await until(lambda: not len(cloud.state[CONSOLES]))


async def test_a_console_survives_that_its_guest_is_restarted_and_paused(
    cloud: SimulatedCloud, member: Person, instance: str
) -> None:
    async with open_console(cloud, member.client, instance) as talk:
        for verb in ("reboot", "pause", "resume"):
            answer = await member.client.post(f"/v1/instances/{instance}/{verb}", json={} if verb == "reboot" else None)
            await over(cloud, answer.json()["task_id"])
        talk.tell({"type": "websocket.receive", "bytes": b"still there?\r"})
        await shows(talk, b"still there?\r\n")


async def test_a_stopped_instance_has_no_console(cloud: SimulatedCloud, member: Person, instance: str) -> None:
    url = (await access(member.client, instance))["url"]
    answer = await member.client.post(f"/v1/instances/{instance}/stop")
    await over(cloud, answer.json()["task_id"])
    assert cloud.state[INSTANCES].get(instance).state is InstanceState.STOPPED
    assert await refused(cloud, url) == 4409
    answer = await member.client.post(f"/v1/instances/{instance}/consoles", json={})
    assert refusal(answer)[:2] == (409, "conflict")


async def test_an_unknown_kind_of_console_is_refused_by_name(
    cloud: SimulatedCloud, member: Person, instance: str
) -> None:
    answer = await member.client.post(f"/v1/instances/{instance}/consoles", json={"kind": "spice", "port": 1})
    assert refusal(answer) == (400, "invalid", {"kind", "port"})


async def test_only_consoles_answer_to_sockets(cloud: SimulatedCloud, member: Person) -> None:
    assert await status_of(cloud.controller.api, "/v1/instances", token=member.token, socket=True) == 4404


async def test_a_screen_asks_for_a_password_that_is_another_each_time(
    cloud: SimulatedCloud, member: Person, instance: str
) -> None:
    guest = InstanceId(instance)
    hypervisor = next(host.hypervisor for host in cloud.fleet.hosts if guest in host.hypervisor.guests)
    first, second = [await access(member.client, instance, kind="vnc") for _ in range(2)]
    assert first["password"] != second["password"]
    assert len(second["password"]) == 8
    assert hypervisor.consoles.passwords[guest] == (second["password"], 120)
    for each in (first, second):
        async with at(cloud, each["url"]) as talk:
            await shows(talk, b"RFB 003.008\n")
        assert await refused(cloud, each["url"]) == 4401
    events = (await member.client.get("/v1/events")).text
    assert first["password"] not in events
    assert second["password"] not in events


async def test_a_serial_consoles_token_opens_no_screen(cloud: SimulatedCloud, member: Person, instance: str) -> None:
    answer = await access(member.client, instance)
    assert "password" not in answer
    async with at(cloud, answer["url"]) as talk:
        await shows(talk, b"login: ")


async def test_a_picture_is_drawn_of_what_runs(cloud: SimulatedCloud, member: Person, instance: str) -> None:
    path = f"/v1/instances/{instance}/screenshot"
    answer = await member.client.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    assert answer.content.startswith(b"\x89PNG\r\n\x1a\n")
    stopped = await member.client.post(f"/v1/instances/{instance}/stop")
    await over(cloud, stopped.json()["task_id"])
    assert refusal(await member.client.get(path))[:2] == (409, "conflict")


async def test_what_was_said_is_kept_until_the_instance_is_gone(
    cloud: SimulatedCloud, member: Person, instance: str
) -> None:
    async with open_console(cloud, member.client, instance) as talk:
        talk.tell({"type": "websocket.receive", "bytes": b"one\rtwo\x1b[31m\xff\r"})
        await shows(talk, b"\xff\r\n")
    stopped = await member.client.post(f"/v1/instances/{instance}/stop")
    await over(cloud, stopped.json()["task_id"])
    path = f"/v1/instances/{instance}/console-log"
    whole = await member.client.get(path)
    assert whole.content.endswith(b"one\r\ntwo\x1b[31m\xff\r\n")
    assert (await member.client.get(f"{path}?tail=1")).content == b"two\x1b[31m\xff\r\n"
    for wrong in ("0", "-1", "100001", "x", "1e3"):
        assert refusal(await member.client.get(f"{path}?tail={wrong}")) == (400, "invalid", {"tail"})
    assert refusal(await member.client.get(f"{path}?tails=1")) == (400, "invalid", {"tails"})


async def test_neither_picture_nor_log_is_for_strangers_or_readers(
    cloud: SimulatedCloud, people: People, member: Person, instance: str
) -> None:
    stranger = await people.person(Role.ADMIN, await people.project("other"))
    reader = await people.person(Role.READER, member.project_id)
    for what in ("screenshot", "console-log"):
        assert (await stranger.client.get(f"/v1/instances/{instance}/{what}")).status_code == 404
        assert (await reader.client.get(f"/v1/instances/{instance}/{what}")).status_code == 403


async def test_a_viewer_that_reads_nothing_holds_up_nobody(
    cloud: SimulatedCloud, member: Person, instance: str
) -> None:
    stuck = asyncio.Event()

    async def deaf(scope: Any, receive: Any, send: Any) -> None:
        async def send_to_nobody(message: Any) -> None:
            if message["type"] == "websocket.send":
                stuck.set()
                await asyncio.get_running_loop().create_future()
            await send(message)

        await cloud.controller.api(scope, receive, send_to_nobody)

    path, _, query = (await access(member.client, instance))["url"].partition("?")
    async with conversation(deaf, path, query=query.encode(), socket=True):
        await stuck.wait()
        other = (await running(cloud, member.client, name="other"))["id"]
        async with open_console(cloud, member.client, other):
            token = cloud.state[TOKENS].by("user", member.user_id)[0].id
            assert (await member.client.delete(f"/v1/tokens/{token}")).status_code == 204
            await until(lambda: not len(cloud.state[CONSOLES]))


@pytest.fixture
async def frozen(tmp_path: Path) -> AsyncIterator[tuple[SimulatedCloud, FrozenClock]]:
    clock = FrozenClock()
    async with simulated_cloud(tmp_path, hosts=1, store=MemoryStore(), clock=clock) as cloud:
        yield cloud, clock


async def test_a_token_is_good_for_half_a_minute(frozen: tuple[SimulatedCloud, FrozenClock]) -> None:
    cloud, clock = frozen
    instance = (await running(cloud, cloud.client))["id"]
    late, early = [(await access(cloud.client, instance))["url"] for _ in range(2)]
    clock.advance(TOKEN_GOOD_FOR - timedelta(seconds=1))
    async with at(cloud, early) as talk:
        await shows(talk, b"login: ")
    clock.advance(timedelta(seconds=1))
    assert await refused(cloud, late) == 4401


async def test_what_a_controller_had_open_is_closed_when_the_next_one_starts(tmp_path: Path) -> None:
    store, fleet = MemoryStore(), SimulatedFleet(1, clock=SystemClock())
    async with simulated_cloud(tmp_path, fleet=fleet, store=store) as cloud:
        instance = (await running(cloud, cloud.client))["id"]
        left = OpenConsole(
            id=new_id(),
            created_at=cloud.now(),
            project_id=ProjectId(new_id()),
            instance_id=InstanceId(instance),
            user_id=UserId(new_id()),
            kind=ConsoleKind.SERIAL,
        )
        await cloud.state.commit([put(left)], ORIGIN)
    async with simulated_cloud(tmp_path, fleet=fleet, store=MemoryStore(store.disk)) as cloud:
        assert not len(cloud.state[CONSOLES])
