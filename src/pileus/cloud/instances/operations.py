"""What one may do with instances."""

import re
from base64 import b64encode
from typing import Annotated, Protocol, Self

import msgspec
from pydantic import Field, model_validator

from pileus.cloud.flavors.model import FLAVORS
from pileus.cloud.flavors.operations import DiskGib, MemoryMib, Vcpus
from pileus.cloud.floatingips.model import FLOATING_IPS, without_port
from pileus.cloud.images.model import IMAGES, Image, ImageState
from pileus.cloud.instances.model import INSTANCES, FirstBootData, Instance, InstanceState
from pileus.cloud.instances.placement import Placer, default_pool, demand_for, reasons, refitted, room_for_volume
from pileus.cloud.instances.specs import root_volume
from pileus.cloud.instances.workflows import (
    OfInstance,
    RebootInstance,
    RebuildInstance,
    ResizeInstance,
    StopInstance,
    create_instance,
    delete_instance,
    pause_instance,
    reboot_instance,
    rebuild_instance,
    resize_instance,
    resume_instance,
    start_instance,
    stop_instance,
)
from pileus.cloud.keypairs.model import KEYPAIRS, Keypair
from pileus.cloud.networks.addresses import Addresses
from pileus.cloud.networks.model import NETWORKS, PORTS, SUBNETS, FixedAddress, Network, NetworkKind, Port, Subnet
from pileus.cloud.pools.model import POOLS, Pool
from pileus.cloud.securitygroups.model import SECURITY_GROUPS
from pileus.cloud.servergroups.model import SERVER_GROUPS
from pileus.cloud.volumes.model import BOOT_SLOT, VOLUMES, Volume, VolumeState
from pileus.kernel.errors import Conflict, Invalid, NotFound
from pileus.kernel.ids import (
    FlavorId,
    ImageId,
    InstanceId,
    KeypairId,
    NetworkId,
    PoolId,
    SecurityGroupId,
    ServerGroupId,
    SubnetId,
    VolumeId,
)
from pileus.kernel.units import GIB
from pileus.operations.caller import Role
from pileus.operations.declare import Noun, Socket
from pileus.operations.plan import Ask, Plan
from pileus.operations.wire import Description, Id, Labels, Name, Wire, ref
from pileus.state.state import Change, put
from pileus.workflow.workflow import begin


class Consoles(Protocol):
    """Brings callers to the serial consoles of guests."""

    async def join(self, socket: Socket, instance: Instance) -> None:
        """Carry bytes both ways until either side closes. Raises Unavailable."""
        ...


MAX_USER_DATA = 64 * 1024


class InstanceCreate(Wire):
    name: Name
    image_id: Annotated[Id, ref("image")]
    flavor_id: Annotated[Id, ref("flavor")] | None = None
    vcpus: Vcpus | None = None
    memory_mib: MemoryMib | None = None
    disk_gib: DiskGib | None = None
    network_ids: Annotated[tuple[Annotated[Id, ref("network")], ...], Field(max_length=8)] = ()
    security_group_ids: Annotated[tuple[Annotated[Id, ref("security-group")], ...], Field(max_length=16)] = ()
    keypair_ids: Annotated[tuple[Annotated[Id, ref("keypair")], ...], Field(max_length=16)] = ()
    user_data: Annotated[str, Field(max_length=MAX_USER_DATA)] = ""
    pool_id: Annotated[Id, ref("pool")] | None = None
    zone: Annotated[str, Field(max_length=63)] | None = None
    server_group_id: Annotated[Id, ref("server-group")] | None = None
    description: Description = ""
    labels: Labels = Field(default_factory=dict[str, str])

    @model_validator(mode="after")
    def _has_one_size(self) -> Self:
        given = [name for name in ("vcpus", "memory_mib") if getattr(self, name) is not None]
        if self.flavor_id is None and len(given) != 2:
            raise ValueError("name a flavor, or give vcpus and memory_mib")
        if self.flavor_id is not None and given:
            raise ValueError("a flavor and a size of its own exclude each other")
        if len(self.user_data.encode()) > MAX_USER_DATA:
            raise ValueError(f"user_data is larger than {MAX_USER_DATA} bytes")
        return self


