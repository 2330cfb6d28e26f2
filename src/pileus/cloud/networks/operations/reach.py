"""Asking whether one reaches another, and why."""

from collections.abc import Iterator
from enum import StrEnum
from ipaddress import ip_address, ip_network
from typing import Annotated, Self

import msgspec
from pydantic import Field, model_validator

from pileus.cloud.floatingips.model import FLOATING_IPS, FloatingIp
from pileus.cloud.instances.model import INSTANCES, Instance, InstanceState
from pileus.cloud.nat.model import PORT_FORWARDINGS
from pileus.cloud.networks.model import NETWORKS, PORTS, SUBNETS, Port
from pileus.cloud.networks.operations.fields import Address
from pileus.cloud.networks.operations.networks import networks
from pileus.cloud.networks.reach import Hop, Packet, Trace, Verdict, from_outside, from_port
from pileus.operations.caller import Role
from pileus.operations.plan import Ask, Plan
from pileus.operations.wire import Id, Wire, ref


class Protocol(StrEnum):
    TCP = "tcp"
    UDP = "udp"
    ICMP = "icmp"


class Reach(Wire):
    source_instance_id: Annotated[Id, ref("instance")] | None = None
    source_address: Address | None = None
    """Somewhere outside of the cloud, in place of an instance."""
    destination_instance_id: Annotated[Id, ref("instance")] | None = None
    destination_address: Address | None = None
    protocol: Annotated[Protocol, Field(strict=False)] = Protocol.TCP
    port: Annotated[int, Field(ge=1, le=65_535)] | None = None
    """Needed for TCP and UDP."""

    @model_validator(mode="after")
    def _is_a_question(self) -> Self:
        for side in ("source", "destination"):
            given = [getattr(self, f"{side}_{what}") is not None for what in ("instance_id", "address")]
            if sum(given) != 1:
                raise ValueError(f"name either {side}_instance_id or {side}_address")
        if self.source_instance_id is None and self.destination_instance_id is None:
            raise ValueError("one of the two must be an instance")
        if (self.port is None) is not (self.protocol is Protocol.ICMP):
            raise ValueError("TCP and UDP have a port, ICMP has none")
        return self


class Reachability(msgspec.Struct, frozen=True, kw_only=True):
    """Whether one reaches another, and why."""

    verdict: Verdict
    summary: str
    hops: tuple[Hop, ...]
    advice: str = ""
    """What would let it through."""
    remarks: tuple[str, ...] = ()
    """What else stands in the way that is not the network's."""


@networks.post("/reach", least=Role.READER, answers=Reachability)
def reach(ask: Ask, wish: Reach) -> Plan:
    """Tell whether an instance reaches another, or an address, and why: hop by hop, with what would help."""
    source = ask.see(INSTANCES, wish.source_instance_id, "source_instance_id") if wish.source_instance_id else None
    to_id = wish.destination_instance_id
    destination = ask.see(INSTANCES, to_id, "destination_instance_id") if to_id else None
    if source is not None:
        traces = list(_from_instance(ask, source, destination, wish))
    else:
        assert destination is not None
        traces = list(_from_outside(ask, destination, wish))
    if traces:
        best = min(traces, key=lambda trace: _PREFERRED.index(trace.verdict))
        answer = _answer(best, wish, source, destination)
    else:
        answer = _without_a_way(ask, wish, source, destination)
    return Plan(summary=f"tell: {answer.summary}", answers=answer, undo="nothing changes")


_PREFERRED = (Verdict.YES, Verdict.BEYOND, Verdict.NO)
"""Of several ways, one that arrives says it all."""


def _from_instance(ask: Ask, source: Instance, destination: Instance | None, wish: Reach) -> Iterator[Trace]:
    """The ways to each address that the destination has, those on a network in common first."""
    ports = _ports_of(ask, source)
    if destination is None:
        addresses = [wish.destination_address or ""]
    else:
        nearby = {port.network_id for port in ports}
        theirs = sorted(_ports_of(ask, destination), key=lambda port: port.network_id not in nearby)
        addresses = [each.address for port in theirs for each in port.addresses]
        addresses += [floating.address for floating in _floating_ips_of(ask, destination)]
    for address in addresses:
        if (sender := _sender(ask, ports, address)) is not None:
            port, from_ = sender
            packet = Packet(source=from_, destination=address, protocol=wish.protocol, port=wish.port)
            yield from_port(ask.state, port, packet, ask.may_see)


