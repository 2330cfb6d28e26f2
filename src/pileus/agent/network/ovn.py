"""A host's network on Open vSwitch and OVN: guests' tap devices, and the metadata and DNS sockets of each network.

A guest's tap device is plugged into the integration bridge under the id of its port, by which ovn-controller knows it.
Where the bridge forwards in userspace it only listens to the device, and the host's own network stack sees every frame
as well: there each device gets a guard, an nftables chain at its ingress that drops them all, behind the switch's ear.

Each network that the host serves has a namespace with one leg in it: 169.254.169.254, the same on every host. The
sockets are opened in there and served by the agent's event loop; no process runs in it. All of this outlives the agent,
which finds it again: what it made says so itself, in the switch's database or by its name.
"""

import asyncio
import socket
from collections.abc import Mapping
from functools import partial
from weakref import WeakValueDictionary

import msgspec

from pileus.agent.network.ovn_dns import DatagramServer, Forwarder
from pileus.agent.network.ovn_http import HEAD_LIMIT_BYTES, MetadataServer
from pileus.agent.network.ovn_namespace import NAMESPACES, close_ipv6, compute_checksums, devices, is_namespace, within
from pileus.agent.network.ovn_switch import Switch
from pileus.agent.network.port import MetadataListener, Plug
from pileus.kernel.errors import NotFound
from pileus.kernel.ids import InstanceId, NetworkId, PortId
from pileus.kernel.programs import run
from pileus.link.guests import NicSpec, PortTraffic
from pileus.ovn.names import METADATA_ADDRESS, metadata_mac, metadata_port, short

_PORT_MARK, _METADATA_MARK = "pileus-port", "pileus-metadata"
_ALIAS = "pileus-port:"
"""Before the port's id in the alias of a device, which says whose it is also when the switch does not know it yet."""
_GUARDS = "pileus"
_LEG = "metadata"
_HTTP, _DNS = 80, 53
_JOINED_AT_ONCE = 8