class InstanceChange(Wire):
    name: Name | None = None
    description: Description | None = None
    labels: Labels | None = None
    protected: bool | None = None


class InstanceResize(Wire):
    flavor_id: Annotated[Id, ref("flavor")] | None = None
    vcpus: Vcpus | None = None
    memory_mib: MemoryMib | None = None
    disk_gib: DiskGib | None = None

    @model_validator(mode="after")
    def _has_one_size(self) -> Self:
        given = [name for name in ("vcpus", "memory_mib") if getattr(self, name) is not None]
        if self.flavor_id is not None and given:
            raise ValueError("a flavor and a size of its own exclude each other")
        if self.flavor_id is None and not given and self.disk_gib is None:
            raise ValueError("name a flavor, or give vcpus, memory_mib or disk_gib")
        return self


class InstanceRebuild(Wire):
    image_id: Annotated[Id, ref("image")] | None = None
    """By default the one that it was made from."""


class Reboot(Wire):
    hard: bool = False
    """By the reset button, not by asking the guest."""


instances = Noun(
    INSTANCES,
    plural="instances",
    columns=("name", "state", "vcpus", "memory_mib", "addresses", "floating_addresses"),
    about="Instances: virtual machines.",
)
instances.list(
    filters=("name", "state", "host_id", "image_id", "flavor_id", "pool_id", "labels"),
    sorts=("name", "state", "vcpus", "memory_mib"),
)
instances.show()


@instances.post(starts=create_instance, max_body=256 * 1024)
def create(ask: Ask, wish: InstanceCreate) -> Plan:
    """Create an instance and start it."""
    image = usable_image(ask, wish.image_id)
    size = _size(ask, wish, image)
    pool = _pool(ask, wish.pool_id)
    if wish.server_group_id is not None:
        ask.see(SERVER_GROUPS, wish.server_group_id, "server_group_id", of=ask.caller.project_id)
    keypairs = [_keypair(ask, id) for id in dict.fromkeys(wish.keypair_ids)]
    fleet = ask.view(Placer).fleet
    project = ask.caller.project_id
    demand = demand_for(ask.state, project, size, pool, zone=wish.zone, server_group_id=wish.server_group_id)
    networks = _networks(ask, wish.network_ids)
    groups = _security_groups(ask, wish.security_group_ids)
    placement = fleet.place(demand)
    id = InstanceId(ask.new_id())
    hostname = hostname_of(wish.name)
    ports = _ports(ask, id, networks, groups, hostname)
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
        disk_gib=disk_gib,
        flavor_id=FlavorId(wish.flavor_id) if wish.flavor_id else None,
        image_id=ImageId(image.id),
        pool_id=PoolId(pool.id),
        host_id=placement.host,
        zone=wish.zone or "",
        server_group_id=ServerGroupId(wish.server_group_id) if wish.server_group_id else None,
        keypair_ids=tuple(KeypairId(keypair.id) for keypair in keypairs),
        addresses=tuple(each.address for port in ports for each in port.addresses),
    )
    ports = [msgspec.structs.replace(port, host_id=placement.host) for port in ports]
    volume = Volume(
        id=ask.new_id(),
        created_at=ask.now,
        project_id=project,
        name=wish.name,
        size_gib=disk_gib,
        image_id=ImageId(image.id),
        instance_id=id,
        slot=BOOT_SLOT,
        host_id=placement.host,
    )
    told = FirstBootData(
        id=id,
        created_at=ask.now,
        project_id=project,
        hostname=hostname,
        public_keys=tuple((keypair.name, keypair.public_key) for keypair in keypairs),
        user_data=b64encode(wish.user_data.encode()).decode(),
    )
    at = ", ".join(instance.addresses)
    return Plan(
        summary=f"create instance {wish.name} on {placement.name} at {at}",
        changes=(put(instance), put(volume), put(told), *(put(port) for port in ports)),
        begin=begin(create_instance, OfInstance(id)),
        answers=instance,
        because=reasons(fleet, demand, placement.host) if ask.dry_run else (),
        undo="delete the instance",
    )


