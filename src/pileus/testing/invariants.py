"""What is true of the records of every cloud at rest and at work: nothing refers to what is not there."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from ipaddress import ip_address
from typing import Any

import msgspec

from pileus.cloud.backups.model import BACKUPS
from pileus.cloud.backups.model import SETTLED as BACKUP_SETTLED
from pileus.cloud.floatingips.model import FLOATING_IPS
from pileus.cloud.foreign.model import SHADOWS
from pileus.cloud.hosts.model import HOSTS, INVITATIONS
from pileus.cloud.identity.model import GRANTS, GROUPS, PASSWORDS, ROLES, SECOND_FACTORS, TOKEN_SECRETS, TOKENS, USERS
from pileus.cloud.identityproviders.model import GROUP_MAPPINGS, IDENTITY_PROVIDERS, PROVIDER_SECRETS
from pileus.cloud.imageexports.model import IMAGE_EXPORTS
from pileus.cloud.images.model import IMAGE_SHARES, IMAGES
from pileus.cloud.instances.consoles import CONSOLES
from pileus.cloud.instances.model import FIRST_BOOTS, INSTANCES, PASSWORD_CHANGES, SETTLED, InstanceState
from pileus.cloud.instances.specs import ports_of
from pileus.cloud.keypairs.model import KEYPAIRS
from pileus.cloud.nat.model import PORT_FORWARDINGS, SNAT_RULES
from pileus.cloud.networks.model import NETWORK_SHARES, NETWORKS, PORTS, ROUTERS, SUBNETS, PortState
from pileus.cloud.networks.model import SETTLED as PORT_SETTLED
from pileus.cloud.networks.sharing import is_for
from pileus.cloud.peerings.model import PEERINGS
from pileus.cloud.pools.model import POOLS
from pileus.cloud.projects.model import PROJECTS
from pileus.cloud.reservations.model import RESERVATIONS
from pileus.cloud.schedules.model import SCHEDULES
from pileus.cloud.securitygroups.model import SECURITY_GROUPS, SECURITY_RULES
from pileus.cloud.servergroups.model import SERVER_GROUPS
from pileus.cloud.snapshots.model import SETTLED as SNAPSHOT_SETTLED
from pileus.cloud.snapshots.model import SNAPSHOTS
from pileus.cloud.storagepools.model import POOLS_ON_HOSTS, STORAGE_BACKINGS, STORAGE_POOLS, named
from pileus.cloud.volumes.model import BOOT_SLOT, VOLUMES, Volume, VolumeState
from pileus.cloud.volumes.model import SETTLED as VOLUME_SETTLED
from pileus.state.kinds import Kind
from pileus.state.state import State
from pileus.workflow.task import TASKS, UNFINISHED, Task

# What an instance or a volume was made from (flavor, image, keypairs) may go: it is history. So is whose a task was.
REFERENCES: Sequence[tuple[Kind[Any], str, Kind[Any]]] = (
    (IMAGES, "project_id", PROJECTS),
    (IMAGE_SHARES, "project_id", PROJECTS),
    (IMAGE_SHARES, "image_id", IMAGES),
    (IMAGE_SHARES, "to_project_id", PROJECTS),
    (IMAGE_SHARES, "to_group_id", GROUPS),
    (IMAGE_EXPORTS, "project_id", PROJECTS),
    (KEYPAIRS, "project_id", PROJECTS),
    (KEYPAIRS, "user_id", USERS),
    (NETWORKS, "project_id", PROJECTS),
    (NETWORK_SHARES, "network_id", NETWORKS),
    (NETWORK_SHARES, "to_project_id", PROJECTS),
    (SUBNETS, "project_id", PROJECTS),
    (SUBNETS, "network_id", NETWORKS),
    (RESERVATIONS, "project_id", PROJECTS),
    (RESERVATIONS, "subnet_id", SUBNETS),
    (ROUTERS, "project_id", PROJECTS),
    (ROUTERS, "subnet_ids", SUBNETS),
    (ROUTERS, "external_network_id", NETWORKS),
    (SUBNETS, "delegated_by", NETWORKS),
    (PORTS, "project_id", PROJECTS),
    (PORTS, "network_id", NETWORKS),
    (PORTS, "security_group_ids", SECURITY_GROUPS),
    (PORTS, "instance_id", INSTANCES),
    (PORTS, "host_id", HOSTS),
    (PEERINGS, "project_id", PROJECTS),
    (PEERINGS, "peer_project_id", PROJECTS),
    (PEERINGS, "router_id", ROUTERS),
    (PEERINGS, "peer_router_id", ROUTERS),
    (SECURITY_GROUPS, "project_id", PROJECTS),
    (SECURITY_RULES, "project_id", PROJECTS),
    (SECURITY_RULES, "group_id", SECURITY_GROUPS),
    (SECURITY_RULES, "remote_group_id", SECURITY_GROUPS),
    (FLOATING_IPS, "project_id", PROJECTS),
    (FLOATING_IPS, "network_id", NETWORKS),
    (FLOATING_IPS, "port_id", PORTS),
    (FLOATING_IPS, "router_id", ROUTERS),
    (PORT_FORWARDINGS, "project_id", PROJECTS),
    (PORT_FORWARDINGS, "floating_ip_id", FLOATING_IPS),
    (PORT_FORWARDINGS, "network_id", NETWORKS),
    (PORT_FORWARDINGS, "port_id", PORTS),
    (PORT_FORWARDINGS, "router_id", ROUTERS),
    (SNAT_RULES, "project_id", PROJECTS),
    (SNAT_RULES, "floating_ip_id", FLOATING_IPS),
    (SNAT_RULES, "network_id", NETWORKS),
    (SNAT_RULES, "port_id", PORTS),
    (SNAT_RULES, "router_id", ROUTERS),
    (SERVER_GROUPS, "project_id", PROJECTS),
    (INSTANCES, "project_id", PROJECTS),
    (INSTANCES, "pool_id", POOLS),
    (INSTANCES, "host_id", HOSTS),
    (INSTANCES, "server_group_id", SERVER_GROUPS),
    (FIRST_BOOTS, "id", INSTANCES),
    (PASSWORD_CHANGES, "id", INSTANCES),
    (CONSOLES, "project_id", PROJECTS),
    (CONSOLES, "instance_id", INSTANCES),
    (CONSOLES, "user_id", USERS),
    (VOLUMES, "project_id", PROJECTS),
    (VOLUMES, "instance_id", INSTANCES),
    (VOLUMES, "host_id", HOSTS),
    (SNAPSHOTS, "project_id", PROJECTS),
    (SNAPSHOTS, "host_id", HOSTS),
    (SNAPSHOTS, "instance_id", INSTANCES),
    (SNAPSHOTS, "volume_ids", VOLUMES),
    (SNAPSHOTS, "schedule_id", SCHEDULES),
    (BACKUPS, "project_id", PROJECTS),
    (BACKUPS, "host_id", HOSTS),
    (BACKUPS, "schedule_id", SCHEDULES),
    (BACKUPS, "based_volume_ids", VOLUMES),
    (SCHEDULES, "project_id", PROJECTS),
    (SCHEDULES, "instance_id", INSTANCES),
    (SCHEDULES, "volume_id", VOLUMES),
    (PASSWORDS, "id", USERS),
    (SECOND_FACTORS, "id", USERS),
    (GRANTS, "project_id", PROJECTS),
    (GRANTS, "user_id", USERS),
    (GRANTS, "group_id", GROUPS),
    (GRANTS, "role_id", ROLES),
    (USERS, "project_id", PROJECTS),
    (GROUPS, "project_id", PROJECTS),
    (GROUPS, "user_ids", USERS),
    (GROUPS, "provided_user_ids", USERS),
    (GROUPS, "provided_mapping_ids", GROUP_MAPPINGS),
    (GRANTS, "mapping_id", GROUP_MAPPINGS),
    (USERS, "provider_id", IDENTITY_PROVIDERS),
    (IDENTITY_PROVIDERS, "users_project_id", PROJECTS),
    (PROVIDER_SECRETS, "id", IDENTITY_PROVIDERS),
    (GROUP_MAPPINGS, "provider_id", IDENTITY_PROVIDERS),
    (GROUP_MAPPINGS, "group_id", GROUPS),
    (GROUP_MAPPINGS, "project_id", PROJECTS),
    (GROUP_MAPPINGS, "role_id", ROLES),
    (ROLES, "project_id", PROJECTS),
    (TOKENS, "project_id", PROJECTS),
    (TOKENS, "user_id", USERS),
    (TOKEN_SECRETS, "token_id", TOKENS),
    (HOSTS, "pool_id", POOLS),
    (SHADOWS, "host_id", HOSTS),
    (SHADOWS, "instance_id", INSTANCES),
    (INVITATIONS, "pool_id", POOLS),
    (POOLS, "default_network_id", NETWORKS),
    (STORAGE_POOLS, "pool_ids", POOLS),
    (STORAGE_BACKINGS, "id", STORAGE_POOLS),
    (POOLS_ON_HOSTS, "storage_pool_id", STORAGE_POOLS),
    (POOLS_ON_HOSTS, "host_id", HOSTS),
)


def dangling(state: State) -> list[str]:
    """What is wrong with these records, in words; empty for a cloud in which nothing is half made."""
    checks: tuple[Callable[[State], Iterable[str]], ...] = (
        _references,
        _ways_out,
        _addresses,
        _reservations,
        _instances,
        _volumes,
        _ports,
        _snapshots,
        _backups,
        _within_projects,
    )
    return [wrong for check in checks for wrong in check(state)]


def _ids(value: str | tuple[str, ...] | None) -> tuple[str, ...]:
    if value is None:
        return ()
    return (value,) * bool(value) if isinstance(value, str) else value


def _references(state: State) -> Iterator[str]:
    for kind, field, of in REFERENCES:
        for record in state.table(kind):
            value = getattr(record, field)
            for id in _ids(value):
                if id not in state.table(of):
                    yield f"{kind.name} {record.id} refers by {field} to {of.name} {id}, which is not there"
    for port in state[PORTS]:
        for each in port.addresses:
            if each.subnet_id not in state[SUBNETS]:
                yield f"port {port.id} has an address of subnet {each.subnet_id}, which is not there"


def _ways_out(state: State) -> Iterator[str]:
    for router in state[ROUTERS]:
        for way in (*router.further_uplinks, *router.source_routes):
            if router.uplink(way.network_id) is None or way.network_id not in state[NETWORKS]:
                yield f"router {router.id} goes out by network {way.network_id}, which is not there"


def _addresses(state: State) -> Iterator[str]:
    fixed = (each for port in state[PORTS] for each in port.addresses)
    inside = Counter[tuple[str, str]]((each.subnet_id, each.address) for each in fixed)
    inside.update((subnet.id, subnet.gateway) for subnet in state[SUBNETS] if subnet.gateway)
    yield from (
        f"address {address} of subnet {subnet} is given {n} times" for (subnet, address), n in inside.items() if n > 1
    )
    outside = Counter[tuple[str, str]]((floating.network_id, floating.address) for floating in state[FLOATING_IPS])
    outside.update(
        (uplink.network_id, address)
        for router in state[ROUTERS]
        for uplink in router.uplinks
        for address in uplink.addresses
    )
    outside.update((subnet.network_id, subnet.gateway) for subnet in state[SUBNETS] if subnet.gateway)
    yield from (
        f"address {address} of network {network} is given {n} times"
        for (network, address), n in outside.items()
        if n > 1
    )


def _reservations(state: State) -> Iterator[str]:
    for kept in state[RESERVATIONS]:
        subnet = state[SUBNETS].find(kept.subnet_id)
        for port in state[PORTS].by("subnet", kept.subnet_id) if subnet is not None else ():
            for each in port.addresses:
                if each.subnet_id == kept.subnet_id and kept.span[0] <= int(ip_address(each.address)) <= kept.span[1]:
                    yield f"port {port.id} has {each.address}, which is reserved for {kept.name}"


def _instances(state: State) -> Iterator[str]:
    worked_on = _worked_on(state)
    for instance in state[INSTANCES]:
        ports = [each for each in state[PORTS].by("instance_id", instance.id) if each.is_attached]
        if sorted(instance.addresses) != sorted(each.address for port in ports for each in port.addresses):
            yield f"instance {instance.id} shows {instance.addresses}, which its ports do not have"
        floating = [each.address for port in ports for each in state[FLOATING_IPS].by("port_id", port.id)]
        if instance.state is not InstanceState.DELETING and sorted(instance.floating_addresses) != sorted(floating):
            yield f"instance {instance.id} shows floating {instance.floating_addresses} and has {floating}"
        volumes = state[VOLUMES].by("instance", instance.id)
        about = {instance.id, *(id for volume in volumes for id in _about(state, volume))}
        if instance.state not in SETTLED and not about & worked_on:
            yield f"instance {instance.id} is {instance.state}, and no task is at work on it"
        if instance.id not in state[FIRST_BOOTS]:
            yield f"instance {instance.id} has nothing to be told at its first boot"
        attached = {each.id for each in state[VOLUMES].by("instance", instance.id) if _is_attached(each)}
        if instance.state is not InstanceState.DELETING and set(instance.attached_volume_ids) != attached:
            yield f"instance {instance.id} shows the volumes {instance.attached_volume_ids} and has {attached}"
        about |= {each.id for each in ports_of(state, instance)}
        if instance.busy_with and not about & worked_on:
            yield f"instance {instance.id} is busy ({instance.busy_with}), and no task is at work on it"


def _volumes(state: State) -> Iterator[str]:
    worked_on = _worked_on(state)
    for volume in state[VOLUMES]:
        makers = {volume.instance_id, *_about(state, volume)}
        if volume.state not in VOLUME_SETTLED and not makers & worked_on:
            yield f"volume {volume.id} is {volume.state}, and no task is at work on it"
        if (volume.slot is None) != (volume.instance_id is None):
            yield f"volume {volume.id} is in slot {volume.slot} of instance {volume.instance_id}"
        pool = named(state, volume.storage_pool) if volume.found is None else None
        if pool is not None and volume.storage_class != pool.storage_class:
            yield f"volume {volume.id} is in pool {pool.name} of class {pool.storage_class}, not {volume.storage_class}"
        if (volume.storage_class == "") != (volume.found is not None):
            yield f"volume {volume.id} counts as of class {volume.storage_class!r}"
    taken = Counter((volume.instance_id, volume.slot) for volume in state[VOLUMES] if volume.instance_id)
    yield from (f"slot {slot} of instance {id} is taken {n} times" for (id, slot), n in taken.items() if n > 1)


def _ports(state: State) -> Iterator[str]:
    worked_on = _worked_on(state)
    for port in state[PORTS]:
        if port.state not in PORT_SETTLED and port.id not in worked_on:
            yield f"port {port.id} is {port.state}, and no task is at work on it"
        if (port.state is PortState.FREE) != (port.instance_id is None):
            yield f"port {port.id} is {port.state}, and of instance {port.instance_id}"
        instance = state[INSTANCES].find(port.instance_id) if port.instance_id else None
        if port.instance_bandwidth_mbit != (None if instance is None else instance.bandwidth_mbit):
            yield f"port {port.id} passes {port.instance_bandwidth_mbit} Mbit/s, as its instance does not say"
    taken = Counter(
        (port.instance_id, port.slot) for port in state[PORTS] if port.instance_id and port.slot is not None
    )
    yield from (f"NIC slot {slot} of instance {id} is taken {n} times" for (id, slot), n in taken.items() if n > 1)


def _snapshots(state: State) -> Iterator[str]:
    worked_on = _worked_on(state)
    for snapshot in state[SNAPSHOTS]:
        copies = {each.id for each in state[VOLUMES].by("host", snapshot.host_id)}
        if snapshot.state not in SNAPSHOT_SETTLED and not {snapshot.id, *copies} & worked_on:
            yield f"snapshot {snapshot.id} is {snapshot.state}, and no task is at work on it"


def _backups(state: State) -> Iterator[str]:
    worked_on = _worked_on(state)
    for backup in state[BACKUPS]:
        if backup.state not in BACKUP_SETTLED and backup.id not in worked_on:
            yield f"backup {backup.id} is {backup.state}, and no task is at work on it"
    based = Counter((id, backup.storage_pool) for backup in state[BACKUPS] for id in backup.based_volume_ids)
    yield from (f"volume {id} is kept for {n} backups in {pool}" for (id, pool), n in based.items() if n > 1)


def _worked_on(state: State) -> set[str]:
    """What unfinished tasks are about."""
    return {
        id
        for each in UNFINISHED
        for task in (state[TASKS].get(id) for id in state[TASKS].ids_by("state", each))
        for id in (task.subject_id, *_named(task))
    }


def _named(task: Task) -> list[str]:
    """The ids in a task's arguments: one may be about two instances."""
    arguments: dict[str, object] | None = msgspec.json.decode(task.arguments, type=dict[str, object] | None)
    return [value for value in (arguments or {}).values() if isinstance(value, str)]


