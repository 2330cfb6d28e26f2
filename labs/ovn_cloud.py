"""A cloud's networks on the hosts of the lab, and what its guests see of each other."""

import asyncio
import socket
from collections.abc import AsyncGenerator, Awaitable
from contextlib import asynccontextmanager

import msgspec
from ovn_lab import Guest, Lab, until

from pileus.agent.network.ovn_namespace import within
from pileus.kernel.errors import PileusError
from pileus.kernel.ids import PortId
from pileus.ovn.northbound import OvnNorthbound
from pileus.ovn.view import NetworkRecord
from pileus.state.state import put, remove
from pileus.testing.contracts.northbound import PATIENCE_S

SERVER = 8080
_A_WHILE_S = 5.0
"""In which TCP sends its first packet again twice (RFC 6298)."""


@asynccontextmanager
async def running(remote: str) -> AsyncGenerator[OvnNorthbound]:
    northbound = OvnNorthbound(remote)
    task = asyncio.create_task(northbound.run())
    try:
        yield northbound
    finally:
        task.cancel()
        await asyncio.wait((task,))


async def at_work(northbound: OvnNorthbound, *ports: str) -> None:
    """Wait until these ports are connected, and all that was changed is at work on every host."""
    await asyncio.gather(*(northbound.up(PortId(name), timeout_s=PATIENCE_S) for name in ports))
    await northbound.realized(timeout_s=PATIENCE_S)


class Cloud(msgspec.Struct):
    lab: Lab
    northbound: OvnNorthbound

    def guest(self, name: str) -> Guest:
        return self.lab.guests[name]

    async def change(self, *records: NetworkRecord, gone: tuple[NetworkRecord, ...] = ()) -> None:
        self.northbound.changed([*map(put, records), *map(remove, gone)])
        await at_work(self.northbound)


async def name_server(namespace: str, name: str) -> asyncio.Server:
    """Tell whoever connects to SERVER a name, and his address."""

    def listening() -> socket.socket:
        server = socket.create_server(("", SERVER), family=socket.AF_INET6, dualstack_ipv6=True)
        server.setblocking(False)
        return server

    async def tell(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = str(writer.get_extra_info("peername")[0])
        writer.write(f"{name} sees {peer.removeprefix('::ffff:')}".encode())
        writer.close()

    return await asyncio.start_server(tell, sock=await within(namespace, listening))


async def heard(namespace: str, address: str, *, port: int = SERVER, within_s: float = 1) -> str | None:
    """What the server at this address says; None if no connection comes about in that time."""

    def made() -> socket.socket:
        client = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
        client.setblocking(False)
        return client

    loop = asyncio.get_running_loop()
    with await within(namespace, made) as client:
        try:
            async with asyncio.timeout(within_s):
                await loop.sock_connect(client, (address, port))
                return (await loop.sock_recv(client, 100)).decode()
        except (OSError, TimeoutError):
            return None


async def told(namespace: str, address: str, *, port: int = SERVER) -> str:
    """What the server at this address says, as soon as a connection comes about.

    That may not be the first: packets are lost while an address is asked for, or a switch learns a flow.
    """
    said: str | None = None

    async def connected() -> bool:
        nonlocal said
        said = await heard(namespace, address, port=port, within_s=_A_WHILE_S)
        return said is not None

    await until(connected, f"a connection to {address} port {port}")
    assert said is not None
    return said


async def says(namespace: str, address: str, what: str, *, port: int = SERVER) -> None:
    """Wait until the server at this address says this: a switch may use a flow that was changed a moment longer."""

    async def said() -> bool:
        return await heard(namespace, address, port=port, within_s=_A_WHILE_S) == what

    await until(said, f"{address} port {port} says: {what}")


async def closed(namespace: str, address: str, *, port: int = SERVER) -> None:
    """Wait until no connection comes about any more: a switch may use a flow that was withdrawn a moment longer."""

    async def silent() -> bool:
        return await heard(namespace, address, port=port) is None

    await until(silent, f"no connection to {address} port {port} any more")


async def pings(guest: Guest, address: str, *, size: int = 56) -> bool:
    """Whether one ping, of so many bytes, is answered within a second."""
    version = ("ping6", "-s") if ":" in address else ("ping", "-s")
    said = await attempt(guest.run("busybox", *version, str(size), "-c1", "-W1", address))
    return said is not None


async def reached(guest: Guest, address: str, *, size: int = 56) -> None:
    """Wait until a ping is answered."""
    await until(lambda: pings(guest, address, size=size), f"{address} answers {guest.namespace}")


async def unreached(guest: Guest, address: str) -> None:
    """Wait until no ping is answered any more."""

    async def silent() -> bool:
        return not await pings(guest, address)

    await until(silent, f"{address} does not answer {guest.namespace} any more")


async def attempt(command: Awaitable[str]) -> str | None:
    try:
        return await command
    except PileusError:
        return None