@instances.patch()
def change(ask: Ask, instance: Instance, wish: InstanceChange) -> Plan:
    """Rename an instance, describe it, label it, protect it from being deleted."""
    changed = msgspec.structs.replace(instance, **wish.model_dump(exclude_none=True))
    return Plan(
        summary=f"change instance {instance.name}", changes=(put(changed),), answers=changed, undo="change it back"
    )


@instances.post("/{id}/start", starts=start_instance)
def start(ask: Ask, instance: Instance) -> Plan:
    """Start a stopped instance, or resume a paused one."""
    if instance.state is InstanceState.PAUSED:
        return resume(ask, instance)
    changed = _powered(instance, InstanceState.STARTING)
    return Plan(
        summary=f"start instance {instance.name}",
        changes=(put(changed),),
        begin=begin(start_instance, OfInstance(InstanceId(instance.id))),
        answers=changed,
        undo="stop it",
    )


@instances.post("/{id}/stop", starts=stop_instance)
def stop(ask: Ask, instance: Instance) -> Plan:
    """Stop an instance: its guest is asked to end, and ended after a minute."""
    changed = _powered(instance, InstanceState.STOPPING)
    return Plan(
        summary=f"stop instance {instance.name}",
        changes=(put(changed),),
        begin=begin(stop_instance, StopInstance(InstanceId(instance.id), instance.state)),
        answers=changed,
        undo="start it; what its guest had in memory is lost",
    )


@instances.post("/{id}/pause", starts=pause_instance)
def pause(ask: Ask, instance: Instance) -> Plan:
    """Pause a running instance: its CPUs stand still, its memory stays."""
    changed = _powered(instance, InstanceState.PAUSING)
    return Plan(
        summary=f"pause instance {instance.name}",
        changes=(put(changed),),
        begin=begin(pause_instance, OfInstance(InstanceId(instance.id))),
        answers=changed,
        undo="resume it",
    )


@instances.post("/{id}/resume", starts=resume_instance)
def resume(ask: Ask, instance: Instance) -> Plan:
    """Resume a paused instance: it goes on where it was."""
    changed = _powered(instance, InstanceState.RESUMING)
    return Plan(
        summary=f"resume instance {instance.name}",
        changes=(put(changed),),
        begin=begin(resume_instance, OfInstance(InstanceId(instance.id))),
        answers=changed,
        undo="pause it",
    )


@instances.post("/{id}/reboot", starts=reboot_instance)
def reboot(ask: Ask, instance: Instance, wish: Reboot) -> Plan:
    """Restart a running instance: its guest is asked to, or (hard) reset."""
    changed = instance.to(InstanceState.REBOOTING)
    return Plan(
        summary=f"reboot instance {instance.name}",
        changes=(put(changed),),
        begin=begin(reboot_instance, RebootInstance(InstanceId(instance.id), wish.hard)),
        answers=changed,
        undo="none: what its guest had in memory is lost",
    )


@instances.post("/{id}/resize", starts=resize_instance)
def resize(ask: Ask, instance: Instance, wish: InstanceResize) -> Plan:
    """Give a stopped instance another size on its host: vCPUs, memory, more disk."""
    flavor = ask.see(FLAVORS, wish.flavor_id, "flavor_id") if wish.flavor_id else None
    size = flavor or wish
    disk_gib = wish.disk_gib or max(instance.disk_gib, flavor.disk_gib if flavor else 0)
    if disk_gib < instance.disk_gib:
        smaller = f"it has {instance.disk_gib} GiB, and disks only grow"
        raise Invalid("some fields are wrong", fields={"disk_gib": smaller})
    has_flavor = wish.vcpus is None and wish.memory_mib is None
    changed = msgspec.structs.replace(
        instance.to(InstanceState.RESIZING),
        vcpus=size.vcpus or instance.vcpus,
        memory_mib=size.memory_mib or instance.memory_mib,
        disk_gib=disk_gib,
        flavor_id=FlavorId(flavor.id) if flavor else instance.flavor_id if has_flavor else None,
        generation=instance.generation + 1,
    )
    root = root_volume(ask.state, instance)
    root = msgspec.structs.replace(root, size_gib=disk_gib, generation=root.generation + 1)
    before = ResizeInstance(
        InstanceId(instance.id), instance.vcpus, instance.memory_mib, instance.disk_gib, instance.flavor_id
    )
    words = f"{changed.vcpus} vCPUs, {changed.memory_mib} MiB of memory, {changed.disk_gib} GiB of disk"
    return Plan(
        summary=f"resize instance {instance.name} to {words}",
        changes=(put(changed), put(root)),
        begin=begin(resize_instance, before),
        answers=changed,
        because=refitted(ask.view(Placer), instance, changed),
        undo="resize it back; its disk stays as large",
    )


