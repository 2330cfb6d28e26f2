"""Giving instances another size."""

from typing import Annotated, Self

import msgspec
from pydantic import model_validator

from pileus.cloud.flavors.model import FLAVORS
from pileus.cloud.flavors.operations import DiskGib, MemoryMib, Vcpus
from pileus.cloud.instances.model import Instance, InstanceState
from pileus.cloud.instances.operations.noun import instances
from pileus.cloud.instances.placement import Placer, refitted
from pileus.cloud.instances.specs import root_volume
from pileus.cloud.instances.workflows import resize_instance
from pileus.cloud.instances.workflows.resize import ResizeInstance
from pileus.kernel.errors import Invalid
from pileus.kernel.ids import FlavorId, InstanceId
from pileus.operations.plan import Ask, Plan
from pileus.operations.wire import Id, Wire, ref
from pileus.state.state import put
from pileus.workflow.workflow import begin


class InstanceResize(Wire):
    flavor_id: Annotated[Id, ref("flavor")] | None = None
    vcpus: Vcpus | None = None
    memory_mib: MemoryMib | None = None
    disk_gib: DiskGib | None = None

    @model_validator(mode="after")
    def _has_one_size(self) -> Self:
        given = [name for name in ("vcpus", "memory_mib") if getattr(self, name) is not None]
        if self.flavor_id is not None and given:
            raise ValueError("a flavor and a size of its own exclude each other")
        if self.flavor_id is None and not given and self.disk_gib is None:
            raise ValueError("name a flavor, or give vcpus, memory_mib or disk_gib")
        return self


@instances.post("/{id}/resize", starts=resize_instance)
def resize(ask: Ask, instance: Instance, wish: InstanceResize) -> Plan:
    """Give a stopped instance another size on its host: vCPUs, memory, more disk."""
    flavor = ask.see(FLAVORS, wish.flavor_id, "flavor_id") if wish.flavor_id else None
    size = flavor or wish
    disk_gib = wish.disk_gib or max(instance.disk_gib, flavor.disk_gib if flavor else 0)
    if disk_gib < instance.disk_gib:
        smaller = f"it has {instance.disk_gib} GiB, and disks only grow"
        raise Invalid("some fields are wrong", fields={"disk_gib": smaller})
    has_flavor = wish.vcpus is None and wish.memory_mib is None
    changed = msgspec.structs.replace(
        instance.to(InstanceState.RESIZING),
        vcpus=size.vcpus or instance.vcpus,
        memory_mib=size.memory_mib or instance.memory_mib,
        disk_gib=disk_gib,
        flavor_id=FlavorId(flavor.id) if flavor else instance.flavor_id if has_flavor else None,
        generation=instance.generation + 1,
    )
    root = root_volume(ask.state, instance)
    root = msgspec.structs.replace(root, size_gib=disk_gib, generation=root.generation + 1)
    before = ResizeInstance(
        InstanceId(instance.id), instance.vcpus, instance.memory_mib, instance.disk_gib, instance.flavor_id
    )
    words = f"{changed.vcpus} vCPUs, {changed.memory_mib} MiB of memory, {changed.disk_gib} GiB of disk"
    return Plan(
        summary=f"resize instance {instance.name} to {words}",
        changes=(put(changed), put(root)),
        begin=begin(resize_instance, before),
        answers=changed,
        because=refitted(ask.view(Placer), instance, changed),
        undo="resize it back; its disk stays as large",
    )
