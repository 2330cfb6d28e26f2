"""Creating instances."""

import re
from base64 import b64decode, b64encode
from typing import Annotated, Self

import msgspec
from pydantic import Field, model_validator

from pileus.cloud.flavors.model import FLAVORS, Flavor
from pileus.cloud.flavors.operations import DiskGib, MaxVcpus, MemoryMib, Vcpus
from pileus.cloud.images.operations.noun import Template, usable_medium
from pileus.cloud.instances.model import FirstBootData, Instance
from pileus.cloud.instances.operations.disks import beside_boots_gib, disks_of, further, placed_with
from pileus.cloud.instances.operations.hardware import BootOrder, check_nics, loaded
from pileus.cloud.instances.operations.noun import instances
from pileus.cloud.instances.operations.origin import Origin, check_disks, origin_of
from pileus.cloud.instances.placement import Placer, default_pool, demand_for, reasons
from pileus.cloud.instances.workflows import create_instance, create_instance_from_backup, create_instance_from_snapshot
from pileus.cloud.instances.workflows.creation import CreateFromSnapshot
from pileus.cloud.instances.workflows.hosting import OfInstance
from pileus.cloud.instances.workflows.restoring import CreateFromBackup
from pileus.cloud.keypairs.model import KEYPAIRS, Keypair
from pileus.cloud.networks.connecting import may_use, network_for, new_port, security_groups_of
from pileus.cloud.networks.model import NETWORKS, PORTS, Network, NetworkKind, Port, PortState
from pileus.cloud.pools.model import POOLS, Pool
from pileus.cloud.servergroups.model import SERVER_GROUPS
from pileus.cloud.volumes.model import BOOT_SLOT, Volume
from pileus.kernel.errors import Conflict, Invalid, NotFound
from pileus.kernel.ids import (
    BackupId,
    FlavorId,
    InstanceId,
    KeypairId,
    PoolId,
    SecurityGroupId,
    ServerGroupId,
    SnapshotId,
    VolumeId,
)
from pileus.link.guests import BOOT_ORDER, NIC_SLOTS, Restart, Watchdog
from pileus.operations.plan import Ask, Plan
from pileus.operations.wire import Description, Id, Labels, Name, Wire, ref
from pileus.state.state import put
from pileus.workflow.workflow import Begin, begin

MAX_USER_DATA = 64 * 1024
_MAX_BASE64 = 96 * 1024
"""Room for that much in base64, in lines."""
MAX_BODY = 512 * 1024
"""Room for user data of which every byte has to be escaped."""