class OvnHostNetwork:
    """Plugs guests into the bridge of ovn-controller. See `pileus.agent.network.port.HostNetwork`.

    Args:
        switch: where the database of this host's Open vSwitch is, such as `unix:/run/openvswitch/db.sock`.
        bridge: the bridge that ovn-controller programs.
        forwarder: what answers guests' DNS queries that OVN does not.
    """

    def __init__(self, switch: str, *, bridge: str = "br-int", forwarder: Forwarder | None = None) -> None:
        self._switch = Switch(switch, bridge)
        self._forwarder = forwarder or Forwarder()
        self._served: dict[NetworkId, _Served] = {}
        self._serving = asyncio.Lock()
        self._naming = asyncio.Lock()
        self._naming = asyncio.Lock()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def plug(self, instance: InstanceId, nic: NicSpec) -> Plug:
        device = tap_of(nic.port)
        async with self._turn(device):
            is_new = device not in devices()
            if is_new:
                await run("ip", "tuntap", "add", "dev", device, "mode", "tap")
            close_ipv6(device)
            await self._guard(device)
            await run(*("ip", "link", "set", "dev", device, "mtu", str(nic.mtu), "alias", f"{_ALIAS}{nic.port}", "up"))
            ids = {
                "iface-id": nic.port,
                "iface-status": "active",
                "attached-mac": nic.mac,
                "vm-id": instance,
                _PORT_MARK: nic.port,
            }
            await self._switch.add(device, ids, is_new=is_new)
        return Plug(device=device, offload=await self._switch.offloads())

    async def unplug(self, port: PortId) -> None:
        device = tap_of(port)
        async with self._turn(device):
            await self._remove(device)

    async def list(self) -> dict[PortId, Plug]:
        known = await self._switch.marked(_PORT_MARK)
        known |= await _taps()
        offload = await self._switch.offloads()
        return {PortId(port): Plug(device=device, offload=offload) for device, port in known.items()}

    async def physical_networks(self) -> tuple[str, ...]:
        return await self._switch.mapped()

    async def traffic(self, port: PortId) -> PortTraffic:
        device = tap_of(port)
        if device not in devices():
            raise NotFound(f"there is no port {port} on this host")
        shown = await run("ip", "-json", "-statistics", "link", "show", "dev", device)
        (link,) = msgspec.json.decode(shown, type=list[_Counted])
        # What the guest sends, its tap device receives.
        return PortTraffic(
            sent_bytes=link.stats64.rx.bytes,
            sent_packets=link.stats64.rx.packets,
            received_bytes=link.stats64.tx.bytes,
            received_packets=link.stats64.tx.packets,
            dropped_packets=link.stats64.tx.dropped,
        )

    async def serve(self, networks: Mapping[NetworkId, int], listener: MetadataListener) -> None:
        async with self._serving:
            for network in self._served.keys() - networks.keys():
                await self._served.pop(network).close()
            wanted = {namespace_of(network) for network in networks}
            for namespace in await self._namespaces() - wanted:
                await self._remove(_leg_of(namespace))
                await run("ip", "netns", "delete", namespace, accept=(0, 1))
            fresh = [network for network in networks if network not in self._served]
            some = asyncio.Semaphore(_JOINED_AT_ONCE)

            async def join(network: NetworkId) -> None:
                async with some:
                    await self._join(network, networks[network])
                    self._served[network] = await _serve(network, listener, self._forwarder)

            # One network that cannot be served keeps none of the others from it.
            failed = await asyncio.gather(*map(join, fresh), return_exceptions=True)
            for failure in failed:
                if failure is not None:
                    raise failure

    async def close(self) -> None:
        for served in self._served.values():
            await served.close()
        self._served.clear()
        await self._switch.close()

    async def _namespaces(self) -> set[str]:
        """The metadata namespaces of which there is anything."""
        marked = await self._switch.marked(_METADATA_MARK)
        there = {each.name for each in NAMESPACES.glob(f"{_NAMESPACE}*")}
        return there | {namespace_of(NetworkId(network)) for network in marked.values()}

    async def _join(self, network: NetworkId, mtu: int) -> None:
        """Have the namespace with its leg in the network."""
        namespace = namespace_of(network)
        leg = _leg_of(namespace)
        mac = metadata_mac(network)
        async with self._naming:  # iproute2 first mounts /run/netns, and two that do so at once lose a namespace
            if not is_namespace(namespace):
                # What an agent in mounts of its own has left is only a name.
                await run("ip", "netns", "delete", namespace, accept=(0, 1))
                await run("ip", "netns", "add", namespace)
        if leg not in devices():
            peer = ("peer", "name", _LEG, "address", mac, "netns", namespace)
            await run("ip", "link", "add", leg, "type", "veth", *peer)
        close_ipv6(leg)
        await self._guard(leg)
        await within(namespace, _prepare_leg)
        settings = (
            f"address replace {METADATA_ADDRESS}/32 dev {_LEG}",
            "link set dev lo up",
            f"link set dev {_LEG} mtu {mtu} up",
            # The guests of all subnets are on this link, whatever their addresses are.
            f"route replace default dev {_LEG}",
        )
        await run("ip", "-netns", namespace, "-batch", "-", stdin="\n".join(settings).encode())
        await run("ip", "link", "set", "dev", leg, "mtu", str(mtu), "up")
        await self._switch.add(leg, {"iface-id": metadata_port(network), _METADATA_MARK: network})

    async def _remove(self, device: str) -> None:
        await self._switch.remove(device)
        if device in devices():
            await run("ip", "link", "delete", "dev", device, accept=(0, 1))
        await _nft(
            f"add table netdev {_GUARDS}",
            f"add chain netdev {_GUARDS} {device}",
            f"delete chain netdev {_GUARDS} {device}",
        )

    async def _guard(self, device: str) -> None:
        """Keep the guest's frames from the host's own stack, if that would see them."""
        if await self._switch.in_userspace():
            hook = f'{{ type filter hook ingress device "{device}" priority -500; policy drop; }}'
            chain = f"chain netdev {_GUARDS} {device}"
            # Made anew: the chain of a device that was deleted and came back hangs in the air.
            await _nft(f"add table netdev {_GUARDS}", f"add {chain}", f"delete {chain}", f"add {chain} {hook}")

    def _turn(self, device: str) -> asyncio.Lock:
        return self._turns.setdefault(device, asyncio.Lock())


