"""Where instances go: the scheduler's fleet, kept in step with the records."""

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from pileus.cloud.hosts.model import HOSTS, Host, HostState
from pileus.cloud.instances.model import INSTANCES, Instance, InstanceState
from pileus.cloud.networks.model import Network
from pileus.cloud.pools.model import POOLS, Pool
from pileus.cloud.servergroups.model import SERVER_GROUPS
from pileus.cloud.volumes.model import BOOT_SLOT, VOLUMES, Volume
from pileus.kernel.ids import HostId, PoolId, ProjectId, ServerGroupId
from pileus.kernel.units import GIB, MIB
from pileus.link.records import PoolObserved
from pileus.link.templates import FRAMES, GuestTemplate
from pileus.operations.plan import Reason
from pileus.scheduler import Capacity, Demand, Fleet, GroupDemand, HostRole, HostView, Load
from pileus.state.records import Record
from pileus.state.state import State

_GIB_IN_MIB = GIB // MIB
_OWN_MEMORY_MIB = 512
"""What a host needs for itself."""


class Placer:
    """A view of the state: every host with what is promised on it, ready to choose from."""

    def __init__(self) -> None:
        self.fleet = Fleet()
        self._pools: dict[str, Pool] = {}
        self._hosts: dict[str, Host] = {}
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
            case _:
                pass

    def report(self, host: HostId, load: Load) -> None:
        """Take a host's measured load."""
        self.fleet.report(host, load)

    def supply(self, host: HostId, pools: Mapping[str, PoolObserved]) -> None:
        """Take what a host has of storage pools."""
        self._supplies[host] = pools

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
            self.fleet.put_host(view_of(host, pool))

    def _instance_changed(self, before: Record | None, after: Record | None) -> None:
        if not isinstance(after, Instance):
            if before is not None:
                self.fleet.release(before.id)
        elif not isinstance(before, Instance) or _takes(before) != _takes(after):
            self.fleet.promise(after.id, after.host_id, self.demand_of(after))

    def _volume_changed(self, before: Record | None, after: Record | None) -> None:
        # What an instance boots from is in the instance's own demand.
        if isinstance(after, Volume) and after.host_id is not None and after.slot != BOOT_SLOT:
            self.fleet.promise(after.id, after.host_id, _disk_demand(after.size_gib, None))
        elif before is not None:
            self.fleet.release(before.id)

    def demand_of(self, instance: Instance) -> Demand:
        """What an instance takes of its host; of one that is deleted only its disk is left."""
        if instance.state is InstanceState.DELETED:
            return _disk_demand(instance.disk_gib, self._pools.get(instance.pool_id))
        pool = self._pools.get(instance.pool_id)
        group = instance.server_group_id
        return Demand(
            vcpus=instance.vcpus,
            memory_mib=instance.promised_memory_mib,
            disk_mib=instance.disk_gib * _GIB_IN_MIB,
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
        instance.disk_gib,
        instance.server_group_id,
        deleted,
    )


def view_of(host: Host, pool: Pool) -> HostView:
    """A host as the scheduler sees it."""
    facts = host.facts
    physical = Capacity()
    if facts is not None:
        memory = max(facts.memory_mib - _OWN_MEMORY_MIB, 0)
        physical = Capacity(vcpus=facts.vcpus, memory_mib=memory, disk_mib=facts.disk_mib)
    return HostView(
        id=HostId(host.id),
        name=host.name,
        pool=PoolId(pool.id),
        pool_name=pool.name,
        physical=physical,
        cpu_overcommit=pool.cpu_overcommit,
        memory_overcommit=pool.memory_overcommit,
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
    networks: Iterable[Network] = (),
) -> Demand:
    """What a new instance of this size (vCPUs, memory in MiB, disk in GiB) needs, to be connected to these networks."""
    vcpus, memory_mib, disk_gib = size
    group = state[SERVER_GROUPS].get(server_group_id) if server_group_id else None
    return Demand(
        vcpus=vcpus,
        memory_mib=memory_mib,
        disk_mib=disk_gib * _GIB_IN_MIB,
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


def _disk_demand(size_gib: int, pool: Pool | None) -> Demand:
    """What a volume needs. It is of no project: where a project's volumes are says nothing of its instances."""
    return Demand(
        vcpus=0,
        memory_mib=0,
        disk_mib=size_gib * _GIB_IN_MIB,
        project=ProjectId(""),
        pool=PoolId(pool.id if pool else ""),
        pool_name=pool.name if pool else "",
    )


def room_for_volume(state: State, fleet: Fleet, host: HostId, size_gib: int) -> None:
    """See to it that a host can promise so much more disk. Raises NoCapacity with the reason."""
    pool = state[POOLS].get(state[HOSTS].get(host).pool_id)
    fleet.place(msgspec.structs.replace(_disk_demand(size_gib, pool), only=frozenset({host})))


def reasons(fleet: Fleet, demand: Demand, chosen: HostId) -> Sequence[Reason]:
    """What speaks for and against each host, for a plan that is shown."""
    return [
        Reason(about=verdict.host.name, says=verdict.words, chosen=verdict.host.id == chosen)
        for verdict in fleet.explain(demand)
    ]


def refitted(placer: Placer, instance: Instance, changed: Instance) -> Sequence[Reason]:
    """What its host says to an instance that is to take more of it. Raises NoCapacity if it has no room."""
    has_it = instance.state is not InstanceState.DELETED
    if has_it and all(
        getattr(changed, of) <= getattr(instance, of) for of in ("vcpus", "promised_memory_mib", "disk_gib")
    ):
        return ()
    verdict = placer.fleet.refit(instance.id, placer.demand_of(changed))
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
