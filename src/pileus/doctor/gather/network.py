"""This machine's own network, and OVN's databases."""

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any

from pileus.doctor.facts import LogicalPort, Network
from pileus.doctor.gather.site import Site
from pileus.kernel.programs import ProgramFailed, run
from pileus.machine.engines import EngineAddresses
from pileus.machine.external import addresses_of, drops_forwarded, masquerade_rule
from pileus.machine.openvswitch import EXTERNAL_BRIDGE, Datapath
from pileus.ovn.ovsdb import Json, Ovsdb

_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
_TABLE = "pileus"
_OURS = ("pt", "pm")
"""What the names of guests' and of metadata ports begin with."""


async def network(site: Site) -> Network:
    """Forwarding, the external network, the firewall, the guards."""
    return Network(
        forwards=_forwards(),
        masquerades=masquerade_rule(IPv4Interface(site.external).network) in await _listed("table", "ip", _TABLE),
        external_bridge=EXTERNAL_BRIDGE,
        external_address=site.external,
        external_addresses=await _addresses(),
        dropping=tuple(
            [each for each in await _dropping() if EXTERNAL_BRIDGE not in await _listed("chain", *each.split())]
        ),
        unguarded=tuple(await _unguarded(site)),
    )


def _forwards() -> bool:
    return _FORWARD.read_text(encoding="ascii").strip() != "0"


async def _addresses() -> tuple[str, ...] | None:
    try:
        return tuple(await addresses_of(EXTERNAL_BRIDGE))
    except ProgramFailed:
        return None


async def _dropping() -> Sequence[str]:
    return drops_forwarded(json.loads(await run("nft", "-json", "list", "chains")))


async def _listed(*what: str) -> str:
    try:
        return await run("nft", "list", *what)
    except ProgramFailed:
        return ""


async def _unguarded(site: Site) -> list[str]:
    """The ports without a chain that drops what they bring; where the kernel switches frames they need none."""
    if site.addresses is None or site.addresses.datapath is not Datapath.NETDEV:
        return []
    links: list[Mapping[str, Any]] = json.loads(await run("ip", "-json", "link", "show"))
    guards = await _listed("table", "netdev", _TABLE)
    ports = [str(each["ifname"]) for each in links if each["ifname"].startswith(_OURS) and len(each["ifname"]) == 14]
    return [each for each in ports if f'device "{each}"' not in guards]


async def chassis(at: EngineAddresses) -> tuple[str, ...]:
    """The hosts that OVN knows, by the names that it has for them."""
    async with _database(at.southbound, "OVN_Southbound") as southbound:
        (found,) = await southbound.transact([_select("Chassis", "name")])
    return tuple(str(row["name"]) for row in found["rows"])


async def ports(at: EngineAddresses) -> tuple[LogicalPort, ...] | None:
    """The guests' ports; None if they are in another host's database."""
    if at.northbound is None:
        return None
    async with _database(at.northbound, "OVN_Northbound") as northbound:
        (found,) = await northbound.transact([_select("Logical_Switch_Port", "name", "type", "up")])
    # The others are no guest's: routers, metadata, the way out.
    return tuple(LogicalPort(name=row["name"], up=row["up"] is True) for row in found["rows"] if not row["type"])


@asynccontextmanager
async def _database(remote: str, name: str) -> AsyncGenerator[Ovsdb]:
    connection = await Ovsdb.connect(remote, name)
    try:
        yield connection
    finally:
        await connection.close()


def _select(table: str, *columns: str) -> Json:
    return {"op": "select", "table": table, "where": [], "columns": list(columns)}
