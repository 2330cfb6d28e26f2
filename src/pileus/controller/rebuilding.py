"""Making a cloud's records again from what its hosts keep. Pure.

Hosts are right: what a guest is, and which disks and ports it has, is taken from what its host was told. The copies
that the hosts keep of the controller's records tell the rest. Where a guest's own records are not all there it stays a
guest without a record, which everybody leaves alone, rather than become one that is changed at the next opportunity.
"""

from collections.abc import Container, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, TypeVar

import msgspec

from pileus.cloud.backups.model import BACKUPS, BEING_MADE, Backup, BackupState
from pileus.cloud.floatingips.model import FLOATING_IPS
from pileus.cloud.hosts.model import HOSTS, Host
from pileus.cloud.images.model import IMAGES
from pileus.cloud.instances.model import (
    FIRST_BOOTS,
    INSTANCES,
    PASSWORD_CHANGES,
    SETTLED,
    FirstBootData,
    Instance,
    InstanceState,
)
from pileus.cloud.nat.model import PORT_FORWARDINGS, SNAT_RULES
from pileus.cloud.networks.model import NETWORK_SHARES, NETWORKS, PORTS, ROUTERS, SUBNETS, Port, PortState
from pileus.cloud.peerings.model import PEERINGS
from pileus.cloud.pools.model import POOLS
from pileus.cloud.projects.model import PROJECTS
from pileus.cloud.reservations.model import RESERVATIONS
from pileus.cloud.schedules.model import SCHEDULES
from pileus.cloud.securitygroups.model import SECURITY_GROUPS, SECURITY_RULES
from pileus.cloud.servergroups.model import SERVER_GROUPS
from pileus.cloud.snapshots.model import SNAPSHOTS, Snapshot, SnapshotState
from pileus.cloud.storagepools.model import STANDARD, STORAGE_POOLS, StoragePool
from pileus.cloud.volumes.model import VOLUMES, Volume, VolumeState
from pileus.controller.copies import COPIED, OF_EVERYBODY
from pileus.kernel.ids import HostId, InstanceId, PoolId
from pileus.kernel.units import GIB
from pileus.link.copies import Copy, KeptGuest, Recalled
from pileus.link.guests import GuestSpec, Power
from pileus.link.volumes import VolumeSpec
from pileus.state.kinds import Kind, Unreadable
from pileus.state.records import Record
from pileus.state.store import StoredRecord

R = TypeVar("R", bound=Record)