class _Link(msgspec.Struct):
    """What iproute2 tells of a device."""

    ifname: str
    ifalias: str = ""


class _Way(msgspec.Struct):
    bytes: int
    packets: int
    dropped: int


class _Ways(msgspec.Struct):
    rx: _Way
    tx: _Way


class _Counted(msgspec.Struct):
    """What iproute2 tells of what has passed a device."""

    stats64: _Ways


_NAMESPACE = "pileus-md-"


def tap_of(port: PortId) -> str:
    """The name of a port's tap device, within the 15 characters that a name may have."""
    return f"pt{short(port)}"


def namespace_of(network: NetworkId) -> str:
    """The name of a network's metadata namespace on each host."""
    return f"{_NAMESPACE}{short(network)}"


def _leg_of(namespace: str) -> str:
    return f"pm{namespace.removeprefix(_NAMESPACE)}"


async def leftovers() -> list[str]:
    """What drivers made on this machine that is still there, the switch's own ports apart."""
    namespaces = [f"network namespace {each.name}" for each in NAMESPACES.glob(f"{_NAMESPACE}*")]
    return [*namespaces, *(f"network device {device}" for device in await _taps())]


async def purge() -> None:
    """Remove what drivers made on this machine, also when there is no switch any more. Guests lose their networks."""
    for each in NAMESPACES.glob(f"{_NAMESPACE}*"):
        await run("ip", "netns", "delete", each.name)
    for device in await _taps():
        await run("ip", "link", "delete", "dev", device)


async def _taps() -> dict[str, str]:
    """The tap devices that say whose port they are, with that."""
    links = msgspec.json.decode(await run("ip", "-json", "link", "show"), type=list[_Link])
    return {link.ifname: link.ifalias.removeprefix(_ALIAS) for link in links if link.ifalias.startswith(_ALIAS)}


async def _nft(*commands: str) -> None:
    await run("nft", "-f", "-", stdin="\n".join((*commands, "")).encode())


class _Served(msgspec.Struct):
    """The open sockets of a network."""

    streams: tuple[asyncio.Server, ...]
    datagrams: asyncio.DatagramTransport

    async def close(self) -> None:
        self.datagrams.close()
        for server in self.streams:
            server.close()


async def _serve(network: NetworkId, listener: MetadataListener, forwarder: Forwarder) -> _Served:
    """Open the sockets of a network in its namespace, and serve them here."""
    namespace = namespace_of(network)
    loop = asyncio.get_running_loop()
    http = await within(namespace, partial(_listening, _HTTP))
    dns = await within(namespace, partial(_listening, _DNS))
    queries = await within(namespace, _receiving)
    metadata = MetadataServer(network, listener)
    transport, _ = await loop.create_datagram_endpoint(lambda: DatagramServer(forwarder), sock=queries)
    return _Served(
        (
            await asyncio.start_server(metadata.serve, sock=http, limit=HEAD_LIMIT_BYTES),
            await asyncio.start_server(forwarder.serve_stream, sock=dns),
        ),
        transport,
    )


def _prepare_leg() -> None:
    close_ipv6(_LEG)
    compute_checksums(_LEG)


def _listening(port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setblocking(False)
    listening.bind((METADATA_ADDRESS, port))
    listening.listen(128)
    return listening


def _receiving() -> socket.socket:
    receiving = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiving.setblocking(False)
    receiving.bind((METADATA_ADDRESS, _DNS))
    return receiving