def _sender(ask: Ask, ports: list[Port], to: str) -> tuple[Port, str] | None:
    """Which of its ports a guest sends by, and with which address: the one nearest to it, or else the first."""
    version = ip_address(to).version
    able = [(port, each) for port in ports for each in port.addresses if ip_address(each.address).version == version]
    for port, each in able:
        if ip_address(to) in ip_network(ask.state[SUBNETS].get(each.subnet_id).cidr):
            return port, each.address
    return (able[0][0], able[0][1].address) if able else None


def _from_outside(ask: Ask, destination: Instance, wish: Reach) -> Iterator[Trace]:
    """The ways in from outside: to each address that is known there, and to ports that are forwarded."""
    state = ask.state
    known = [(floating.network_id, floating.address, wish.port) for floating in _floating_ips_of(ask, destination)]
    for port in _ports_of(ask, destination):
        if state[NETWORKS].get(port.network_id).is_physical:
            known += [(port.network_id, each.address, wish.port) for each in port.addresses]
        for rule in state[PORT_FORWARDINGS].by("port_id", port.id):
            if (rule.protocol.value, rule.internal_port) == (wish.protocol.value, wish.port):
                network_id = state[FLOATING_IPS].get(rule.floating_ip_id).network_id
                known.append((network_id, rule.address, rule.external_port))
    source = wish.source_address or ""
    for network, address, number in known:
        if ip_address(address).version == ip_address(source).version:
            packet = Packet(source=source, destination=address, protocol=wish.protocol, port=number)
            yield from_outside(state, state[NETWORKS].get(network), packet, ask.may_see)


def _answer(trace: Trace, wish: Reach, source: Instance | None, destination: Instance | None) -> Reachability:
    says = {Verdict.YES: "reaches", Verdict.NO: "does not reach", Verdict.BEYOND: "may reach"}[trace.verdict]
    packet = Packet(source="", destination="", protocol=wish.protocol, port=wish.port)
    return Reachability(
        verdict=trace.verdict,
        summary=f"{_called(source, wish.source_address)} {says} "
        f"{_called(destination, wish.destination_address)} by {packet.words}",
        hops=trace.hops,
        advice=trace.advice,
        remarks=tuple(
            f"instance {each.name} is {each.state}"
            for each in (source, destination)
            if each is not None and each.state is not InstanceState.RUNNING
        ),
    )


def _without_a_way(ask: Ask, wish: Reach, source: Instance | None, destination: Instance | None) -> Reachability:
    if told := [each for each in (source, destination) if each is not None and _is_told_elsewhere(ask, each)]:
        says, advice = f"{told[0].name} is told its address by the LAN", "give its network an address pool"
        return Reachability(verdict=Verdict.BEYOND, summary=f"{says}: nothing is known of it", hops=(), advice=advice)
    if source is None:
        assert destination is not None
        says, advice = "has no address that is known outside", f"associate a floating IP with {destination.name}"
    else:
        says, advice = "has no address of the same IP version", f"connect {source.name} to a network that has one"
    there = _called(destination, wish.destination_address)
    return Reachability(verdict=Verdict.NO, summary=f"{there} {says}", hops=(), advice=advice)


def _is_told_elsewhere(ask: Ask, instance: Instance) -> bool:
    return any(not port.addresses for port in _ports_of(ask, instance))


def _called(instance: Instance | None, address: str | None) -> str:
    return instance.name if instance is not None else str(address)


def _ports_of(ask: Ask, instance: Instance) -> list[Port]:
    return ask.state[PORTS].by("instance_id", instance.id)


def _floating_ips_of(ask: Ask, instance: Instance) -> list[FloatingIp]:
    floating = ask.state[FLOATING_IPS]
    return [each for port in _ports_of(ask, instance) for each in floating.by("port_id", port.id)]
