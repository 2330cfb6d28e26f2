"""The way of tunnelled frames from host to host.

The kernel's datapath sends them as the kernel routes them. The user-space datapath does its own routing, and only
through its own bridges: there the link to the other hosts becomes a port of a bridge that has this host's address.
"""

from ipaddress import IPv4Interface

import msgspec

from pileus.kernel.errors import Conflict
from pileus.kernel.programs import run
from pileus.machine.external import addresses_of, guard
from pileus.machine.openvswitch import TUNNEL_BRIDGE, Datapath, OpenVSwitch


class Tunnel(msgspec.Struct, frozen=True, kw_only=True):
    """The link that leads to the other hosts, and this host's address there."""

    link: str
    address: IPv4Interface


async def tunnel_up(switch: OpenVSwitch, tunnel: Tunnel, datapath: Datapath) -> None:
    """Have tunnelled frames go out by a link; idempotent.

    Raises:
        Conflict: the kernel is to send them and the link has not the address, or user space is to send them and the
            link has addresses, which would no longer be reached.
    """
    addresses = await addresses_of(tunnel.link)
    if datapath is Datapath.SYSTEM:
        if str(tunnel.address) not in addresses:
            raise Conflict(f"{tunnel.link} has not the address {tunnel.address}, to which other hosts send frames")
        return
    if addresses:
        raise Conflict(
            f"{tunnel.link} has the address {addresses[0]}: the user-space datapath needs a link of its own for tunnels"
        )
    await switch.make_bridge(TUNNEL_BRIDGE, datapath, "--", "--may-exist", "add-port", TUNNEL_BRIDGE, tunnel.link)
    await guard(tunnel.link)
    if str(tunnel.address) not in await addresses_of(TUNNEL_BRIDGE):
        await run("ip", "address", "replace", str(tunnel.address), "dev", TUNNEL_BRIDGE)
        await run("ip", "link", "set", TUNNEL_BRIDGE, "up")