class InstanceCreate(Wire):
    name: Name
    image_id: Annotated[Id, ref("image")] | None = None
    """What its disk is a copy of; or the ISO that it is installed from, on an empty disk of disk_gib."""
    snapshot_id: Annotated[Id, ref("snapshot")] | None = None
    """Instead of an image: what its disks are copies of, on the host that has it. Its size is what that was, too."""
    backup_id: Annotated[Id, ref("backup")] | None = None
    """Instead of an image: what its disks are restored from, on the host that has it; also its size."""
    media_ids: Annotated[tuple[Annotated[Id, ref("image")], ...], Field(max_length=8)] = ()
    """ISO images for its drives, besides the one that it is installed from."""
    flavor_id: Annotated[Id, ref("flavor")] | None = None
    vcpus: Vcpus | None = None
    memory_mib: MemoryMib | None = None
    max_vcpus: MaxVcpus | None = None
    """Up to how many it can be given while it runs."""
    max_memory_mib: MemoryMib | None = None
    """Up to how much it can be given while it runs. All of it is promised, and taken of the quota."""
    disk_gib: DiskGib | None = None
    secure_delete: bool = False
    """Whether the data on the disk that it boots from is overwritten when that is removed."""
    storage_pool: Name | None = None
    """Where its disks are to be, by name; by default where its pool has its disks, or where a backup had them."""
    storage_class: Name | None = None
    """Instead, the class of storage pool that its disks are to be in."""
    network_ids: Annotated[tuple[Annotated[Id, ref("network")], ...], Field(max_length=NIC_SLOTS)] = ()
    """It gets a port of its own in each; without any and without ports, in its pool's default one if the project may
    use that, or in the project's only or default one."""
    port_ids: Annotated[tuple[Annotated[Id, ref("port")], ...], Field(max_length=NIC_SLOTS)] = ()
    """Ports that there are already: they keep their security groups, and stay when the instance is deleted."""
    security_group_ids: Annotated[tuple[Annotated[Id, ref("security-group")], ...], Field(max_length=16)] = ()
    keypair_ids: Annotated[tuple[Annotated[Id, ref("keypair")], ...], Field(max_length=16)] = ()
    user_data: Annotated[str, Field(max_length=MAX_USER_DATA)] = ""
    """Text, at most 64 KiB."""
    user_data_base64: Annotated[str, Field(max_length=_MAX_BASE64)] = ""
    """Instead of text, any bytes in base64, at most 64 KiB of them; its guest is given them as they are."""
    config_drive: bool = False
    """Whether it can read what metadata answers from a disk as well, without a network."""
    pool_id: Annotated[Id, ref("pool")] | None = None
    zone: Annotated[str, Field(max_length=63)] | None = None
    server_group_id: Annotated[Id, ref("server-group")] | None = None
    restart: Restart = Restart.ON_FAILURE
    watchdog: Watchdog = Watchdog.RESET
    template: Template | None = None
    """The set of devices that its guest is given; by default its image's."""
    boot_order: BootOrder = BOOT_ORDER
    description: Description = ""
    labels: Labels = Field(default_factory=dict[str, str])

    @model_validator(mode="after")
    def _has_one_size(self) -> Self:
        given = [name for name in ("vcpus", "memory_mib") if getattr(self, name) is not None]
        if self.flavor_id is None and len(given) != 2 and self.image_id is not None:
            raise ValueError("name a flavor, or give vcpus and memory_mib")
        if self.flavor_id is not None and given:
            raise ValueError("a flavor and a size of its own exclude each other")
        return self

    @model_validator(mode="after")
    def _has_one_origin(self) -> Self:
        if sum(origin is not None for origin in (self.image_id, self.snapshot_id, self.backup_id)) != 1:
            raise ValueError("name either an image, a snapshot or a backup")
        return self

    @model_validator(mode="after")
    def _has_user_data_of_one_kind(self) -> Self:
        if self.user_data and self.user_data_base64:
            raise ValueError("user_data and user_data_base64 exclude each other")
        if len(self.all_user_data) > MAX_USER_DATA:
            kind = "user_data_base64" if self.user_data_base64 else "user_data"
            raise ValueError(f"{kind} is larger than {MAX_USER_DATA} bytes")
        return self

    @property
    def all_user_data(self) -> bytes:
        """What the guest is given. Raises ValueError if it is said to be base64 and is not."""
        if not self.user_data_base64:
            return self.user_data.encode()
        try:
            return b64decode("".join(self.user_data_base64.split()), validate=True)
        except ValueError:
            raise ValueError("user_data_base64 is not base64") from None


