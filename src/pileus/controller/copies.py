"""Has every host keep copies of the records that concern it, so that a lost database can be made again from the hosts.

A reconciler: woken by changes, it compares what a connected host ought to keep with what it does, and sends the
difference. A host keeps what it must know to be rebuilt, and nothing of tenants that have nothing there: its instances,
volumes, snapshots, backups and ports; the projects of those with their networks, rules and schedules; flavors, pools
and external networks, which everybody may see.
"""

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import structlog

from pileus.cloud.backups.model import BACKUPS
from pileus.cloud.copies import copy_of
from pileus.cloud.flavors.model import FLAVORS
from pileus.cloud.floatingips.model import FLOATING_IPS
from pileus.cloud.hosts.each import on_each
from pileus.cloud.hosts.model import HOSTS
from pileus.cloud.images.model import IMAGES
from pileus.cloud.instances.model import INSTANCES, Instance
from pileus.cloud.nat.model import PORT_FORWARDINGS, SNAT_RULES, rules_of
from pileus.cloud.networks.model import NETWORK_SHARES, NETWORKS, PHYSICAL, PORTS, ROUTERS, SUBNETS, Port
from pileus.cloud.peerings.model import PEERINGS
from pileus.cloud.pools.model import POOLS
from pileus.cloud.projects.model import PROJECTS
from pileus.cloud.reservations.model import RESERVATIONS
from pileus.cloud.schedules.model import SCHEDULES
from pileus.cloud.securitygroups.model import SECURITY_GROUPS, SECURITY_RULES
from pileus.cloud.servergroups.model import SERVER_GROUPS
from pileus.cloud.snapshots.model import SNAPSHOTS
from pileus.cloud.storagepools.model import STORAGE_BACKINGS, STORAGE_POOLS
from pileus.cloud.volumes.model import VOLUMES, Volume
from pileus.cloud.world import Hosts, Nothing
from pileus.kernel.errors import PileusError
from pileus.kernel.ids import HostId
from pileus.link.copies import CopiesKept, CopiesUpdate, Copy
from pileus.link.messages import Message, Method
from pileus.state.kinds import Kind
from pileus.state.records import Record
from pileus.state.state import State
from pileus.state.store import Event

log = structlog.stdlib.get_logger()

ON_HOSTS: Sequence[Kind[Any]] = (INSTANCES, VOLUMES, SNAPSHOTS, BACKUPS, PORTS, FLOATING_IPS)
"""What is on one host, or follows what is."""
OF_PROJECTS: Sequence[Kind[Any]] = (
    NETWORKS,
    SUBNETS,
    RESERVATIONS,
    ROUTERS,
    PEERINGS,
    PORT_FORWARDINGS,
    SNAT_RULES,
    SECURITY_GROUPS,
    SECURITY_RULES,
    SERVER_GROUPS,
    SCHEDULES,
)
"""What goes to every host on which its project has something."""
_PLACED: Sequence[Kind[Any]] = (INSTANCES, VOLUMES)
OF_EVERYBODY: Sequence[Kind[Any]] = (FLAVORS, STORAGE_POOLS, STORAGE_BACKINGS, POOLS)
COPIED = frozenset(
    kind.name for kind in (*ON_HOSTS, *OF_PROJECTS, *OF_EVERYBODY, NETWORK_SHARES, PROJECTS, HOSTS, IMAGES)
)

_PAUSE_S = 1.0
"""For which changes are gathered: an instance that is being made changes often."""
_ANSWER_S = 60.0
_AT_ONCE = 16
"""Hosts that are told at a time."""
_PAGE_BYTES = 64 * 1024
"""Of what one is told in one message, about: while a controller starts all hosts are told, and all that waits for them
is in memory."""


class _Where(msgspec.Struct, frozen=True):
    """As much of a record as says which hosts it concerns."""

    host_id: HostId | None = None
    port_id: str | None = None
    network_id: str | None = None
    subnet_id: str | None = None
    kind: str = ""


_where = msgspec.json.Decoder(_Where)


