"""Where instances go: the scheduler's fleet, kept in step with the records."""

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from pileus.cloud.hosts.model import HOSTS, Host, HostState
from pileus.cloud.instances.model import INSTANCES, Instance, InstanceState
from pileus.cloud.networks.model import Network
from pileus.cloud.pools.model import POOLS, Pool
from pileus.cloud.servergroups.model import SERVER_GROUPS
from pileus.cloud.storagepools.model import LOCAL, Purpose, StoragePool
from pileus.cloud.volumes.model import VOLUMES, Volume
from pileus.kernel.errors import Conflict, NoCapacity
from pileus.kernel.ids import HostId, PoolId, ProjectId, ServerGroupId
from pileus.kernel.units import GIB, MIB, size_text
from pileus.link.storagepools import PoolObserved
from pileus.link.templates import FRAMES, GuestTemplate
from pileus.operations.plan import Reason
from pileus.scheduler import Capacity, Demand, Fleet, GroupDemand, HostRole, HostView, Load, Placement, StorageRoom
from pileus.state.records import Record
from pileus.state.state import State

_GIB_IN_MIB = GIB // MIB
_STEP = 256 * MIB
_OWN_MEMORY_MIB = 512
"""What a host needs for itself."""


class Placer:
    """A view of the state: every host with what is promised on it, ready to choose from."""

    def __init__(self) -> None:
        self.fleet = Fleet()
        self._pools: dict[str, Pool] = {}
        self._hosts: dict[str, Host] = {}
        self._storage_pools: dict[str, StoragePool] = {}
        self._supplies: dict[HostId, Mapping[str, PoolObserved]] = {}

    def changed(self, kind: str, before: Record | None, after: Record | None) -> None:
        match kind:
            case "host":
                self._host_changed(before, after)
            case "pool":
                self._pool_changed(before, after)
            case "instance":
                self._instance_changed(before, after)
            case "volume":
                self._volume_changed(before, after)
            case "storage_pool":
                self._storage_pool_changed(before, after)
            case _:
                pass

    def report(self, host: HostId, load: Load) -> None:
        """Take a host's measured load."""
        self.fleet.report(host, load)

    def supply(self, host: HostId, pools: Mapping[str, PoolObserved]) -> None:
        """Take what a host has of storage pools."""
        self._supplies[host] = pools
        if (known := self._hosts.get(host)) is not None:
            self._describe(known)

    def _host_changed(self, before: Record | None, after: Record | None) -> None:
        if isinstance(after, Host):
            self._hosts[after.id] = after
            self._describe(after)
        elif before is not None:
            del self._hosts[before.id]
            self.fleet.remove_host(HostId(before.id))

    def _pool_changed(self, before: Record | None, after: Record | None) -> None:
        if isinstance(after, Pool):
            self._pools[after.id] = after
            for host in self._hosts.values():
                if host.pool_id == after.id:
                    self._describe(host)
        elif before is not None:
            del self._pools[before.id]

    def _describe(self, host: Host) -> None:
        # Kinds load in no particular order: a host that is there before its pool is described again with the pool.
        pool = self._pools.get(host.pool_id)
        if pool is not None:
            self.fleet.put_host(view_of(host, pool, self.storage_of(HostId(host.id))))

    def _instance_changed(self, before: Record | None, after: Record | None) -> None:
        if not isinstance(after, Instance):
            if before is not None:
                self.fleet.release(before.id)
        elif not isinstance(before, Instance) or _takes(before) != _takes(after):
            self.fleet.promise(after.id, after.host_id, self.demand_of(after))

    def _volume_changed(self, before: Record | None, after: Record | None) -> None:
        if isinstance(after, Volume) and after.host_id is not None:
            self.fleet.promise(after.id, after.host_id, _disk_demand(after.size_gib, None, after.storage_pool))
        elif before is not None:
            self.fleet.release(before.id)
        self._move_changed(before, after)

    def _move_changed(self, before: Record | None, after: Record | None) -> None:
        """What moves is promised room in both storage pools."""
        if isinstance(after, Volume) and after.moving_to and after.host_id is not None:
            demand = _disk_demand(after.size_gib, None, after.moving_to)
            self.fleet.promise(f"{after.id} on its way", after.host_id, demand)
        elif isinstance(before, Volume) and before.moving_to:
            self.fleet.release(f"{before.id} on its way")

    def _storage_pool_changed(self, before: Record | None, after: Record | None) -> None:
        if isinstance(after, StoragePool):
            self._storage_pools[after.name] = after
        elif isinstance(before, StoragePool):
            del self._storage_pools[before.name]
        for host in self._hosts.values():
            self._describe(host)

    def storage_of(self, host: HostId) -> Mapping[str, StorageRoom]:
        """What a host has of each storage pool for volumes, its own disk included."""
        found = self._supplies.get(host, {})
        return {
            name: _room(found[name], pool)
            for name, pool in self._storage_pools.items()
            if name in found and Purpose.VOLUMES in pool.purposes
        }

    def demand_of(self, instance: Instance) -> Demand:
        """What an instance takes of its host besides its disk, which is a volume; nothing if it is deleted."""
        pool = self._pools.get(instance.pool_id)
        if instance.state is InstanceState.DELETED:
            return _disk_demand(0, pool)
        group = instance.server_group_id
        return Demand(
            vcpus=instance.vcpus,
            memory_mib=instance.promised_memory_mib,
            project=instance.project_id,
            pool=instance.pool_id,
            pool_name=pool.name if pool else "",
            group=GroupDemand(id=group, name="") if group else None,
            traits=instance.frame.needs,
        )


