"""Starting, stopping, pausing and restarting instances."""

import msgspec

from pileus.cloud.instances.model import Instance, InstanceState
from pileus.cloud.instances.operations.noun import instances
from pileus.cloud.instances.workflows import (
    pause_instance,
    reboot_instance,
    resume_instance,
    start_instance,
    stop_instance,
)
from pileus.cloud.instances.workflows.hosting import OfInstance
from pileus.cloud.instances.workflows.power import RebootInstance, StopInstance
from pileus.kernel.ids import InstanceId
from pileus.operations.plan import Ask, Plan
from pileus.operations.wire import Wire
from pileus.state.state import put
from pileus.workflow.workflow import begin


class Reboot(Wire):
    hard: bool = False
    """By the reset button, not by asking the guest."""


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


def _powered(instance: Instance, state: InstanceState) -> Instance:
    return msgspec.structs.replace(instance.to(state), generation=instance.generation + 1)