class CopyKeeper:
    """Keeps the copies on all hosts as they ought to be."""

    def __init__(self, state: State, hosts: Hosts, *, pause_s: float = _PAUSE_S) -> None:
        self._state = state
        self._hosts = hosts
        self._pause_s = pause_s
        self._sent: dict[HostId, dict[str, int]] = {}
        """What each connected host keeps: revisions by id."""
        self._due: dict[HostId, set[tuple[str, str]] | None] = {}
        """The hosts that have something to be told: kind and id of each record, or None where all is to be compared."""
        self._projects_due: set[str] = set()
        self._all_due = False
        self._wake = asyncio.Event()

    async def run(self) -> None:
        """Keep copies until cancelled."""
        forget = self._state.listen(self._came)
        try:
            while True:
                await self._wake.wait()
                await asyncio.sleep(self._pause_s)
                self._wake.clear()
                await self._round()
        finally:
            forget()

    def _came(self, events: Sequence[Event]) -> None:
        for event in events:
            if event.kind in COPIED:
                self._mark(event)
        if self._due or self._projects_due or self._all_due:
            self._wake.set()

    def _mark(self, event: Event) -> None:
        if event.kind == HOSTS.name:
            host = self._state[HOSTS].find(event.id)
            if host is not None and host.connected:
                self._due[HostId(event.id)] = None
            else:
                self._sent.pop(HostId(event.id), None)
            return
        if event.kind in _EVERYBODYS or event.kind == NETWORK_SHARES.name:
            self._all_due = True
        if event.kind == IMAGES.name:
            for kind in _PLACED:
                self._all_of(each.host_id for each in self._state.table(kind).by("image", event.id))
        for body in (event.before, event.after):
            if body:
                self._mark_where(event, _where.decode(body))

    def _mark_where(self, event: Event, where: _Where) -> None:
        host = where.host_id or self._host_of_port(where.port_id)
        if host is not None:
            changed = self._due.setdefault(host, set())
            if changed is not None:
                changed.add((event.kind, event.id))
        elif event.kind in _PROJECTS:
            self._projects_due.add(event.project or event.id)
            subnet = self._state[SUBNETS].find(where.subnet_id) if where.subnet_id else None
            network = where.network_id if subnet is None else subnet.network_id
            self._all_due |= where.kind in PHYSICAL or self._is_physical(network)

    def _all_of(self, hosts: Iterable[HostId | None]) -> None:
        self._due |= dict.fromkeys(host for host in hosts if host)

    def _host_of_port(self, id: str | None) -> HostId | None:
        port = self._state[PORTS].find(id) if id else None
        return port.host_id if port is not None else None

    def _is_physical(self, id: str | None) -> bool:
        network = self._state[NETWORKS].find(id) if id else None
        return network is not None and network.is_physical

    async def _round(self) -> None:
        if self._all_due:
            self._all_of(self._sent)
        for project in self._projects_due:
            for kind in _PLACED:
                self._all_of(each.host_id for each in self._state.table(kind).by("project", project))
        due = self._due
        self._due, self._projects_due, self._all_due = {}, set(), False
        connected = [id for id in sorted(due) if (host := self._state[HOSTS].find(id)) is not None and host.connected]
        await on_each(connected, lambda host: self._bring_up_to_date(host, due[host]), at_once=_AT_ONCE)

    async def _bring_up_to_date(self, host: HostId, changed: set[tuple[str, str]] | None) -> None:
        try:
            await self._send_what_differs(host, changed)
        except PileusError as refused:
            # It is compared anew: with the next change, or when it is back.
            self._sent.pop(host, None)
            log.info("copies not kept yet", host=host, reason=refused.detail)
            known = self._state[HOSTS].find(host)
            if known is not None and known.connected:
                self._due[host] = None
                self._wake.set()

    async def _send_what_differs(self, host: HostId, changed: set[tuple[str, str]] | None) -> None:
        if host not in self._sent:
            await self._compare(host)
            changed = None
        sent = self._sent[host]
        few = None if changed is None else self._with_all_there(host, changed, sent)
        wanted = {record.id: record for record in (wanted_on(self._state, host) if few is None else few)}
        new = [record for id, record in wanted.items() if sent.get(id) != record.revision]
        gone = [] if few is not None else [id for id in sent if id not in wanted]
        for update in _updates(self._state, new, gone):
            await self._ask(host, update)
            for copy in update.keep:
                sent[copy.id] = copy.revision
            for id in update.forget:
                del sent[id]

    def _with_all_there(
        self, host: HostId, changed: Iterable[tuple[str, str]], sent: Mapping[str, int]
    ) -> Sequence[Record] | None:
        """The changed records, if with them comes nothing that the host does not have, and nothing goes.

        Else None: then all is to be looked at, which takes as long as a host has much.
        """
        found: list[Record] = []
        for kind, id in changed:
            record = self._state.table(_OF_ONE_HOST[kind]).find(id) if kind in _OF_ONE_HOST else None
            if not isinstance(record, Instance | Volume | Port) or record.host_id != host:
                return None
            image = None if isinstance(record, Port) else record.image_id
            if record.project_id not in sent or (image and image not in sent):
                return None
            if isinstance(record, Port) and self._state[FLOATING_IPS].count_by("port_id", id):
                return None
            found.append(record)
        return found

    async def _compare(self, host: HostId) -> None:
        kept = await self._hosts.ask(host, Method.COPIES_KEPT, Message(), CopiesKept, timeout_s=_ANSWER_S)
        wanted = {record.id: record for record in wanted_on(self._state, host)}
        same = (id for id, mark in kept.marks.items() if id in wanted and copy_of(self._state, wanted[id]).mark == mark)
        self._sent[host] = dict.fromkeys(kept.marks, -1) | {id: wanted[id].revision for id in same}

    async def _ask(self, host: HostId, update: CopiesUpdate) -> None:
        await self._hosts.ask(host, Method.COPIES_UPDATE, update, Nothing, timeout_s=_ANSWER_S)