def _takes(instance: Instance) -> tuple[object, ...]:
    deleted = instance.state is InstanceState.DELETED
    return (
        instance.host_id,
        instance.vcpus,
        instance.promised_memory_mib,
        instance.server_group_id,
        deleted,
    )


def view_of(host: Host, pool: Pool, storage: Mapping[str, StorageRoom]) -> HostView:
    """A host as the scheduler sees it, with what it has of storage pools."""
    facts = host.facts
    physical = Capacity()
    own = storage.get(LOCAL)
    if facts is not None:
        memory = max(facts.memory_mib - _OWN_MEMORY_MIB, 0)
        disk_mib = facts.disk_mib if own is None else int(own.promisable_mib / own.overcommit)
        physical = Capacity(vcpus=facts.vcpus, memory_mib=memory, disk_mib=disk_mib)
    return HostView(
        id=HostId(host.id),
        name=host.name,
        pool=PoolId(pool.id),
        pool_name=pool.name,
        physical=physical,
        cpu_overcommit=pool.cpu_overcommit,
        memory_overcommit=pool.memory_overcommit,
        disk_overcommit=own.overcommit if own is not None else 1.0,
        disk_closed=own.closed if own is not None else "",
        storage={name: room for name, room in storage.items() if name != LOCAL},
        zone=host.zone,
        room=host.room,
        rack=host.rack,
        traits=frozenset((*facts.traits, *map(wire_trait, facts.physical_networks))) if facts else frozenset(),
        roles=frozenset(HostRole(each) for each in host.roles),
        out_of_service=_out_of_service(host),
    )


def _out_of_service(host: Host) -> str | None:
    if host.state is HostState.MAINTENANCE:
        return "in maintenance"
    return None if host.connected else "its agent is not connected"


def demand_for(
    state: State,
    project: ProjectId,
    size: tuple[int, int, int],
    pool: Pool,
    *,
    zone: str | None,
    server_group_id: str | None,
    template: GuestTemplate,
    storage_pool: str = LOCAL,
    networks: Iterable[Network] = (),
) -> Demand:
    """What a new instance of this size (vCPUs, memory in MiB, disk in GiB) needs, to be connected to these networks."""
    vcpus, memory_mib, disk_gib = size
    group = state[SERVER_GROUPS].get(server_group_id) if server_group_id else None
    return Demand(
        vcpus=vcpus,
        memory_mib=memory_mib,
        disk_mib=disk_gib * _GIB_IN_MIB,
        storage_pool=in_scheduler(storage_pool),
        project=project,
        pool=PoolId(pool.id),
        pool_name=pool.name,
        zone=zone,
        group=GroupDemand(id=ServerGroupId(group.id), name=group.name, policy=group.policy) if group else None,
        traits=FRAMES[template].needs.union(wire_trait(each.physical_network) for each in networks if each.is_physical),
    )


def wire_trait(physical_network: str) -> str:
    """What a host has that is on a wire, in the words of a verdict."""
    return f"physical network {physical_network}"


def _room(found: PoolObserved, pool: StoragePool) -> StorageRoom:
    use = found.use
    if use is None:
        return StorageRoom(closed=found.reason)
    full = f"only {size_text(use.free_bytes)} of {size_text(use.total_bytes)} really free"
    return StorageRoom(
        # In steps, so that not each byte that is written makes the scheduler think anew.
        promisable_mib=use.promisable_bytes(pool.overcommit) // _STEP * (_STEP // MIB),
        overcommit=pool.overcommit,
        closed=full if pool.overcommit > 1 and not use.has_room else "",
    )