@instances.post(starts=create_instance, max_body=MAX_BODY)
def create(ask: Ask, wish: InstanceCreate) -> Plan:
    """Create an instance and start it."""
    origin = origin_of(ask, wish.image_id, wish.snapshot_id, wish.backup_id)
    media = [usable_medium(ask, id, "media_ids") for id in dict.fromkeys(wish.media_ids)]
    flavor = ask.see(FLAVORS, wish.flavor_id, "flavor_id") if wish.flavor_id is not None else None
    size = _size(wish, flavor, origin)
    check_most(size[0], size[1], wish.max_vcpus, wish.max_memory_mib)
    pool = _pool(ask, wish.pool_id)
    if wish.server_group_id is not None:
        ask.see(SERVER_GROUPS, wish.server_group_id, "server_group_id", of=ask.caller.project_id)
    keypairs = [_keypair(ask, id) for id in dict.fromkeys(wish.keypair_ids)]
    project = ask.caller.project_id
    template = wish.template or origin.template
    check_disks(origin, template)
    disks = disks_of(ask, origin, pool, size[2], wish.storage_pool, wish.storage_class)
    promised = size[0], wish.max_memory_mib or size[1], beside_boots_gib(disks)
    networks = _networks(ask, wish.network_ids, pool) if wish.network_ids or not wish.port_ids else []
    named = [_free_port(ask, id) for id in dict.fromkeys(wish.port_ids)]
    check_nics(template, len(networks) + len(named))
    demand = demand_for(
        ask.state,
        project,
        promised,
        pool,
        zone=wish.zone,
        server_group_id=wish.server_group_id,
        template=template,
        networks=[*networks, *(ask.state[NETWORKS].get(port.network_id) for port in named)],
    )
    if origin.kept is not None:
        demand = msgspec.structs.replace(demand, only=frozenset({origin.kept.host_id}))
    groups = security_groups_of(ask, wish.security_group_ids, project)
    placement, demand, storage_pools = placed_with(ask, demand, origin, disks)
    id = InstanceId(ask.new_id())
    hostname = hostname_of(wish.name)
    ports = _ports(ask, id, networks, groups, hostname)
    ports += [_plugged(port, id, hostname, slot) for slot, port in enumerate(named, len(networks))]
    vcpus, memory_mib, disk_gib = size
    instance = Instance(
        id=id,
        created_at=ask.now,
        project_id=project,
        name=wish.name,
        description=wish.description,
        labels=wish.labels,
        vcpus=vcpus,
        memory_mib=memory_mib,
        max_vcpus=wish.max_vcpus,
        max_memory_mib=wish.max_memory_mib,
        disk_gib=disk_gib,
        flavor_id=None if flavor is None else FlavorId(flavor.id),
        image_id=origin.image_id,
        pool_id=PoolId(pool.id),
        host_id=placement.host,
        zone=wish.zone or "",
        server_group_id=ServerGroupId(wish.server_group_id) if wish.server_group_id else None,
        keypair_ids=tuple(KeypairId(keypair.id) for keypair in keypairs),
        addresses=tuple(each.address for port in ports for each in port.addresses),
        restart=wish.restart,
        watchdog=wish.watchdog,
        template=template,
        media=loaded(template, [*([origin.medium] if origin.medium else []), *media]),
        boot_order=wish.boot_order,
        config_drive=wish.config_drive,
        limits=None if flavor is None else flavor.limits,
    )
    on_host = {"host_id": placement.host, "instance_bandwidth_mbit": instance.bandwidth_mbit}
    ports = [msgspec.structs.replace(port, **on_host) for port in ports]
    volume = Volume(
        id=ask.new_id(),
        created_at=ask.now,
        project_id=project,
        name=wish.name,
        size_gib=disk_gib,
        image_id=origin.disk_image_id,
        needs=origin.needs,
        instance_id=id,
        slot=BOOT_SLOT,
        host_id=placement.host,
        secure_delete=wish.secure_delete,
        storage_pool=storage_pools[0].name,
        storage_class=storage_pools[0].storage_class,
    )
    volumes = [volume, *further(ask, volume, origin, storage_pools)]
    told = FirstBootData(
        id=id,
        created_at=ask.now,
        project_id=project,
        hostname=hostname,
        public_keys=tuple((keypair.name, keypair.public_key) for keypair in keypairs),
        user_data=b64encode(wish.all_user_data).decode(),
    )
    at = ", ".join(instance.addresses) or "whatever address the LAN tells it"
    limited = f", limited to {instance.limits.words}" if instance.limits is not None else ""
    return Plan(
        summary=f"create instance {wish.name} on {placement.name} at {at}{limited}",
        changes=(
            put(instance),
            *(put(volume) for volume in volumes),
            put(told),
            *(put(port) for port in ports),
            *origin.changes,
        ),
        begin=_task(id, origin, volumes),
        answers=instance,
        because=reasons(ask.view(Placer).fleet, demand, placement.host) if ask.dry_run else (),
        undo="delete the instance",
    )


def _task(id: InstanceId, origin: Origin, volumes: list[Volume]) -> Begin:
    if origin.kept is None:
        return begin(create_instance, OfInstance(id))
    copies = tuple((VolumeId(new.id), VolumeId(source.id)) for new, source in zip(volumes, origin.volumes, strict=True))
    if origin.snapshot is None:
        return begin(create_instance_from_backup, CreateFromBackup(id, copies, BackupId(origin.kept.id)))
    return begin(create_instance_from_snapshot, CreateFromSnapshot(id, copies, SnapshotId(origin.snapshot.id)))


def check_most(vcpus: int, memory_mib: int, max_vcpus: int | None, max_memory_mib: int | None) -> None:
    """Raises Invalid if what an instance is to have at the most is less than it is to have."""
    wrong: dict[str, str] = {}
    if max_vcpus is not None and max_vcpus < vcpus:
        wrong["max_vcpus"] = f"less than the {vcpus} that it is to have"
    if max_memory_mib is not None and max_memory_mib < memory_mib:
        wrong["max_memory_mib"] = f"less than the {memory_mib} that it is to have"
    if wrong:
        raise Invalid("some fields are wrong", fields=wrong)