@instances.post("/{id}/rebuild", starts=rebuild_instance)
def rebuild(ask: Ask, instance: Instance, wish: InstanceRebuild) -> Plan:
    """Give an instance a new disk made from an image. Name, addresses and size stay; what was on the disk is lost."""
    image = usable_image(ask, wish.image_id or instance.image_id)
    if _least_gib(image) > instance.disk_gib:
        raise Conflict(
            f"image {image.name} needs {_least_gib(image)} GiB, the disk has {instance.disk_gib}: resize it first",
            fields={"image_id": "too large"},
        )
    changed = msgspec.structs.replace(
        instance.to(InstanceState.REBUILDING), image_id=ImageId(image.id), generation=instance.generation + 1
    )
    old = root_volume(ask.state, instance)
    if old.protected:
        raise Conflict(f"volume {old.name}, which it boots from, is protected; take the protection away first")
    room_for_volume(ask.state, ask.view(Placer).fleet, instance.host_id, old.size_gib)
    new = msgspec.structs.replace(
        old,
        id=ask.new_id(),
        created_at=ask.now,
        revision=0,
        state=VolumeState.CREATING,
        image_id=ImageId(image.id),
        instance_id=None,
        slot=None,
        generation=1,
    )
    exchange = RebuildInstance(
        InstanceId(instance.id), VolumeId(old.id), VolumeId(new.id), instance.state, instance.image_id
    )
    return Plan(
        summary=f"rebuild instance {instance.name} from image {image.name}",
        changes=(put(changed), put(new)),
        begin=begin(rebuild_instance, exchange),
        answers=changed,
        undo="none: what was on its disk is gone",
    )


@instances.delete(starts=delete_instance)
def delete(ask: Ask, instance: Instance) -> Plan:
    """Delete an instance and the disk that it boots from. Its floating IPs and its other volumes are kept."""
    if instance.protected:
        raise Conflict(f"instance {instance.name} is protected; take the protection away first")
    for volume in ask.state[VOLUMES].by("instance", instance.id):
        if volume.protected and volume.slot == BOOT_SLOT:
            raise Conflict(f"volume {volume.name}, which it boots from, is protected; take the protection away first")
    changed = msgspec.structs.replace(
        instance.to(InstanceState.DELETING), generation=instance.generation + 1, floating_addresses=()
    )
    changes: list[Change] = [put(changed)]
    for port in _ports_of(ask, instance):
        changes += [put(without_port(floating)) for floating in ask.state[FLOATING_IPS].by("port_id", port.id)]
    return Plan(
        summary=f"delete instance {instance.name} with its disk",
        changes=changes,
        begin=begin(delete_instance, OfInstance(InstanceId(instance.id))),
        answers=changed,
        undo="none: its disk is gone",
    )


def _powered(instance: Instance, state: InstanceState) -> Instance:
    return msgspec.structs.replace(instance.to(state), generation=instance.generation + 1)


def _ports_of(ask: Ask, instance: Instance) -> list[Port]:
    return ask.state[PORTS].by("instance_id", instance.id)


def hostname_of(name: str) -> str:
    """A name for people as one label of a domain name (RFC 1123, section 2.1)."""
    label = re.sub(r"[^a-z0-9-]+", "-", name.lower())[:63].strip("-")
    return label or "instance"


def usable_image(ask: Ask, id: str) -> Image:
    """The image that a wish names to be copied. Raises NotFound, or Conflict if it has no data yet."""
    image = ask.state[IMAGES].find(id)
    if image is None or not (image.public or ask.may_see(image)):
        raise NotFound(f"there is no image {id}", fields={"image_id": "not found"})
    if image.state is not ImageState.ACTIVE:
        raise Conflict(f"image {image.name} has no data yet", fields={"image_id": "no data yet"})
    return image


