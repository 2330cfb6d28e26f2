"""What one may do with ports."""

from typing import Annotated

import msgspec
from pydantic import AfterValidator, Field

from pileus.cloud.floatingips.model import FLOATING_IPS, without_port
from pileus.cloud.hosts.model import HOSTS
from pileus.cloud.instances.model import INSTANCES, Instance
from pileus.cloud.instances.operations.hardware import check_plugging
from pileus.cloud.instances.specs import ports_of
from pileus.cloud.nat.model import rules_at
from pileus.cloud.networks.connecting import network_for, new_port, security_groups_of
from pileus.cloud.networks.limiting import BandwidthMbit
from pileus.cloud.networks.model import NETWORKS, PORTS, Network, NetworkKind, Port, PortState
from pileus.cloud.networks.operations.fields import Address, Prefix
from pileus.cloud.networks.sharing import is_for_others
from pileus.cloud.networks.workflows import (
    MovePort,
    OfPort,
    attach_port,
    detach_port,
    move_port,
    plugged,
    showing,
)
from pileus.kernel.errors import Conflict
from pileus.kernel.ids import InstanceId, PortId
from pileus.operations.declare import Noun
from pileus.operations.plan import Ask, Plan
from pileus.operations.wire import Id, Name, Wire, ref
from pileus.state.state import Change, State, put, remove
from pileus.workflow.workflow import begin

_GROUP_BIT = 0x01
_OF_ROUTERS = "0e:"


def _mac(text: str) -> str:
    text = text.lower()
    first = int(text[:2], 16)
    if first & _GROUP_BIT or text == "00:00:00:00:00:00":
        raise ValueError("must be the address of one machine, not of a group")
    if text.startswith(_OF_ROUTERS):
        raise ValueError(f"addresses that begin with {_OF_ROUTERS} are for routers and the metadata service")
    return text


Mac = Annotated[str, Field(pattern=r"^([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}$"), AfterValidator(_mac)]
Groups = Annotated[tuple[Annotated[Id, ref("security-group")], ...], Field(max_length=16)]
Prefixes = Annotated[tuple[Prefix, ...], Field(max_length=16)]


class PortCreate(Wire):
    name: Name
    network_id: Annotated[Id, ref("network")]
    addresses: Annotated[tuple[Address, ...], Field(max_length=2)] = ()
    """At most one of each IP version; of a version that is not named, the next free one."""
    mac: Mac | None = None
    """One of its own, unless said otherwise."""
    security_group_ids: Groups = ()
    """By default the project's default group."""
    allowed_prefixes: Prefixes = ()
    """What it may speak for besides its own addresses: a guest that forwards for others."""
    bandwidth_mbit: BandwidthMbit | None = None
    """In each direction, in Mbit/s; without, what its instance's limits say."""


class PortChange(Wire):
    name: Name | None = None
    security_group_ids: Annotated[Groups, Field(min_length=1)] | None = None
    allowed_prefixes: Prefixes | None = None
    bandwidth_mbit: BandwidthMbit | None = None
    """In each direction, in Mbit/s; null for what its instance's limits say."""


class PortAttach(Wire):
    instance_id: Annotated[Id, ref("instance")]


ports = Noun(
    PORTS,
    plural="ports",
    columns=("name", "mac", "addresses", "state", "instance_id"),
    about="Ports: connections to networks, the network interfaces (NICs) of instances.",
)
ports.list(filters=("name", "network_id", "instance_id", "host_id", "state"), sorts=("name",))
ports.show()


@ports.post()
def create(ask: Ask, wish: PortCreate) -> Plan:
    """Create a port. It keeps its addresses until it is deleted, whether an instance has it or not."""
    project = ask.caller.project_id
    network = network_for(ask, wish.network_id, "network_id", project)
    _may_speak_for(ask.state, network, wish.allowed_prefixes)
    port = new_port(
        ask,
        network,
        project=project,
        name=wish.name,
        groups=security_groups_of(ask, wish.security_group_ids, project),
        mac=wish.mac,
        wanted=wish.addresses,
    )
    port = msgspec.structs.replace(
        port, kept=True, allowed_prefixes=wish.allowed_prefixes, bandwidth_mbit=wish.bandwidth_mbit
    )
    at = ", ".join(each.address for each in port.addresses) or "whatever address the LAN tells it"
    return Plan(
        summary=f"create port {port.name} in network {network.name} at {at}",
        changes=(put(port),),
        answers=port,
        undo="delete the port",
    )


@ports.patch()
def change(ask: Ask, port: Port, wish: PortChange) -> Plan:
    """Rename a port, or change its security groups, its limit and what it may speak for; that is so at once."""
    changed = port
    if wish.name is not None:
        changed = msgspec.structs.replace(changed, name=wish.name)
    if wish.security_group_ids is not None:
        groups = security_groups_of(ask, wish.security_group_ids, port.project_id)
        changed = msgspec.structs.replace(changed, security_group_ids=groups)
    if wish.allowed_prefixes is not None:
        _may_speak_for(ask.state, ask.state[NETWORKS].get(port.network_id), wish.allowed_prefixes)
        changed = msgspec.structs.replace(changed, allowed_prefixes=wish.allowed_prefixes)
    if "bandwidth_mbit" in wish.model_fields_set:
        changed = msgspec.structs.replace(changed, bandwidth_mbit=wish.bandwidth_mbit)
    return Plan(summary=f"change port {port.name}", changes=(put(changed),), answers=changed, undo="change it back")