def _size(wish: InstanceCreate, flavor: Flavor | None, origin: Origin) -> tuple[int, int, int]:
    """vCPUs, memory in MiB and disk in GiB. Raises Invalid if it is not known, or what it is made from does not fit."""
    least = origin.least_gib
    wrong: dict[str, str] = {}
    if flavor is not None:
        size = flavor.vcpus, flavor.memory_mib, wish.disk_gib or max(flavor.disk_gib, least)
    else:
        vcpus, memory_mib = wish.vcpus or origin.vcpus, wish.memory_mib or origin.memory_mib
        size = vcpus or 0, memory_mib or 0, wish.disk_gib or least
        wrong |= {name: "say how large" for name, given in (("vcpus", vcpus), ("memory_mib", memory_mib)) if not given}
    if origin.medium is not None and flavor is None and wish.disk_gib is None:
        wrong["disk_gib"] = f"how large is the empty disk to be that {origin.medium.name} is installed on?"
    if size[2] < least:
        wrong["disk_gib"] = f"{origin.words} needs {least} GiB"
    if size[1] < origin.min_memory_mib:
        wrong["memory_mib"] = f"{origin.words} needs {origin.min_memory_mib} MiB"
    if wrong:
        raise Invalid("some fields are wrong", fields=wrong)
    return size


def _pool(ask: Ask, id: str | None) -> Pool:
    if id is not None:
        return ask.see(POOLS, id, "pool_id")
    pool = default_pool(ask.state)
    if pool is None:
        raise Conflict("there is no default pool: name one", fields={"pool_id": "missing"})
    return pool


def _keypair(ask: Ask, id: str) -> Keypair:
    keypair = ask.see(KEYPAIRS, id, "keypair_ids", of=ask.caller.project_id)
    if keypair.user_id != ask.caller.user_id:
        raise NotFound(f"there is no keypair {id}", fields={"keypair_ids": "not found"})
    return keypair


def _networks(ask: Ask, wanted: tuple[str, ...], pool: Pool) -> list[Network]:
    """The networks to connect to; by default the pool's, if the project may use that, or the project's only one."""
    state = ask.state
    of_pool = state[NETWORKS].find(pool.default_network_id or "")
    if not wanted and of_pool is not None and may_use(state, of_pool, ask.caller.project_id):
        return [of_pool]
    if wanted:
        return [network_for(ask, id, "network_ids", ask.caller.project_id) for id in wanted]
    found = [each for each in state[NETWORKS].by("project", ask.caller.project_id) if each.kind is NetworkKind.VPC]
    named = [each for each in found if each.name == "default"]
    found = named or found
    if len(found) != 1:
        raise Conflict(f"the project has {len(found)} networks: name one", fields={"network_ids": "missing"})
    return found


def _ports(
    ask: Ask,
    instance: InstanceId,
    networks: list[Network],
    groups: tuple[SecurityGroupId, ...],
    hostname: str,
) -> list[Port]:
    made: list[Port] = []
    for slot, network in enumerate(networks):
        port = new_port(ask, network, project=ask.caller.project_id, name=hostname, groups=groups, besides=made)
        made.append(
            msgspec.structs.replace(port, state=PortState.ATTACHED, instance_id=instance, slot=slot, hostname=hostname)
        )
    return made


def _free_port(ask: Ask, id: str) -> Port:
    port = ask.see(PORTS, id, "port_ids", of=ask.caller.project_id)
    if port.state is not PortState.FREE:
        raise Conflict(f"port {port.name} is {port.state}: detach it first", fields={"port_ids": "in use"})
    return port


def _plugged(port: Port, instance: InstanceId, hostname: str, slot: int) -> Port:
    to = {"instance_id": instance, "slot": slot, "hostname": hostname}
    return msgspec.structs.replace(port.to(PortState.ATTACHED), **to)


def hostname_of(name: str) -> str:
    """A name for people as one label of a domain name (RFC 1123, section 2.1)."""
    label = re.sub(r"[^a-z0-9-]+", "-", name.lower())[:63].strip("-")
    return label or "instance"
