"""Describing, protecting and deleting instances."""

import msgspec

from pileus.cloud.floatingips.model import FLOATING_IPS, without_port
from pileus.cloud.instances.model import Instance, InstanceState
from pileus.cloud.instances.operations.hardware import with_template
from pileus.cloud.instances.operations.noun import instances
from pileus.cloud.instances.workflows import delete_instance
from pileus.cloud.instances.workflows.hosting import OfInstance
from pileus.cloud.networks.model import PORTS
from pileus.cloud.volumes.model import BOOT_SLOT, VOLUMES
from pileus.kernel.errors import Conflict
from pileus.kernel.ids import InstanceId
from pileus.link.templates import GuestTemplate
from pileus.operations.plan import Ask, Plan
from pileus.operations.wire import Description, Labels, Name, Wire
from pileus.state.state import Change, put
from pileus.workflow.workflow import begin


class InstanceChange(Wire):
    name: Name | None = None
    description: Description | None = None
    labels: Labels | None = None
    protected: bool | None = None
    template: GuestTemplate | None = None
    """Other devices, from its next start; of a stopped instance only."""


@instances.patch()
def change(ask: Ask, instance: Instance, wish: InstanceChange) -> Plan:
    """Rename an instance, describe it, label it, protect it from being deleted, give it other devices."""
    changed = with_template(ask, instance, wish.template or instance.template)
    changed = msgspec.structs.replace(changed, **wish.model_dump(exclude_none=True))
    return Plan(
        summary=f"change instance {instance.name}", changes=(put(changed),), answers=changed, undo="change it back"
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
    for port in ask.state[PORTS].by("instance_id", instance.id):
        changes += [put(without_port(floating)) for floating in ask.state[FLOATING_IPS].by("port_id", port.id)]
    return Plan(
        summary=f"delete instance {instance.name} with its disk",
        changes=changes,
        begin=begin(delete_instance, OfInstance(InstanceId(instance.id))),
        answers=changed,
        undo="none: its disk is gone",
    )