_POWERED = {
    Power.RUNNING: InstanceState.RUNNING,
    Power.STOPPED: InstanceState.STOPPED,
    Power.PAUSED: InstanceState.PAUSED,
}


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that one host keeps."""

    copies: tuple[Copy, ...] = ()
    guests: tuple[KeptGuest, ...] = ()
    volumes: tuple[VolumeSpec, ...] = ()

    def with_page(self, page: Recalled) -> "Kept":
        return Kept(
            copies=(*self.copies, *page.copies),
            guests=(*self.guests, *page.guests),
            volumes=(*self.volumes, *page.volumes),
        )


class Rebuilt(msgspec.Struct, frozen=True, kw_only=True):
    """The records of a cloud, and what could not be known."""

    records: tuple[Record, ...]
    missing: tuple[str, ...]
    """In sentences."""


def rebuilt(kept: Mapping[HostId, Kept], kinds: Iterable[Kind[Any]], images: Container[str], now: datetime) -> Rebuilt:
    """The records that these hosts keep copies of, brought to what is on the hosts.

    Args:
        kept: by host, what it keeps.
        kinds: all that there are.
        images: ids of the images whose data are still there.
        now: the time.
    """
    return _Rebuilding(kept, kinds, images, now).result()


class _Rebuilding:
    def __init__(
        self, kept: Mapping[HostId, Kept], kinds: Iterable[Kind[Any]], images: Container[str], now: datetime
    ) -> None:
        self._kept = kept
        self._kinds = {kind.name: kind for kind in kinds}
        self._images = images
        self._now = now
        self._copies = self._newest_copies()
        self._records: dict[str, dict[str, Record]] = {}
        self._missing: list[str] = []

    def result(self) -> Rebuilt:
        self._take_all(POOLS)
        self._hosts()
        for kind in (PROJECTS, *OF_EVERYBODY):
            self._take_all(kind)
        self._take_all(NETWORKS, (PROJECTS, "project_id"))
        self._take_all(NETWORK_SHARES, (NETWORKS, "network_id"), (PROJECTS, "to_project_id"))
        self._take_all(SUBNETS, (NETWORKS, "network_id"))
        self._pools_without_networks_that_are_gone()
        self._take_all(SERVER_GROUPS, (PROJECTS, "project_id"))
        self._take_all(SECURITY_GROUPS, (PROJECTS, "project_id"))
        self._take_all(SECURITY_RULES, (SECURITY_GROUPS, "group_id"), (SECURITY_GROUPS, "remote_group_id"))
        self._take_all(ROUTERS, (SUBNETS, "subnet_ids"))
        self._take_all(RESERVATIONS, (SUBNETS, "subnet_id"))
        self._take_all(PEERINGS, (ROUTERS, "router_id"), (ROUTERS, "peer_router_id"))
        for host, kept in self._kept.items():
            for guest in kept.guests:
                self._guest(host, guest, kept)
            for volume in kept.volumes:
                self._volume(host, volume)
        for floating in self._read(FLOATING_IPS):
            leads_to = ((PORTS, floating.port_id), (ROUTERS, floating.router_id), (NETWORKS, floating.network_id))
            if all(self._has(kind, id) for kind, id in leads_to if id is not None):
                self._put(FLOATING_IPS, floating)
            else:
                self._missing.append(f"floating IP {floating.address}: what it led to is not known")
        self._take_all(PORT_FORWARDINGS, (FLOATING_IPS, "floating_ip_id"), (PORTS, "port_id"), (ROUTERS, "router_id"))
        self._take_all(SNAT_RULES, (FLOATING_IPS, "floating_ip_id"), (PORTS, "port_id"), (ROUTERS, "router_id"))
        self._take_all(SCHEDULES, (INSTANCES, "instance_id"), (VOLUMES, "volume_id"))
        self._kept_content()
        for image in self._read(IMAGES):
            if image.id in self._images:
                self._put(IMAGES, image)
            else:
                self._missing.append(f"image {image.name} ({image.id}): its data are gone; upload it again")
        return Rebuilt(
            records=tuple(
                msgspec.structs.replace(record, revision=0)
                for of_kind in self._records.values()
                for _, record in sorted(of_kind.items())
            ),
            missing=(*self._missing, *self._never_copied()),
        )

    def _newest_copies(self) -> dict[str, dict[str, Copy]]:
        """Of every record the newest copy: hosts that were cut off have older ones."""
        newest: dict[str, dict[str, Copy]] = {}
        for kept in self._kept.values():
            for copy in kept.copies:
                of_kind = newest.setdefault(copy.kind, {})
                known = of_kind.get(copy.id)
                if known is None or known.revision < copy.revision:
                    of_kind[copy.id] = copy
        return newest

    def _read(self, kind: Kind[R]) -> Iterator[R]:
        for copy in self._copies.get(kind.name, {}).values():
            if (record := self._record(kind, copy)) is not None:
                yield record

    def _copy(self, kind: Kind[R], id: str) -> R | None:
        copy = self._copies.get(kind.name, {}).get(id)
        return self._record(kind, copy) if copy is not None else None

    def _record(self, kind: Kind[R], copy: Copy) -> R | None:
        stored = StoredRecord(
            kind=kind.name, id=copy.id, revision=copy.revision, version=copy.version, body=bytes(copy.body)
        )
        try:
            return kind.read(stored)
        except Unreadable as unreadable:
            self._missing.append(unreadable.detail)
            return None

    def _has(self, kind: Kind[Any], id: str) -> bool:
        return id in self._records.get(kind.name, {})

    def _put(self, kind: Kind[R], record: R) -> None:
        self._records.setdefault(kind.name, {})[record.id] = record

    def _take_all(self, kind: Kind[Any], *refers: tuple[Kind[Any], str]) -> None:
        """Every record there is a copy of, if what it refers to by these fields is there."""
        for record in self._read(kind):
            if all(self._has(of, id) for of, field in refers for id in _ids(getattr(record, field))):
                self._put(kind, record)
            else:
                self._missing.append(f"{_called(kind, record)}: what it belongs to is not known")

    def _pools_without_networks_that_are_gone(self) -> None:
        for pool in self._read(POOLS):
            if pool.default_network_id is not None and not self._has(NETWORKS, pool.default_network_id):
                self._put(POOLS, msgspec.structs.replace(pool, default_network_id=None))

    def _hosts(self) -> None:
        for id in self._kept:
            host = self._copy(HOSTS, id)
            pool = host.pool_id if host is not None else None
            if pool is None or not self._has(POOLS, pool):
                pools = self._records.get(POOLS.name, {})
                pool = next((PoolId(each) for each in pools), None)
            if pool is None:
                self._missing.append(f"host {id}: no host knows of any pool; let it join again")
                continue
            if host is None:
                self._missing.append(f"host {id}: its name and place are not known; it is called by its id")
                host = Host(id=id, created_at=self._now, name=f"host-{id[-12:]}", pool_id=pool, since=self._now)
            self._put(HOSTS, msgspec.structs.replace(host, pool_id=pool, connected=False, since=self._now))

    def _guest(self, host: HostId, guest: KeptGuest, kept: Kept) -> None:
        spec = guest.spec
        instance = self._copy(INSTANCES, spec.id)
        ports = [self._copy(PORTS, nic.port) for nic in spec.nics]
        volumes = {volume.id for volume in kept.volumes}
        why = self._why_not(host, instance, ports)
        if why or instance is None:
            self._missing.append(f"instance {spec.name} ({spec.id}) on host {host}: {why}; its guest is left alone")
            return
        if any(disk.volume not in volumes for disk in spec.disks):
            self._missing.append(f"instance {spec.name} ({spec.id}): its host does not know of all its disks")
        self._put(INSTANCES, self._as_on_its_host(host, instance, guest))
        self._put(FIRST_BOOTS, _first_boot(instance, spec))
        for port in ports:
            assert port is not None, "or the guest would be left alone"
            self._attach(port, host, spec)
        for port in self._read(PORTS) if spec.found_macs else ():
            # What it was found with, no host plugs: its copy alone tells of it.
            if port.instance_id == spec.id and port.mac in spec.found_macs and self._has(NETWORKS, port.network_id):
                self._attach(port, host, spec)

    def _attach(self, port: Port, host: HostId, spec: GuestSpec) -> None:
        attached = msgspec.structs.replace(
            port, host_id=host, instance_id=InstanceId(spec.id), state=PortState.ATTACHED
        )
        self._put(PORTS, attached)

    def _why_not(self, host: HostId, instance: Instance | None, ports: Iterable[Port | None]) -> str:
        if instance is None:
            return "its host has no copy of its record"
        if not self._has(HOSTS, host):
            return "its host is not known"
        if not self._has(PROJECTS, instance.project_id):
            return "its project is not known"
        for port in ports:
            if port is None or not self._has(NETWORKS, port.network_id):
                return "one of its ports is not known"
            if not all(self._has(SUBNETS, each.subnet_id) for each in port.addresses):
                return "the subnet of one of its addresses is not known"
            if not all(self._has(SECURITY_GROUPS, each) for each in port.security_group_ids):
                return "a security group of one of its ports is not known"
        return ""

    def _as_on_its_host(self, host: HostId, instance: Instance, guest: KeptGuest) -> Instance:
        spec = guest.spec
        group = instance.server_group_id
        pool = instance.pool_id
        return msgspec.structs.replace(
            instance,
            state=instance.state if instance.state in SETTLED else _POWERED[guest.power],
            busy_with="",
            host_id=host,
            generation=spec.generation,
            vcpus=spec.vcpus,
            memory_mib=spec.memory_mib,
            server_group_id=group if group and self._has(SERVER_GROUPS, group) else None,
            pool_id=pool if self._has(POOLS, pool) else PoolId(next(iter(self._records[POOLS.name]))),
        )

    def _volume(self, host: HostId, spec: VolumeSpec) -> None:
        volume = self._copy(VOLUMES, spec.id)
        user = next(
            (
                (guest.spec, disk)
                for guest in self._kept[host].guests
                for disk in guest.spec.disks
                if disk.volume == spec.id and self._has(INSTANCES, guest.spec.id)
            ),
            None,
        )
        if volume is None and user is not None:
            owner = self._records[INSTANCES.name][user[0].id]
            assert isinstance(owner, Instance)
            volume = Volume(
                id=spec.id, created_at=owner.created_at, project_id=owner.project_id, name=spec.id, size_gib=1
            )
            self._missing.append(f"volume {spec.id} of instance {owner.name}: its name is not known")
        if volume is None or not self._has(PROJECTS, volume.project_id):
            self._missing.append(f"volume {spec.id} on host {host}: whose it is, is not known; its data stay there")
            return
        self._put(
            VOLUMES,
            msgspec.structs.replace(
                volume,
                host_id=host,
                storage_pool=spec.pool,
                storage_class="" if spec.found else self._class_of(spec.pool) or volume.storage_class or STANDARD,
                moving_to="",
                moving_to_class="",
                generation=spec.generation,
                size_gib=-(-spec.size_bytes // GIB),
                state=VolumeState.IN_USE if user else VolumeState.AVAILABLE,
                instance_id=InstanceId(user[0].id) if user else None,
                slot=user[1].slot if user else None,
                found=spec.found,
            ),
        )

    def _class_of(self, storage_pool: str) -> str:
        pools = self._records.get(STORAGE_POOLS.name, {}).values()
        found = (each for each in pools if isinstance(each, StoragePool) and each.name == storage_pool)
        return next((each.storage_class for each in found), "")

    def _kept_content(self) -> None:
        """Snapshots and backups, which can be used, or at least deleted; what tasks were at work on them is lost."""
        self._take_all(SNAPSHOTS, (VOLUMES, "volume_ids"))
        for snapshot in list(self._records.get(SNAPSHOTS.name, {}).values()):
            assert isinstance(snapshot, Snapshot)
            schedule = snapshot.schedule_id if self._has(SCHEDULES, snapshot.schedule_id or "") else None
            there = msgspec.structs.replace(snapshot, state=SnapshotState.AVAILABLE, schedule_id=schedule)
            self._put(SNAPSHOTS, there)
        for backup in self._read(BACKUPS):
            self._backup(backup)

    def _backup(self, backup: Backup) -> None:
        if not self._has(PROJECTS, backup.project_id) or not self._has(HOSTS, backup.host_id):
            self._missing.append(f"backup {backup.name} ({backup.id}): whose it is, is not known; its data stay there")
        elif backup.state in BEING_MADE:
            self._missing.append(f"backup {backup.name} ({backup.id}): it was being made, and is not whole")
        else:
            schedule = backup.schedule_id if self._has(SCHEDULES, backup.schedule_id or "") else None
            gone = [id for id in backup.based_volume_ids if not self._has(VOLUMES, id)]
            there = msgspec.structs.replace(backup, state=BackupState.AVAILABLE)
            self._put(BACKUPS, there.without(gone).made_by(schedule))

    def _never_copied(self) -> Iterator[str]:
        yield "users, their passwords, tokens, groups and grants: a new administrator lets them in again"
        yield "projects, networks and all else of projects that have nothing on any host that answered"
        yield "volumes that were never attached, ports without an instance, and floating IPs without a port"
        others = sorted(name.replace("_", " ") for name in self._kinds if name not in COPIED | _SAID)
        if others:
            yield f"of every project: {', '.join(others)}"


_SAID = frozenset({"user", "password", "token", "token_secret", "grant", FIRST_BOOTS.name, PASSWORD_CHANGES.name})
"""Kinds that are told of in other words."""


def _first_boot(instance: Instance, spec: GuestSpec) -> FirstBootData:
    told = spec.first_boot
    return FirstBootData(
        id=instance.id,
        created_at=instance.created_at,
        project_id=instance.project_id,
        hostname=told.hostname,
        public_keys=told.public_keys,
        user_data=told.user_data,
    )


def _ids(value: str | tuple[str, ...] | None) -> tuple[str, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else value


def _called(kind: Kind[Any], record: Record) -> str:
    return f"{kind.name.replace('_', ' ')} {getattr(record, 'name', '')} ({record.id})"
