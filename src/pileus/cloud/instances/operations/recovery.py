"""Saying what becomes of guests that end by themselves or hang."""

from typing import Self

import msgspec
from pydantic import model_validator

from pileus.cloud.instances.model import Instance
from pileus.cloud.instances.operations.noun import instances
from pileus.cloud.instances.workflows.recovery import SetRecovery
from pileus.cloud.instances.workflows.recovery import set_recovery as workflow
from pileus.kernel.ids import InstanceId
from pileus.link.guests import Restart, Watchdog
from pileus.operations.plan import Ask, Plan
from pileus.operations.wire import Wire
from pileus.state.state import put
from pileus.workflow.workflow import begin


class InstanceRecovery(Wire):
    restart: Restart | None = None
    """Whether the guest is started again when it ends by itself: always, if it crashed (on-failure), never."""
    watchdog: Watchdog | None = None
    """What happens when the guest does not feed its watchdog any more."""

    @model_validator(mode="after")
    def _has_something(self) -> Self:
        if self.restart is None and self.watchdog is None:
            raise ValueError("give restart or watchdog")
        return self


@instances.post("/{id}/recovery", starts=workflow)
def set_recovery(ask: Ask, instance: Instance, wish: InstanceRecovery) -> Plan:
    """Say what becomes of an instance's guest when it ends by itself or hangs.

    The restart policy counts at once. A watchdog is a device: a guest that runs has it from its next start on.
    """
    if wish.watchdog is not None:
        instance.must_be_ours("it has the watchdog that it was found with, or none")
    changed = msgspec.structs.replace(
        instance.busy("what recovers it is changed"),
        restart=wish.restart or instance.restart,
        watchdog=wish.watchdog or instance.watchdog,
    )
    return Plan(
        summary=f"restart instance {instance.name} {_words(changed.restart)}, watchdog: {changed.watchdog}",
        changes=(put(changed),),
        begin=begin(workflow, SetRecovery(InstanceId(instance.id), instance.restart, instance.watchdog)),
        answers=changed,
        undo="set it back",
    )


def _words(restart: Restart) -> str:
    return {Restart.ALWAYS: "always", Restart.ON_FAILURE: "when it crashed", Restart.NEVER: "never"}[restart]