def _size(ask: Ask, wish: InstanceCreate, image: Image) -> tuple[int, int, int]:
    """vCPUs, memory in MiB and disk in GiB. Raises Invalid if the image does not fit the disk."""
    least_gib = _least_gib(image)
    if wish.flavor_id is not None:
        flavor = ask.see(FLAVORS, wish.flavor_id, "flavor_id")
        size = flavor.vcpus, flavor.memory_mib, wish.disk_gib or max(flavor.disk_gib, least_gib)
    else:
        assert wish.vcpus is not None
        assert wish.memory_mib is not None
        size = wish.vcpus, wish.memory_mib, wish.disk_gib or least_gib
    if size[2] < least_gib:
        raise Invalid("some fields are wrong", fields={"disk_gib": f"image {image.name} needs {least_gib} GiB"})
    return size


def _least_gib(image: Image) -> int:
    return max(-(-image.virtual_size_bytes // GIB), 1)


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


def _networks(ask: Ask, wanted: tuple[str, ...]) -> list[tuple[Network, Subnet]]:
    """The networks to connect to, each with the subnet that gives the address; by default the project's only one."""
    state = ask.state
    if wanted:
        found = [ask.see(NETWORKS, id, "network_ids", of=ask.caller.project_id) for id in wanted]
    else:
        found = [each for each in state[NETWORKS].by("project", ask.caller.project_id) if each.kind is NetworkKind.VPC]
        named = [each for each in found if each.name == "default"]
        found = named or found
        if len(found) != 1:
            raise Conflict(f"the project has {len(found)} networks: name one", fields={"network_ids": "missing"})
    chosen: list[tuple[Network, Subnet]] = []
    for network in found:
        if network.kind is NetworkKind.EXTERNAL:
            raise Conflict(f"network {network.name} is external: use a floating IP", fields={"network_ids": "external"})
        subnets = state[SUBNETS].by("network_id", network.id)
        if not subnets:
            raise Conflict(f"network {network.name} has no subnet", fields={"network_ids": "no subnet"})
        chosen.append((network, subnets[0]))
    return chosen


def _security_groups(ask: Ask, wanted: tuple[str, ...]) -> tuple[SecurityGroupId, ...]:
    if wanted:
        mine = ask.caller.project_id
        found = [ask.see(SECURITY_GROUPS, id, "security_group_ids", of=mine) for id in dict.fromkeys(wanted)]
        return tuple(SecurityGroupId(group.id) for group in found)
    default = ask.state[SECURITY_GROUPS].one("default", ask.caller.project_id)
    return (SecurityGroupId(default.id),) if default is not None else ()


def _ports(
    ask: Ask,
    instance: InstanceId,
    networks: list[tuple[Network, Subnet]],
    groups: tuple[SecurityGroupId, ...],
    hostname: str,
) -> list[Port]:
    made: list[Port] = []
    for network, subnet in networks:
        id = ask.new_id()
        given = [each.address for port in made for each in port.addresses if each.subnet_id == subnet.id]
        address = ask.view(Addresses).next(SubnetId(subnet.id), besides=given)
        made.append(
            Port(
                id=id,
                created_at=ask.now,
                network_id=NetworkId(network.id),
                project_id=ask.caller.project_id,
                name=hostname,
                mac=mac_of(id),
                addresses=(FixedAddress(subnet_id=SubnetId(subnet.id), address=address),),
                security_group_ids=groups,
                instance_id=instance,
                hostname=hostname,
            )
        )
    return made


def mac_of(port: str) -> str:
    """A locally administered unicast MAC address (IEEE 802, section 8.4) from the random end of a port's id."""
    tail = port[-10:]
    return ":".join(("0a", *(tail[at : at + 2] for at in range(0, 10, 2))))


@instances.socket("/{id}/console", least=Role.MEMBER)
async def console(socket: Socket, instance: Instance) -> None:
    """Use an instance's serial console: what is sent is typed, what comes back is what it shows."""
    consoles: Consoles = socket.services[Consoles]
    if instance.state is not InstanceState.RUNNING:
        raise Conflict(f"instance {instance.name} is {instance.state}: it has no console now")
    await consoles.join(socket, instance)
