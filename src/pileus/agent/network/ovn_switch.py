"""The host's Open vSwitch, spoken to through its database: ports of the integration bridge, and what it can do."""

import asyncio
from collections.abc import Mapping

from pileus.kernel.errors import TimedOut, Unavailable
from pileus.ovn.ovsdb import Json, Ovsdb, now

_DATABASE = "Open_vSwitch"


class Switch:
    """Adds and removes ports of `bridge`. Each call is idempotent, and raises Unavailable if the switch is."""

    def __init__(self, remote: str, bridge: str, *, timeout_s: float = 10.0) -> None:
        self._remote = remote
        self._bridge = bridge
        self._timeout_s = timeout_s
        self._connection: Ovsdb | None = None
        self._connecting = asyncio.Lock()
        self._done = 0
        """Up to which configuration ovs-vswitchd has done what the database says."""
        self._doing = asyncio.Event()
        """Set, and replaced by another, when that changes."""

    async def add(self, device: str, ids: Mapping[str, str], *, is_new: bool = True) -> None:
        """Have this device as a port that OVN knows by `ids`, and wait until the switch has opened it.

        A device that is not new and was opened under these ids is left alone: each change has the switch look at all
        of its ports.
        """
        connection = await self._connected()
        ports, interfaces = await connection.transact([_select("Port", device), _select("Interface", device)])
        if ports["rows"] and interfaces["rows"]:
            if not is_new and _is_open(interfaces["rows"][0], ids):
                return
            where = [["name", "==", device]]
            change = [{"op": "update", "table": "Interface", "where": where, "row": {"external_ids": _map(ids)}}]
        else:
            change = self._insertion(device, ids)
        await self._change(change)
        (found,) = await connection.transact([_select("Interface", device)])
        error = [row["error"] for row in found["rows"] if isinstance(row["error"], str)]
        if error or not found["rows"]:
            raise Unavailable(f"the switch cannot use the device {device}", internal="; ".join(error))

    async def remove(self, device: str) -> None:
        """Have no such port."""
        connection = await self._connected()
        (ports,) = await connection.transact([_select("Port", device)])
        gone = ["set", [row["_uuid"] for row in ports["rows"]]]
        if ports["rows"]:
            await self._change([self._mutation("delete", gone)])

    async def marked(self, mark: str) -> dict[str, str]:
        """The devices that have this key among their ids, with its value."""
        connection = await self._connected()
        select = {"op": "select", "table": "Interface", "where": [], "columns": ["name", "external_ids"]}
        (found,) = await connection.transact([select])
        ids = {str(row["name"]): dict(row["external_ids"][1]) for row in found["rows"]}
        return {device: str(of[mark]) for device, of in ids.items() if mark in of}

    async def mapped(self) -> tuple[str, ...]:
        """The names that OVN is told for bridges (`ovn-bridge-mappings`), of those that there are."""
        connection = await self._connected()
        told = {"op": "select", "table": "Open_vSwitch", "where": [], "columns": ["external_ids"]}
        made = {"op": "select", "table": "Bridge", "where": [], "columns": ["name"]}
        settings, bridges = await connection.transact([told, made])
        mappings = dict(settings["rows"][0]["external_ids"][1]).get("ovn-bridge-mappings", "")
        pairs = (each.strip().partition(":") for each in mappings.split(","))
        there = {row["name"] for row in bridges["rows"]}
        return tuple(sorted({name for name, _, bridge in pairs if bridge in there}))

    async def in_userspace(self) -> bool:
        """Whether the bridge forwards in ovs-vswitchd itself (`netdev`) and not in the kernel."""
        connection = await self._connected()
        (found,) = await connection.transact([_select("Bridge", self._bridge, "datapath_type")])
        if not found["rows"]:
            raise Unavailable(f"the switch has no bridge {self._bridge}")
        return found["rows"][0]["datapath_type"] == "netdev"

    async def offloads(self) -> bool:
        """Whether guests may leave checksums and segmentation to the switch."""
        if not await self.in_userspace():
            return True
        connection = await self._connected()
        select = {"op": "select", "table": "Open_vSwitch", "where": [], "columns": ["other_config"]}
        (found,) = await connection.transact([select])
        return dict(found["rows"][0]["other_config"][1]).get("userspace-tso-enable") == "true"

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    async def _connected(self) -> Ovsdb:
        async with self._connecting:
            if self._connection is None or self._connection.lost:
                connection = await Ovsdb.connect(self._remote, _DATABASE)
                self._done = 0
                await connection.monitor({"Open_vSwitch": ["cur_cfg"]}, self._told)
                self._connection = connection
            return self._connection

    def _told(self, updates: Mapping[str, Mapping[str, Json]]) -> None:
        for row in updates.get("Open_vSwitch", {}).values():
            self._done = now(row).get("cur_cfg", self._done)
        self._doing.set()
        self._doing = asyncio.Event()

    async def _change(self, operations: list[Json]) -> None:
        """Do these operations and wait until ovs-vswitchd has done what they say."""
        connection = await self._connected()
        more = {"op": "mutate", "table": "Open_vSwitch", "where": [], "mutations": [["next_cfg", "+=", 1]]}
        which = {"op": "select", "table": "Open_vSwitch", "where": [], "columns": ["next_cfg"]}
        results = await connection.transact([*operations, more, which])
        mine = results[len(operations) + 1]["rows"][0]["next_cfg"]
        try:
            async with asyncio.timeout(self._timeout_s):
                while self._done < mine and not connection.lost:
                    await self._doing.wait()
        except TimeoutError as late:
            raise TimedOut("the switch does not do what its database says", internal=self._remote) from late

    def _insertion(self, device: str, ids: Mapping[str, str]) -> list[Json]:
        interface = {"name": device, "external_ids": _map(ids)}
        port = {"name": device, "interfaces": ["named-uuid", "interface"]}
        return [
            {"op": "insert", "table": "Interface", "uuid-name": "interface", "row": interface},
            {"op": "insert", "table": "Port", "uuid-name": "port", "row": port},
            self._mutation("insert", ["named-uuid", "port"]),
        ]

    def _mutation(self, mutator: str, ports: Json) -> Json:
        where = [["name", "==", self._bridge]]
        return {"op": "mutate", "table": "Bridge", "where": where, "mutations": [["ports", mutator, ports]]}


def _select(table: str, name: str, *columns: str) -> Json:
    more = {"Interface": ("error", "ofport", "external_ids")}.get(table, ())
    return {"op": "select", "table": table, "where": [["name", "==", name]], "columns": ["_uuid", *columns, *more]}


def _is_open(interface: Mapping[str, Json], ids: Mapping[str, str]) -> bool:
    """Whether the switch has this interface in use; OVN writes ids of its own beside ours."""
    # A column without a value is an empty set.
    port, error = interface["ofport"], interface["error"]
    known = dict(interface["external_ids"][1])
    return isinstance(port, int) and port > 0 and not isinstance(error, str) and ids.items() <= known.items()


def _map(ids: Mapping[str, str]) -> Json:
    return ["map", sorted(ids.items())]