def in_scheduler(storage_pool: str) -> str:
    """What the scheduler calls a storage pool: it takes a host's own disk for granted."""
    return "" if storage_pool == LOCAL else storage_pool


def _disk_demand(size_gib: int, pool: Pool | None, storage_pool: str = LOCAL) -> Demand:
    """What a volume needs. It is of no project: where a project's volumes are says nothing of its instances."""
    return Demand(
        vcpus=0,
        memory_mib=0,
        disk_mib=size_gib * _GIB_IN_MIB,
        storage_pool=in_scheduler(storage_pool),
        project=ProjectId(""),
        pool=PoolId(pool.id if pool else ""),
        pool_name=pool.name if pool else "",
    )


def room_for_volume(state: State, fleet: Fleet, host: HostId, size_gib: int, storage_pool: str = LOCAL) -> None:
    """See to it that a host can promise so much more of a storage pool. Raises NoCapacity with the reason."""
    pool = state[POOLS].get(state[HOSTS].get(host).pool_id)
    fleet.place(msgspec.structs.replace(_disk_demand(size_gib, pool, storage_pool), only=frozenset({host})))


def placed(fleet: Fleet, demand: Demand, storage_pools: Sequence[StoragePool]) -> tuple[Placement, Demand, StoragePool]:
    """The host to take, with the first of these storage pools that has room on any; the demand as it was then.

    Raises:
        NoCapacity: no host fits, with the disk in none of them.
    """
    refusals: list[NoCapacity] = []
    for pool in storage_pools:
        with_it = msgspec.structs.replace(demand, storage_pool=in_scheduler(pool.name))
        try:
            return fleet.place(with_it), with_it, pool
        except NoCapacity as refused:
            refusals.append(refused)
    first, *others = refusals
    also = {
        f"{host}, storage pool {pool.name}": why
        for pool, each in zip(storage_pools[1:], others, strict=True)
        for host, why in each.because.items()
    }
    raise NoCapacity(first.detail, because={**first.because, **also})


def room_on(
    placer: Placer, state: State, host: HostId, size_gib: int, storage_pools: Sequence[StoragePool]
) -> StoragePool:
    """The first of these storage pools that can promise so much more on a host. Raises NoCapacity."""
    pool = state[POOLS].get(state[HOSTS].get(host).pool_id)
    demand = msgspec.structs.replace(_disk_demand(size_gib, pool), only=frozenset({host}))
    return placed(placer.fleet, demand, storage_pools)[2]


def check_real_room(placer: Placer, host: HostId, storage_pool: str) -> None:
    """See to it that a storage pool on a host is not so full that nothing new is kept there.

    Raises:
        Conflict: it is; with the figures.
    """
    room = placer.storage_of(host).get(storage_pool)
    if room is not None and room.closed:
        raise Conflict(f"storage pool {storage_pool}: {room.closed}; grow it, or delete or move what is in it")


def reasons(fleet: Fleet, demand: Demand, chosen: HostId) -> Sequence[Reason]:
    """What speaks for and against each host, for a plan that is shown."""
    return [
        Reason(about=verdict.host.name, says=verdict.words, chosen=verdict.host.id == chosen)
        for verdict in fleet.explain(demand)
    ]


def refitted(placer: Placer, instance: Instance, changed: Instance, *, storage_pool: str = LOCAL) -> Sequence[Reason]:
    """What its host says to an instance that is to take more of it. Raises NoCapacity if it has no room.

    `storage_pool` is where the disk is that it boots from.
    """
    has_it = instance.state is not InstanceState.DELETED
    if has_it and all(
        getattr(changed, of) <= getattr(instance, of) for of in ("vcpus", "promised_memory_mib", "disk_gib")
    ):
        return ()
    grown_gib = max(0, changed.disk_gib - instance.disk_gib) if has_it else 0
    demand = msgspec.structs.replace(
        placer.demand_of(changed), disk_mib=grown_gib * _GIB_IN_MIB, storage_pool=in_scheduler(storage_pool)
    )
    verdict = placer.fleet.refit(instance.id, demand)
    return [Reason(about=verdict.host.name, says=verdict.words, chosen=True)]


def default_pool(state: State) -> Pool | None:
    return state[POOLS].one("default", key=True)


def running_on(state: State, host: HostId) -> frozenset[str]:
    """The instances that run on a host, by the records, and the volumes there."""
    running = {each.id for each in state[INSTANCES].by("host_id", host) if each.state is InstanceState.RUNNING}
    return frozenset(running.union(state[VOLUMES].ids_by("host", host)))


def host_name(state: State, id: HostId) -> str:
    host = state[HOSTS].find(id)
    return host.name if host is not None else id
