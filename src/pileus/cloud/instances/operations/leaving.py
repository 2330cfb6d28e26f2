"""Letting instances go on without Pileus."""

from collections.abc import Iterator
from typing import Annotated, Self

import msgspec
from pydantic import StringConstraints, model_validator

from pileus.cloud.instances.model import Instance, InstanceState
from pileus.cloud.instances.operations.noun import instances
from pileus.cloud.instances.specs import plugged_ports_of, volumes_of
from pileus.cloud.instances.workflows import leave_instance
from pileus.cloud.instances.workflows.leaving import LeaveInstance
from pileus.cloud.networks.model import NETWORKS, Port
from pileus.cloud.snapshots.model import must_have_none
from pileus.kernel.errors import Conflict
from pileus.kernel.ids import InstanceId
from pileus.link.templates import GuestTemplate
from pileus.operations.caller import Role
from pileus.operations.plan import Ask, Plan, Reason
from pileus.operations.wire import Wire
from pileus.state.state import put
from pileus.workflow.workflow import begin

_LEAVES_FROM = frozenset({InstanceState.RUNNING, InstanceState.STOPPED, InstanceState.PAUSED})

Bridge = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,15}$")]
"""The name of a network device (linux/if.h: IFNAMSIZ)."""


class InstanceLeave(Wire):
    bridge: Bridge | None = None
    """The bridge of its host that its interfaces are on from its next start, instead of networks of Pileus."""
    without_network: bool = False
    """Whether it is to go on although it loses its networks."""

    @model_validator(mode="after")
    def _is_one_or_the_other(self) -> Self:
        if self.bridge is not None and self.without_network:
            raise ValueError("bridge and without_network exclude each other")
        return self


@instances.post("/{id}/leave", least=Role.PLATFORM, starts=leave_instance)
def leave(ask: Ask, instance: Instance, wish: InstanceLeave) -> Plan:
    """Let an instance go on without Pileus, as a guest that virsh starts and stops. It does not notice.

    Its disks stay where they are, and its records end. The networks of Pileus end for it: what it has on them is on a
    bridge of its host from its next start, or on nothing.
    """
    if instance.protected:
        raise Conflict(f"instance {instance.name} is protected; take the protection away first")
    if instance.state not in _LEAVES_FROM:
        raise Conflict(f"instance {instance.name} is {instance.state}: it must be running, stopped or paused")
    volumes = volumes_of(ask.state, instance)
    for volume in volumes:
        if volume.protected:
            raise Conflict(f"volume {volume.name} is protected; take the protection away first")
        must_have_none(ask.state, volume, "left")
    ports = plugged_ports_of(ask.state, instance)
    if ports and wish.bridge is None and not wish.without_network:
        raise Conflict(
            f"instance {instance.name} would lose its networks: name the bridge that it is on from its next start, or"
            " say that it goes on without",
            fields={"bridge": "missing", "without_network": "false"},
            because={port.name: f"on network {_network(ask, port)}" for port in ports},
        )
    changed = msgspec.structs.replace(instance.to(InstanceState.DELETING).newer(), floating_addresses=())
    return Plan(
        summary=f"let instance {instance.name} go on without Pileus",
        changes=(put(changed),),
        begin=begin(leave_instance, LeaveInstance(InstanceId(instance.id), wish.bridge or "")),
        answers=changed,
        because=tuple(_what_becomes(ask, instance, ports, wish)),
        undo="take it over again",
    )


def _what_becomes(ask: Ask, instance: Instance, ports: list[Port], wish: InstanceLeave) -> Iterator[Reason]:
    taken_over = instance.template is GuestTemplate.AS_FOUND
    says = "it goes on as it is" if instance.state is not InstanceState.STOPPED else "it stays stopped"
    name = "the name that it was found with" if taken_over else f"the name pileus-{instance.id[-12:]}"
    yield Reason(about=f"instance {instance.name}", says=f"{says}; virsh has it under {name}")
    for volume in volumes_of(ask.state, instance):
        where = volume.found.path if volume.found else f"in the pool {volume.storage_pool}, as volume {volume.id}"
        yield Reason(about=f"volume {volume.name}", says=f"stays where it is: {where}")
    then = f"on {wish.bridge} from its next start" if wish.bridge else "on nothing from its next start"
    for port in ports:
        yield Reason(about=f"port {port.name}", says=f"loses network {_network(ask, port)} at once; {then}")


def _network(ask: Ask, port: Port) -> str:
    return ask.state[NETWORKS].get(port.network_id).name
