"""What becomes of a guest that is taken over: it stays as it is, and is an instance from then on. Plans only."""

from collections.abc import Iterator, Sequence
from typing import Annotated

import msgspec
from pydantic import TypeAdapter, ValidationError

from pileus.cloud.foreign.model import Shadow
from pileus.cloud.foreign.operations import foreign_guests, must_not_be_on_its_way
from pileus.cloud.foreign.workflows import AdoptGuest, adopt_guest
from pileus.cloud.hosts.model import HOSTS, Host
from pileus.cloud.instances.model import INSTANCES, FirstBootData, Instance, InstanceState
from pileus.cloud.instances.operations.creation import hostname_of
from pileus.cloud.networks.model import NETWORKS, Network, NetworkKind, Port, PortState
from pileus.cloud.projects.model import PROJECTS, Project
from pileus.cloud.volumes.model import BOOT_SLOT, VOLUMES, Volume, VolumeState
from pileus.kernel.errors import Conflict, Invalid
from pileus.kernel.ids import HostId, InstanceId, NetworkId, ProjectId, VolumeId
from pileus.kernel.units import GIB
from pileus.link.foreign import ForeignDisk, ForeignNic
from pileus.link.guests import Restart, Watchdog
from pileus.link.templates import FRAMES, GuestTemplate
from pileus.link.volumes import FoundDisk
from pileus.operations.caller import Role
from pileus.operations.plan import Ask, Plan, Reason
from pileus.operations.wire import Id, Name, Wire, ref
from pileus.state.state import put
from pileus.workflow.workflow import begin

__all__ = ["foreign_guests"]

_ETHERNET_MTU = 1500
_NAME: TypeAdapter[str] = TypeAdapter(Name)


class AdoptWish(Wire):
    project_id: Annotated[Id, ref("project")]
    """Whose it is to be."""
    name: Name | None = None
    """By default the one that it has."""
    restart: Restart = Restart.ON_FAILURE


@foreign_guests.post("/{id}/adopt", least=Role.PLATFORM, starts=adopt_guest)
def adopt(ask: Ask, shadow: Shadow, wish: AdoptWish) -> Plan:
    """Take over a guest as an instance. It goes on as it is, running or not, and does not notice.

    Its disks stay where they are and become volumes, its network interfaces stay connected as they are and become
    ports, all else that it has stays as it is.
    """
    _check(ask, shadow)
    project = ask.see(PROJECTS, wish.project_id, "project_id")
    host = ask.state[HOSTS].get(shadow.host_id)
    name = wish.name or _usable_name(shadow)
    disks = [disk for disk in shadow.disks if disk.device == "disk"]
    id = InstanceId(shadow.uuid)
    volumes = [_volume(ask, project, host, id, name, slot, disk) for slot, disk in enumerate(disks)]
    networks = {_source(nic): _network(ask, project, host, nic) for nic in shadow.nics}
    ports = [
        _port(ask, project, host, id, f"{name}-{slot}", networks[_source(nic)], slot, nic)
        for slot, nic in enumerate(shadow.nics)
    ]
    instance = Instance(
        id=id,
        created_at=ask.now,
        project_id=ProjectId(project.id),
        name=name,
        state=InstanceState.RUNNING if shadow.running else InstanceState.STOPPED,
        vcpus=shadow.vcpus,
        memory_mib=shadow.memory_mib,
        disk_gib=volumes[0].size_gib,
        image_id=None,
        pool_id=host.pool_id,
        host_id=HostId(host.id),
        attached_volume_ids=tuple(VolumeId(volume.id) for volume in volumes[1:]),
        busy_with="it is being taken over",
        restart=wish.restart,
        watchdog=Watchdog.NONE,
        template=GuestTemplate.AS_FOUND,
        generation=shadow.generation + 1,
    )
    told = FirstBootData(id=id, created_at=ask.now, project_id=ProjectId(project.id), hostname=hostname_of(name))
    going = msgspec.structs.replace(shadow, instance_id=id)
    new = [network for network in networks.values() if network.id not in ask.state[NETWORKS]]
    return Plan(
        summary=f"take over guest {shadow.name} on {host.name} as instance {name} of project {project.name}",
        changes=(
            put(going),
            put(instance),
            put(told),
            *(put(each) for each in (*volumes, *new, *ports)),
        ),
        begin=begin(adopt_guest, AdoptGuest(id, shadow.id)),
        answers=going,
        because=tuple(_what_becomes(shadow, volumes, disks, list(networks.values()), ports)),
        undo="let it go on without Pileus",
    )


