"""The external network on one machine: where instances meet the world.

The external bridge has an address of ours and is a network of its own; what leaves it for elsewhere goes out under the
machine's own address. Nothing that the machine had is changed but `ip_forward`, which is written down and put back.
"""

import ipaddress
import json
from collections.abc import Callable, Sequence
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path
from typing import Any

import msgspec

from pileus.kernel.errors import Conflict
from pileus.kernel.files import write_atomically
from pileus.kernel.programs import ProgramFailed, run
from pileus.machine.layout import Layout, boot_id
from pileus.machine.openvswitch import EXTERNAL_BRIDGE

DEFAULT_ADDRESS = IPv4Interface("172.31.255.1/24")

_TABLE = "pileus"
_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")


class _Changed(msgspec.Struct, frozen=True):
    """What the machine had before we changed it; worth nothing after a boot, which undoes the change by itself."""

    boot: str
    ip_forward: str


class ExternalNetwork:
    """The address on the external bridge, and the way from there out of the machine."""

    def __init__(self, layout: Layout, address: IPv4Interface, say: Callable[[str], None]) -> None:
        self._address = address
        self._say = say
        self._notes = layout.machine / "changed.json"

    async def check(self) -> None:
        """Refuse an address range that the machine already reaches by another way.

        Raises:
            Conflict: with the route that is in the way.
        """
        routes = json.loads(await run("ip", "-json", "-4", "route", "show", "table", "all"))
        clash = clashing_route(self._address.network, routes)
        if clash is not None:
            raise Conflict(
                f"the external network {self._address.network} overlaps with this machine's route to {clash}; "
                "choose another range for it"
            )

    async def up(self) -> None:
        """Give the bridge its address and open the way out; says each change to the machine that it makes."""
        if str(self._address) not in await addresses_of(EXTERNAL_BRIDGE):
            await run("ip", "address", "replace", str(self._address), "dev", EXTERNAL_BRIDGE)
            await run("ip", "link", "set", EXTERNAL_BRIDGE, "up")
            self._say(f"this machine has the address {self._address} on {EXTERNAL_BRIDGE}, the external network")
        self._forward()
        rule = masquerade_rule(self._address.network)
        if rule not in await _table("ip"):
            await run("nft", "-f", "-", stdin=masquerade_table(rule).encode())
            self._say(
                f"what leaves {self._address.network} goes out under this machine's address (nftables, table {_TABLE})"
            )
        for chain in drops_forwarded(json.loads(await run("nft", "-json", "list", "chains"))):
            self._say(
                f"the firewall of this machine drops what it forwards ({chain}): instances will not reach the world "
                f"until it accepts forwarding from and to {EXTERNAL_BRIDGE}"
            )

    def _forward(self) -> None:
        before = _FORWARD.read_text(encoding="ascii").strip()
        if before != "0":
            return
        write_atomically(self._notes, msgspec.json.encode(_Changed(boot_id(), before)), mode=0o644)
        _FORWARD.write_text("1", encoding="ascii")
        self._say("this machine now forwards IPv4 packets (net.ipv4.ip_forward was 0)")

    async def down(self) -> None:
        """Take back every change; the bridge goes with its switch."""
        for family in ("ip", "netdev"):
            if await _table(family):
                await run("nft", "delete", "table", family, _TABLE)
        self._forward_as_before()

    def _forward_as_before(self) -> None:
        changed = self._changed()
        if changed is not None:
            _FORWARD.write_text(changed.ip_forward, encoding="ascii")
            self._say(f"net.ipv4.ip_forward is {changed.ip_forward} again")
        self._notes.unlink(missing_ok=True)

    async def leftovers(self) -> list[str]:
        """What there still is of the changes."""
        tables = [f"nftables table {family} {_TABLE}" for family in ("ip", "netdev") if await _table(family)]
        return tables if self._changed() is None else [*tables, "net.ipv4.ip_forward"]

    def _changed(self) -> _Changed | None:
        try:
            changed = msgspec.json.decode(self._notes.read_bytes(), type=_Changed)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None
        return changed if changed.boot == boot_id() else None


async def guard(link: str) -> None:
    """Keep the frames of a port from this machine's own network stack; idempotent.

    With the user-space datapath Open vSwitch only taps a port, and the kernel sees every frame of it as well: a guest
    could reach the host's addresses past all security groups. The tap comes before this hook and is not affected.
    """
    hook = f'type filter hook ingress device "{link}" priority -500; policy drop;'
    rules = f"add table netdev {_TABLE}\nadd chain netdev {_TABLE} {_guard_of(link)} {{ {hook} }}\n"
    await run("nft", "-f", "-", stdin=rules.encode())


async def unguard(link: str) -> None:
    """Take the guard from a port, also when the port is gone; idempotent."""
    if f"chain {_guard_of(link)} " in await _table("netdev"):
        await run("nft", "delete", "chain", "netdev", _TABLE, _guard_of(link))


def _guard_of(link: str) -> str:
    """The chain for a port; a name of its own, because a port may be called like one of nft's words."""
    return f"on-{link}"


def clashing_route(network: IPv4Network, routes: Sequence[dict[str, Any]]) -> str | None:
    """The destination of a route that overlaps with a network, but not a default route or one of our own bridge.

    Args:
        network: the network that is to be used.
        routes: what `ip -json route` says; `Any`, because it is another program's JSON.
    """
    for route in routes:
        if route["dst"] == "default" or route.get("dev") == EXTERNAL_BRIDGE:
            continue
        if ipaddress.ip_network(route["dst"]).overlaps(network):
            return str(route["dst"])
    return None


def drops_forwarded(listed: dict[str, Any]) -> list[str]:
    """The chains, in `nft -json list chains`, that drop a forwarded packet unless a rule of theirs accepts it."""
    chains = (each["chain"] for each in listed["nftables"] if "chain" in each)
    return [
        f"{each['family']} {each['table']} {each['name']}"
        for each in chains
        if each.get("hook") == "forward" and each.get("policy") == "drop"
    ]


def masquerade_rule(network: IPv4Network) -> str:
    """The rule, as nft lists it."""
    return f'ip saddr {network} oifname != "{EXTERNAL_BRIDGE}" masquerade'


def masquerade_table(rule: str) -> str:
    """The table with the rule, in the place of an earlier one."""
    return (
        f"table ip {_TABLE}\n"
        f"delete table ip {_TABLE}\n"
        f"table ip {_TABLE} {{\n"
        "  chain postrouting {\n"
        "    type nat hook postrouting priority srcnat\n"
        f"    {rule}\n"
        "  }\n"
        "}\n"
    )


async def addresses_of(link: str) -> list[str]:
    """The IPv4 addresses of a link, each with the length of its prefix."""
    links = json.loads(await run("ip", "-json", "-4", "address", "show", "dev", link))
    return [f"{each['local']}/{each['prefixlen']}" for link in links for each in link.get("addr_info", [])]


async def _table(family: str) -> str:
    try:
        return await run("nft", "list", "table", family, _TABLE)
    except ProgramFailed:
        return ""