def _is_attached(volume: Volume) -> bool:
    if volume.slot == BOOT_SLOT:
        return False
    return volume.state not in (VolumeState.CREATING, VolumeState.AVAILABLE, VolumeState.ATTACHING)


def _about(state: State, volume: Volume) -> set[str]:
    """What a task may be about that works on this volume: itself, its snapshots, and copies that are being made."""
    copies = {each.id for each in state[VOLUMES].by("host", volume.host_id) if each.state is VolumeState.CREATING}
    kept = state[SNAPSHOTS].ids_by("volume", volume.id), state[BACKUPS].ids_by("volume", volume.id)
    return {volume.id, *kept[0], *kept[1], *copies}


def _within_projects(state: State) -> Iterator[str]:
    """Nothing of one project holds on to what another has."""
    for router in state[ROUTERS]:
        for id in router.subnet_ids:
            if (subnet := state[SUBNETS].find(id)) is not None and subnet.project_id != router.project_id:
                yield f"router {router.id} joins subnet {id} of another project"
    for port in state[PORTS]:
        network = state[NETWORKS].find(port.network_id)
        if network is not None and not is_for(state, network, port.project_id):
            yield f"port {port.id} is in network {network.id} of another project"
    for floating in state[FLOATING_IPS]:
        if not is_for(state, state[NETWORKS].get(floating.network_id), floating.project_id):
            yield f"floating IP {floating.address} is of network {floating.network_id}, which is not for its project"
        port = state[PORTS].find(floating.port_id or "")
        if port is not None and port.project_id != floating.project_id:
            yield f"floating IP {floating.address} leads to port {port.id} of another project"