def _check(ask: Ask, shadow: Shadow) -> None:
    """Raises Conflict with all that stands in the way."""
    must_not_be_on_its_way(shadow)
    frame = FRAMES[GuestTemplate.AS_FOUND]
    disks = [disk for disk in shadow.disks if disk.device == "disk"]
    why = [*shadow.obstacles, *(f"it has changed: {each}" for each in shadow.drift)]
    if shadow.uuid in ask.state[INSTANCES]:
        why.append("there is an instance of its id already")
    if not disks:
        why.append("it has no disk")
    if len(disks) > frame.disks:
        why.append(f"it has {len(disks)} disks, and an instance at most {frame.disks}")
    if len(shadow.nics) > frame.nics:
        why.append(f"it has {len(shadow.nics)} network interfaces, and an instance at most {frame.nics}")
    taken = {each.found.path: each.name for each in ask.state[VOLUMES].by("host", shadow.host_id) if each.found}
    why += [f"disk {disk.target} is volume {taken[disk.path]} already" for disk in disks if disk.path in taken]
    if why:
        again = "; shadow it again when it is as it ought to be" if shadow.drift else ""
        raise Conflict(
            f"guest {shadow.name} cannot be taken over{again}",
            because={f"{number}": each for number, each in enumerate(dict.fromkeys(why), start=1)},
        )


def _usable_name(shadow: Shadow) -> str:
    try:
        return _NAME.validate_python(shadow.name)
    except ValidationError:
        raise Invalid("give the instance a name: that of the guest will not do", fields={"name": "missing"}) from None


def _volume(
    ask: Ask, project: Project, host: Host, instance: InstanceId, name: str, slot: int, disk: ForeignDisk
) -> Volume:
    return Volume(
        id=ask.new_id(),
        created_at=ask.now,
        project_id=ProjectId(project.id),
        name=name if slot == BOOT_SLOT else f"{name}-{disk.target}",
        size_gib=max(1, -(-disk.size_bytes // GIB)),
        state=VolumeState.IN_USE,
        instance_id=instance,
        slot=slot,
        host_id=HostId(host.id),
        found=FoundDisk(path=disk.path, kind=disk.kind, format=disk.format or "raw", target=disk.target),
    )


def _source(nic: ForeignNic) -> str:
    return nic.source or nic.kind


def _network(ask: Ask, project: Project, host: Host, nic: ForeignNic) -> Network:
    """What stands for the wiring of an interface: the same for all that the project has on this bridge."""
    name = f"{_source(nic)} of {host.name}"
    for known in ask.state[NETWORKS].by("project", project.id):
        if known.kind is NetworkKind.UNMANAGED and known.name == name:
            return known
    return Network(
        id=ask.new_id(),
        created_at=ask.now,
        project_id=ProjectId(project.id),
        name=name,
        kind=NetworkKind.UNMANAGED,
        mtu=_ETHERNET_MTU,
        physical_network=nic.source,
    )


def _port(
    ask: Ask,
    project: Project,
    host: Host,
    instance: InstanceId,
    name: str,
    network: Network,
    slot: int,
    nic: ForeignNic,
) -> Port:
    return Port(
        id=ask.new_id(),
        created_at=ask.now,
        network_id=NetworkId(network.id),
        project_id=ProjectId(project.id),
        name=name,
        mac=nic.mac,
        addresses=(),
        state=PortState.ATTACHED,
        instance_id=instance,
        slot=slot,
        host_id=HostId(host.id),
    )


def _what_becomes(
    shadow: Shadow,
    volumes: Sequence[Volume],
    disks: Sequence[ForeignDisk],
    networks: Sequence[Network],
    ports: Sequence[Port],
) -> Iterator[Reason]:
    runs = "goes on running" if shadow.running else "stays stopped"
    yield Reason(
        about=f"guest {shadow.name}", says=f"{runs}, with {shadow.vcpus} vCPUs and {shadow.memory_mib} MiB of memory"
    )
    for volume, disk in zip(volumes, disks, strict=True):
        says = f"becomes volume {volume.name} of {volume.size_gib} GiB, and stays at {disk.path}"
        yield Reason(about=f"disk {disk.target}", says=says)
    names = {network.id: network.name for network in networks}
    for port in ports:
        says = f"becomes port {port.name} of network {names[port.network_id]}, and stays connected as it is"
        yield Reason(about=f"interface {port.mac}", says=says)
    for drive in (disk for disk in shadow.disks if disk.device != "disk"):
        yield Reason(about=f"drive {drive.target}", says="stays as it is")
    for other in shadow.untouched:
        yield Reason(about=other, says="stays as it is: Pileus does not change it")
