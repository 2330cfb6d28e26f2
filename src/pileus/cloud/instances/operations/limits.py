"""Limiting how much of their hosts instances take."""

import msgspec

from pileus.cloud.instances.limiting import InstanceLimits, limits_of
from pileus.cloud.instances.model import Instance, Limits
from pileus.cloud.instances.operations.noun import instances
from pileus.cloud.instances.workflows.limits import SetLimits, ports_limited
from pileus.cloud.instances.workflows.limits import set_limits as workflow
from pileus.kernel.ids import InstanceId
from pileus.operations.plan import Ask, Plan
from pileus.state.state import put
from pileus.workflow.workflow import begin


@instances.put("/{id}/limits", starts=workflow)
def set_limits(ask: Ask, instance: Instance, wish: InstanceLimits) -> Plan:
    """Limit how much of its host an instance takes, at once if it runs. What is not given is not limited."""
    busy = instance.busy("its limits are being changed")
    limits = limits_of(wish)
    changed = msgspec.structs.replace(busy, limits=limits)
    return Plan(
        summary=f"limit instance {instance.name}: {limits.words or 'nothing'}",
        changes=(put(changed), *ports_limited(ask.state, changed)),
        begin=begin(workflow, SetLimits(InstanceId(instance.id), instance.limits or Limits())),
        answers=changed,
        undo="set them back",
    )
