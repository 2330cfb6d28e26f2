"""Serial consoles of guests, from a caller's WebSocket through the link to the host and back."""

import asyncio

from pileus.cloud.instances.model import Instance
from pileus.controller.hosts import HostLinks
from pileus.kernel.ids import InstanceId
from pileus.link.records import ConsoleRequest, Method
from pileus.link.streams import Stream
from pileus.operations.declare import Socket

_OPEN_S = 10.0


class LinkedConsoles:
    """Consoles over the hosts' links."""

    def __init__(self, hosts: HostLinks) -> None:
        self._hosts = hosts

    async def join(self, socket: Socket, instance: Instance) -> None:
        """Carry bytes both ways until either side closes. Raises Unavailable."""
        channel = self._hosts.channel(instance.host_id)
        request = ConsoleRequest(id=InstanceId(instance.id))
        stream = await channel.open_stream(Method.CONSOLE, request, timeout_s=_OPEN_S)
        ways = [asyncio.ensure_future(_typed(socket, stream)), asyncio.ensure_future(_shown(stream, socket))]
        try:
            done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in done:
                way.result()
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            await stream.close()


async def _typed(socket: Socket, stream: Stream) -> None:
    while (data := await socket.receive()) is not None:
        await stream.write(data)


async def _shown(stream: Stream, socket: Socket) -> None:
    while data := await stream.read():
        await socket.send(data)
