"""A cloud's networks on the hosts of the lab, and what its guests see of each other."""

import asyncio
import socket
from collections.abc import AsyncGenerator, Awaitable
from contextlib import asynccontextmanager

import msgspec
from ovn_lab import Guest, Lab

from pileus.agent.network.ovn_namespace import within
from pileus.kernel.errors import PileusError
from pileus.ovn.northbound import OvnNorthbound
from pileus.ovn.view import NetworkRecord
from pileus.state.state import put, remove

SERVER = 8080


@asynccontextmanager
async def running(remote: str) -> AsyncGenerator[OvnNorthbound]:
    northbound = OvnNorthbound(remote)
    task = asyncio.create_task(northbound.run())
    try:
        yield northbound
    finally:
        task.cancel()
        await asyncio.wait((task,))


class Cloud(msgspec.Struct):
    lab: Lab
    northbound: OvnNorthbound

    def guest(self, name: str) -> Guest:
        return self.lab.guests[name]

    async def change(self, *records: NetworkRecord, gone: tuple[NetworkRecord, ...] = ()) -> None:
        self.northbound.changed([*map(put, records), *map(remove, gone)])
        await self.northbound.realized()


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


async def heard(namespace: str, address: str, *, port: int = SERVER, timeout_s: float = 1.0) -> str | None:
    """What the server at this address says; None if no connection comes about."""

    def made() -> socket.socket:
        client = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
        client.setblocking(False)
        return client

    loop = asyncio.get_running_loop()
    with await within(namespace, made) as client:
        try:
            async with asyncio.timeout(timeout_s):
                await loop.sock_connect(client, (address, port))
                return (await loop.sock_recv(client, 100)).decode()
        except (OSError, TimeoutError):
            return None


async def pings(guest: Guest, address: str, *, wait_s: int = 1) -> bool:
    said = await attempt(guest.run("busybox", "ping6" if ":" in address else "ping", "-c1", f"-W{wait_s}", address))
    return said is not None


async def attempt(command: Awaitable[str]) -> str | None:
    try:
        return await command
    except PileusError:
        return None


async def answered(namespace: str, address: str, *, port: int = SERVER) -> bool:
    return await heard(namespace, address, port=port) is not None