_OF_ONE_HOST: Mapping[str, Kind[Any]] = {kind.name: kind for kind in (INSTANCES, VOLUMES, PORTS)}
_EVERYBODYS = frozenset(kind.name for kind in OF_EVERYBODY)
_PROJECTS = frozenset(kind.name for kind in (*OF_PROJECTS, PROJECTS))


def wanted_on(state: State, host: HostId) -> Iterator[Record]:
    """The records that this host ought to have copies of, each once."""
    instances = state[INSTANCES].by("host_id", host)
    volumes = state[VOLUMES].by("host", host)
    ports = state[PORTS].by("host_id", host)
    yield from _one(state, HOSTS, host)
    yield from instances
    yield from volumes
    yield from state[SNAPSHOTS].by("host", host)
    backups = state[BACKUPS].by("host", host)
    yield from backups
    yield from ports
    for port in ports:
        yield from state[FLOATING_IPS].by("port_id", port.id)
    for kind in OF_EVERYBODY:
        yield from state.table(kind)
    physical = [network for kind in sorted(PHYSICAL) for network in state[NETWORKS].by("kind", kind)]
    yield from physical
    outside = [subnet for network in physical for subnet in state[SUBNETS].by("network_id", network.id)]
    yield from outside
    yield from (share for network in physical for share in state[NETWORK_SHARES].by("network", network.id))
    kept = [each for subnet in outside for each in state[RESERVATIONS].by("subnet_id", subnet.id)]
    yield from kept
    given = {each.id for each in (*physical, *outside, *kept)}
    projects = {each.project_id for each in (*instances, *volumes, *backups, *ports)}
    for project in sorted(projects):
        yield from _one(state, PROJECTS, project)
        yield from (each for each in state[FLOATING_IPS].by("project", project) if rules_of(state, each))
        for kind in OF_PROJECTS:
            yield from (each for each in state.table(kind).by("project", project) if each.id not in given)
    images = {each.image_id for each in (*instances, *volumes) if each.image_id}
    for image in sorted(images):
        yield from _one(state, IMAGES, image)


def _one(state: State, kind: Kind[Any], id: str) -> Iterator[Record]:
    if (found := state.table(kind).find(id)) is not None:
        yield found


def _updates(state: State, new: Iterable[Record], gone: Sequence[str]) -> Iterator[CopiesUpdate]:
    """What is to be told, in messages that fit the link."""
    page: list[Copy] = []
    size = 0
    for record in new:
        page.append(copy := copy_of(state, record))
        size += len(bytes(copy.body))
        if size > _PAGE_BYTES:
            yield CopiesUpdate(keep=tuple(page))
            page, size = [], 0
    if page or gone:
        yield CopiesUpdate(keep=tuple(page), forget=tuple(gone))
