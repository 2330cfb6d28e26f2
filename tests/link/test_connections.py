"""Who gets in, who is thrown out, and how an agent comes back."""

import asyncio
import socket
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pileus.kernel.clock import FrozenClock, SystemClock
from pileus.kernel.ids import HostId, new_id
from pileus.link import dialler as dialler_module
from pileus.link.addresses import Address
from pileus.link.certificates import AgentIdentity, AgentKey, Authority, trusting
from pileus.link.channel import Channel
from pileus.link.dialler import LONGEST_PATIENCE_S, LONGEST_WAIT_S, Dialler, patience_s, wait_s
from pileus.link.handlers import Handlers
from pileus.link.server import LinkServer
from pileus.testing.links import LoopbackCloud, for_ever, running, until


class Attempts:
    """Counts how often a dialler has made its context, that is tried."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context
        self.made = 0

    def __call__(self) -> ssl.SSLContext:
        self.made += 1
        return self.context


async def _is_never_let_in(cloud: LoopbackCloud, identity: AgentIdentity, context: ssl.SSLContext) -> None:
    let_in: list[HostId] = []

    async def note(channel: Channel, host: HostId) -> None:
        let_in.append(host)

    cloud.on_connect = note
    attempts = Attempts(context)
    async with running(cloud.dialler(identity, context=attempts)) as dialler:
        await until(lambda: attempts.made >= 3)
        assert not dialler.connected
    assert let_in == []


async def test_an_agent_of_another_cloud_is_refused(cloud: LoopbackCloud) -> None:
    stranger = Authority.create(SystemClock())
    host = HostId(new_id())
    identity = AgentIdentity(cloud.folder / "stranger")
    key = AgentKey()
    # It trusts our authority, so that it is the server who refuses.
    identity.install(key, stranger.certify_host(key.signing_request(), host), cloud.authority.pem)
    await _is_never_let_in(cloud, identity, identity.context())


async def test_an_agent_refuses_the_controller_of_another_cloud(cloud: LoopbackCloud) -> None:
    host = HostId(new_id())
    identity = AgentIdentity(cloud.folder / "agent")
    key = AgentKey()
    ours = cloud.authority.certify_host(key.signing_request(), host)
    identity.install(key, ours, Authority.create(SystemClock()).pem)
    await _is_never_let_in(cloud, identity, identity.context())


async def test_an_expired_certificate_is_refused(cloud: LoopbackCloud) -> None:
    long_ago = FrozenClock(datetime.now(UTC) - timedelta(days=200))
    cloud_then = Authority(cloud.authority.certificate, cloud.authority.key, long_ago)
    host = HostId(new_id())
    identity = AgentIdentity(cloud.folder / "agent")
    key = AgentKey()
    identity.install(key, cloud_then.certify_host(key.signing_request(), host), cloud.authority.pem)
    await _is_never_let_in(cloud, identity, identity.context())


async def test_an_agent_without_a_certificate_is_refused(cloud: LoopbackCloud) -> None:
    identity = cloud.join(HostId(new_id()))
    await _is_never_let_in(cloud, identity, trusting(cloud.authority.pem))


async def test_an_agents_certificate_cannot_play_the_controller(cloud: LoopbackCloud) -> None:
    impostor = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    impostor.load_cert_chain(cloud.folder / cloud.join(HostId(new_id())).host / "agent.pem")
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0, ssl=impostor)
    async with server:
        port = server.sockets[0].getsockname()[1]
        context = trusting(cloud.authority.pem)
        context.check_hostname = False  # even so
        with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
            await asyncio.open_connection("127.0.0.1", port, ssl=context)


async def test_a_removed_host_is_refused_and_comes_back_when_it_is_admitted(cloud: LoopbackCloud) -> None:
    host = HostId(new_id())
    identity = cloud.join(host)
    async with running(cloud.dialler(identity)) as dialler:
        await until(lambda: dialler.connected)
        cloud.refusals[host] = "the host was removed"
        cloud.server.disconnect(host)
        await until(lambda: not dialler.connected and cloud.server.channel(host) is None)
        cloud.refusals.clear()
        await until(lambda: dialler.connected)


async def test_a_second_connection_of_a_host_replaces_the_first_in_order(cloud: LoopbackCloud) -> None:
    happened: list[str] = []

    async def watch(channel: Channel, host: HostId) -> None:
        number = sum(event.startswith("begin") for event in happened)
        happened.append(f"begin {number}")
        try:
            await asyncio.Event().wait()
        finally:
            # What cleaning up takes must be over before the next one begins.
            for _ in range(20):
                await asyncio.sleep(0)
            happened.append(f"end {number}")

    cloud.on_connect = watch
    dialler = cloud.dialler(cloud.join(HostId(new_id())))
    async with asyncio.TaskGroup() as tasks:
        connections = [await dialler.dial(), await dialler.dial()]
        channels = [Channel(connection, Handlers(), peer="controller") for connection in connections if connection]
        for channel in channels:
            tasks.create_task(channel.run())
        await until(lambda: "begin 1" in happened)
        assert happened == ["begin 0", "end 0", "begin 1"]
        channels[1].abort()
    await until(lambda: happened[-1] == "end 1")


async def test_an_agent_comes_back_by_itself_when_the_controller_does(cloud: LoopbackCloud) -> None:
    host = HostId(new_id())
    async with running(cloud.dialler(cloud.join(host))) as dialler:
        await until(lambda: dialler.connected)
        for _ in range(3):
            before = dialler.channel
            cloud.server.disconnect(host)
            await until(lambda before=before: dialler.connected and dialler.channel is not before)


async def test_an_agent_tries_every_address_it_has(cloud: LoopbackCloud) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # bound and not listening: refuses
        addresses = [
            Address("no-such-name.invalid", 1),
            Address("127.0.0.1", silent.getsockname()[1]),
            cloud.address,
        ]
        identity = cloud.join(HostId(new_id()))
        dialler = Dialler(
            lambda: addresses, identity.context, Handlers(), for_ever, clock=SystemClock(), chance=lambda: 0.0
        )
        async with running(dialler):
            await until(lambda: dialler.connected)


async def test_what_runs_beside_a_channel_and_fails_ends_the_connection(cloud: LoopbackCloud) -> None:
    calls = 0

    async def fail_once(channel: Channel, host: HostId) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise KeyError("bug")
        await for_ever()

    cloud.on_connect = fail_once
    async with running(cloud.dialler(cloud.join(HostId(new_id())))) as dialler:
        await until(lambda: calls == 2 and dialler.connected)


async def test_new_connections_use_the_renewed_server_certificate(cloud: LoopbackCloud) -> None:
    async def shown() -> bytes:
        _, writer = await asyncio.open_connection(
            "127.0.0.1", cloud.server.port, ssl=cloud.join(HostId(new_id())).context(), server_hostname="localhost"
        )
        certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.transport.abort()
        return certificate

    before = await shown()
    assert cloud.identity.ensure(["renewed.example"])
    assert await shown() != before
    async with cloud.agent():
        pass


async def test_the_server_stops_with_agents_connected(cloud: LoopbackCloud) -> None:
    ended: list[HostId] = []

    async def watch(channel: Channel, host: HostId) -> None:
        try:
            await for_ever()
        finally:
            ended.append(host)

    server = LinkServer(
        "127.0.0.1", 0, cloud.identity.link_context(), Handlers(), watch, admit=lambda host, serial: None
    )
    host = HostId(new_id())
    async with asyncio.TaskGroup() as tasks:
        async with server:
            address = Address("127.0.0.1", server.port)
            dialler = Dialler(lambda: [address], cloud.join(host).context, Handlers(), for_ever, clock=SystemClock())
            dialling = tasks.create_task(dialler.run())
            await until(lambda: dialler.connected and server.channel(host))
        assert ended == [host]
        dialling.cancel()


async def test_an_agent_has_more_patience_each_time_until_a_controller_without_cpu_has_shaken_hands(
    cloud: LoopbackCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialler_module, "FIRST_PATIENCE_S", 0.01)
    host = HostId(new_id())
    async with behind_a_delay(cloud.address, delay_s=0.2) as address:
        attempts = Attempts(cloud.join(host).context())
        dialler = Dialler(lambda: [address], attempts, Handlers(), for_ever, clock=SystemClock(), chance=lambda: 0.0)
        async with running(dialler):
            await until(lambda: dialler.connected)
    assert attempts.made > 1


@asynccontextmanager
async def behind_a_delay(address: Address, *, delay_s: float) -> AsyncGenerator[Address]:
    """Where connections to an address are carried on after a delay."""

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                writer.write(data)
        writer.close()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(delay_s)
        onwards, back = await asyncio.open_connection(address.host, address.port)
        await asyncio.gather(pour(reader, back), pour(onwards, writer))

    async with asyncio.TaskGroup() as tasks:

        def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            tasks.create_task(carry(reader, writer))

        server = await asyncio.start_server(begin, "127.0.0.1", 0)
        try:
            yield Address("127.0.0.1", server.sockets[0].getsockname()[1])
        finally:
            server.close()


@given(st.integers(0, 10_000))
def test_patience_grows_and_is_bounded(failures: int) -> None:
    assert patience_s(0) <= patience_s(failures) <= patience_s(failures + 1) <= LONGEST_PATIENCE_S


@given(st.integers(0, 10_000), st.floats(0, 1))
def test_waiting_is_spread_and_bounded(failures: int, chance: float) -> None:
    assert 0 <= wait_s(failures, chance) <= LONGEST_WAIT_S
    assert wait_s(failures, chance) <= wait_s(failures + 1, chance)