@ports.post("/{id}/attach", starts=attach_port)
def attach(ask: Ask, port: Port, wish: PortAttach) -> Plan:
    """Attach a port to an instance, running or stopped."""
    if port.state is PortState.ATTACHED:
        raise Conflict(f"port {port.name} is attached to an instance: detach it first, or move it")
    instance = ask.see(INSTANCES, wish.instance_id, "instance_id", of=port.project_id)
    check_plugging(instance, "attaching a port")
    _reaches_its_network(ask, port, instance)
    changed = plugged(ask.state, port, instance, slot=_free_slot(ask, instance), as_state=PortState.ATTACHING)
    busy = instance.busy(f"port {port.name} is being attached")
    return Plan(
        summary=f"attach port {port.name} to instance {instance.name}",
        changes=(put(changed), put(busy), *_slots_recorded(ask, instance)),
        begin=begin(attach_port, OfPort(PortId(port.id))),
        answers=changed,
        undo="detach it",
    )


@ports.post("/{id}/detach", starts=detach_port)
def detach(ask: Ask, port: Port) -> Plan:
    """Detach a port from its instance, and keep it with its addresses."""
    ask.state[NETWORKS].get(port.network_id).must_be_ours("id")
    instance, port = _attached(ask, port)
    check_plugging(instance, "detaching a port")
    changed = port.to(PortState.DETACHING)
    busy = instance.busy(f"port {port.name} is being detached")
    return Plan(
        summary=f"detach port {port.name} from instance {instance.name}",
        changes=(put(changed), put(busy), *_slots_recorded(ask, instance, besides=port)),
        begin=begin(detach_port, OfPort(PortId(port.id))),
        answers=changed,
        undo="attach it again",
    )


@ports.post("/{id}/move", starts=move_port)
def move(ask: Ask, port: Port, wish: PortAttach) -> Plan:
    """Move a port from its instance to another, with its addresses: it is there in the end, or where it was."""
    ask.state[NETWORKS].get(port.network_id).must_be_ours("id")
    source, port = _attached(ask, port)
    target = ask.see(INSTANCES, wish.instance_id, "instance_id", of=port.project_id)
    if target.id == source.id:
        raise Conflict(f"port {port.name} is attached to instance {target.name} already")
    for instance in (source, target):
        check_plugging(instance, "moving a port")
    _reaches_its_network(ask, port, target)
    assert port.slot is not None
    changed = plugged(ask.state, port, target, slot=_free_slot(ask, target), as_state=PortState.MOVING)
    left = [each for each in ports_of(ask.state, source) if each.is_attached and each.id != port.id]
    source_busy = showing(ask.state, source.busy(f"port {port.name} is being moved away"), left)
    target_busy = target.busy(f"port {port.name} is being moved here")
    return Plan(
        summary=f"move port {port.name} from instance {source.name} to {target.name}",
        changes=(
            put(changed),
            put(source_busy),
            put(target_busy),
            *_slots_recorded(ask, source, besides=port),
            *_slots_recorded(ask, target),
        ),
        begin=begin(move_port, MovePort(PortId(port.id), InstanceId(source.id), port.slot)),
        answers=changed,
        undo="move it back",
    )


@ports.delete()
def delete(ask: Ask, port: Port) -> Plan:
    """Delete a port that no instance has, with the forwardings to it. Its floating IPs are kept."""
    if port.state is not PortState.FREE:
        raise Conflict(f"port {port.name} is {port.state}: detach it first")
    floating = ask.state[FLOATING_IPS].by("port_id", port.id)
    changes: list[Change] = [
        remove(port),
        *(remove(rule) for rule in rules_at(ask.state, port.id)),
        *(put(without_port(each)) for each in floating),
    ]
    return Plan(
        summary=f"delete port {port.name}", changes=changes, undo="create it again; its addresses may be taken by then"
    )


def _may_speak_for(state: State, network: Network, prefixes: tuple[str, ...]) -> None:
    if prefixes and (network.kind is NetworkKind.EXTERNAL or is_for_others(state, network)):
        raise Conflict(
            f"network {network.name} is for several projects: a port speaks there for itself alone",
            fields={"allowed_prefixes": "not in a shared network"},
        )


def _reaches_its_network(ask: Ask, port: Port, instance: Instance) -> None:
    """Raises Conflict if the instance's host is not on the wire that the port's network is on."""
    network, host = ask.state[NETWORKS].get(port.network_id), ask.state[HOSTS].get(instance.host_id)
    wires = host.facts.physical_networks if host.facts is not None else ()
    if network.is_physical and network.physical_network not in wires:
        there = f"it is on {', '.join(wires)}" if wires else "it is on none"
        raise Conflict(
            f"host {host.name}, on which instance {instance.name} is, is not on physical network"
            f" {network.physical_network}; {there}",
            fields={"instance_id": "not on its wire"},
        )


def _attached(ask: Ask, port: Port) -> tuple[Instance, Port]:
    """The instance that has the port, and the port with its slot. Raises Conflict if none has it."""
    if port.state is not PortState.ATTACHED or port.instance_id is None:
        raise Conflict(f"port {port.name} is {port.state}: it is not attached to an instance")
    instance = ask.state[INSTANCES].get(port.instance_id)
    return instance, next(each for each in ports_of(ask.state, instance) if each.id == port.id)


def _free_slot(ask: Ask, instance: Instance) -> int:
    taken = {port.slot for port in ports_of(ask.state, instance)}
    nics = instance.frame.nics
    free = next((slot for slot in range(nics) if slot not in taken), None)
    if free is None:
        raise Conflict(f"instance {instance.name} has {nics} ports, and room for no more")
    return free


def _slots_recorded(ask: Ask, instance: Instance, *, besides: Port | None = None) -> list[Change]:
    """The other ports of an instance keep their places when one comes or goes."""
    before = {port.id: port for port in ask.state[PORTS].by("instance_id", instance.id)}
    return [
        put(port)
        for port in ports_of(ask.state, instance)
        if port != before[port.id] and (besides is None or port.id != besides.id)
    ]
