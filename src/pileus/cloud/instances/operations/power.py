"""Starting, stopping, pausing, suspending and restarting instances."""

from pileus.cloud.instances.model import Instance, InstanceState
from pileus.cloud.instances.operations.noun import instances
from pileus.cloud.instances.workflows import (
    pause_instance,
    reboot_instance,
    resume_instance,
    start_instance,
    stop_instance,
    suspend_instance,
)
from pileus.cloud.instances.workflows.hosting import OfInstance
from pileus.cloud.instances.workflows.power import FromState, RebootInstance, ResumeInstance, StartInstance
from pileus.kernel.ids import InstanceId
from pileus.link.guests import BootDevice
from pileus.operations.plan import Ask, Plan
from pileus.operations.wire import Wire
from pileus.state.state import put
from pileus.workflow.workflow import begin


class InstanceStart(Wire):
    boot_from: BootDevice | None = None
    """What its firmware tries first, until it is stopped again."""


_RESUMES = frozenset({InstanceState.PAUSED, InstanceState.SUSPENDED})


@instances.post("/{id}/start", starts=start_instance)
def start(ask: Ask, instance: Instance, wish: InstanceStart) -> Plan:
    """Start a stopped instance, or resume a paused or suspended one."""
    if instance.state in _RESUMES:
        return resume(ask, instance)
    changed = _powered(instance, InstanceState.STARTING)
    return Plan(
        summary=f"start instance {instance.name}",
        changes=(put(changed),),
        begin=begin(start_instance, StartInstance(InstanceId(instance.id), wish.boot_from)),
        answers=changed,
        undo="stop it",
    )


@instances.post("/{id}/stop", starts=stop_instance)
def stop(ask: Ask, instance: Instance) -> Plan:
    """Stop an instance: its guest is asked to end, and ended after a minute.

    A suspended instance loses what it had in memory.
    """
    changed = _powered(instance, InstanceState.STOPPING)
    loses = instance.state is InstanceState.SUSPENDED
    return Plan(
        summary=f"stop instance {instance.name}" + (" and forget what it had in memory" if loses else ""),
        changes=(put(changed),),
        begin=begin(stop_instance, FromState(InstanceId(instance.id), instance.state)),
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


@instances.post("/{id}/suspend", starts=suspend_instance)
def suspend(ask: Ask, instance: Instance) -> Plan:
    """Suspend an instance to its host's disk: it takes no CPU and no memory there, and goes on later where it was."""
    changed = _powered(instance, InstanceState.SUSPENDING)
    return Plan(
        summary=f"suspend instance {instance.name}",
        changes=(put(changed),),
        begin=begin(suspend_instance, FromState(InstanceId(instance.id), instance.state)),
        answers=changed,
        undo="resume it",
    )


@instances.post("/{id}/resume", starts=resume_instance)
def resume(ask: Ask, instance: Instance) -> Plan:
    """Resume a paused or suspended instance: it goes on where it was."""
    changed = _powered(instance, InstanceState.RESUMING)
    return Plan(
        summary=f"resume instance {instance.name}",
        changes=(put(changed),),
        begin=begin(resume_instance, ResumeInstance(InstanceId(instance.id), instance.state)),
        answers=changed,
        undo="pause or suspend it",
    )


@instances.post("/{id}/reboot", starts=reboot_instance)
def reboot(ask: Ask, instance: Instance) -> Plan:
    """Restart a running instance by asking its guest to."""
    return _restarted(instance, hard=False)


@instances.post("/{id}/reset", starts=reboot_instance)
def reset(ask: Ask, instance: Instance) -> Plan:
    """Restart a running instance at once, as by its reset button. Its guest is not asked."""
    return _restarted(instance, hard=True)


def _restarted(instance: Instance, *, hard: bool) -> Plan:
    changed = instance.to(InstanceState.REBOOTING)
    return Plan(
        summary=f"{'reset' if hard else 'reboot'} instance {instance.name}",
        changes=(put(changed),),
        begin=begin(reboot_instance, RebootInstance(InstanceId(instance.id), hard)),
        answers=changed,
        undo="none: what its guest had in memory is lost",
    )


def _powered(instance: Instance, state: InstanceState) -> Instance:
    return instance.to(state).newer()
