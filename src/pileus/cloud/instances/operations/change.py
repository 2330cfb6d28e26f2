"""Describing and protecting instances."""

import msgspec

from pileus.cloud.images.operations.noun import Template
from pileus.cloud.instances.model import Instance
from pileus.cloud.instances.operations.hardware import BootOrder, with_template
from pileus.cloud.instances.operations.noun import instances
from pileus.operations.plan import Ask, Plan
from pileus.operations.wire import Description, Labels, Name, Wire
from pileus.state.state import put


class InstanceChange(Wire):
    name: Name | None = None
    description: Description | None = None
    labels: Labels | None = None
    protected: bool | None = None
    template: Template | None = None
    """Other devices, from its next start; of a stopped instance only."""
    boot_order: BootOrder | None = None
    """What its firmware tries, from its next start."""


@instances.patch()
def change(ask: Ask, instance: Instance, wish: InstanceChange) -> Plan:
    """Rename an instance, describe it, label it, protect it from being deleted, give it other devices or boot order."""
    if wish.template is not None or wish.boot_order is not None:
        instance.must_be_ours("its devices, and the order in which it tries them, are as they were found")
    changed = with_template(ask, instance, wish.template or instance.template)
    changed = msgspec.structs.replace(changed, **wish.model_dump(exclude_none=True))
    return Plan(
        summary=f"change instance {instance.name}", changes=(put(changed),), answers=changed, undo="change it back"
    )
