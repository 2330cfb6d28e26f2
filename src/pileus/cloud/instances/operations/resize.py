"""Giving instances another size: any while they are stopped, up to a declared maximum while they run."""

from typing import Annotated, Self

import msgspec
from pydantic import model_validator

from pileus.cloud.flavors.model import FLAVORS, Flavor
from pileus.cloud.flavors.operations import DiskGib, MaxVcpus, MemoryMib, Vcpus
from pileus.cloud.instances.model import Instance, InstanceState, Limits
from pileus.cloud.instances.operations.creation import check_most
from pileus.cloud.instances.operations.noun import instances
from pileus.cloud.instances.placement import Placer, refitted
from pileus.cloud.instances.specs import root_volume
from pileus.cloud.instances.workflows import resize_instance, resize_running_instance
from pileus.cloud.instances.workflows.limits import ports_limited
from pileus.cloud.instances.workflows.resize import ResizeInstance
from pileus.kernel.errors import Conflict, Invalid
from pileus.kernel.ids import FlavorId, InstanceId
from pileus.operations.plan import Ask, Plan
from pileus.operations.wire import Id, Wire, ref
from pileus.state.state import put
from pileus.workflow.workflow import begin


class InstanceResize(Wire):
    flavor_id: Annotated[Id, ref("flavor")] | None = None
    vcpus: Vcpus | None = None
    memory_mib: MemoryMib | None = None
    max_vcpus: MaxVcpus | None = None
    """Up to how many it can be given while it runs; only while it is stopped."""
    max_memory_mib: MemoryMib | None = None
    """Up to how much it can be given while it runs; only while it is stopped."""
    disk_gib: DiskGib | None = None

    @model_validator(mode="after")
    def _has_one_size(self) -> Self:
        given = [name for name in ("vcpus", "memory_mib") if getattr(self, name) is not None]
        if self.flavor_id is not None and given:
            raise ValueError("a flavor and a size of its own exclude each other")
        if not self.model_dump(exclude_none=True):
            raise ValueError("name a flavor, or give vcpus, memory_mib, disk_gib or a maximum")
        return self


@instances.post("/{id}/resize", starts=resize_instance)
def resize(ask: Ask, instance: Instance, wish: InstanceResize) -> Plan:
    """Give an instance another size on its host; with a flavor, its limits too.

    A stopped one can have any: vCPUs, memory, more disk. A running one can have other vCPUs and memory, up to the most
    that it was declared to have; less only if its guest lets go of it.
    """
    instance.must_be_ours("it keeps the size that it was found with")
    flavor = ask.see(FLAVORS, wish.flavor_id, "flavor_id") if wish.flavor_id else None
    if instance.state is InstanceState.RUNNING:
        return _resize_running(ask, instance, wish, flavor)
    disk_gib = wish.disk_gib or max(instance.disk_gib, flavor.disk_gib if flavor else 0)
    if disk_gib < instance.disk_gib:
        smaller = f"it has {instance.disk_gib} GiB, and disks only grow"
        raise Invalid("some fields are wrong", fields={"disk_gib": smaller})
    sized = _of_size(instance.to(InstanceState.RESIZING).newer(), wish, flavor)
    changed = msgspec.structs.replace(sized, disk_gib=disk_gib)
    check_most(changed.vcpus, changed.memory_mib, wish.max_vcpus, wish.max_memory_mib)
    changed = msgspec.structs.replace(
        changed,
        max_vcpus=_most(changed.vcpus, wish.max_vcpus, instance.max_vcpus),
        max_memory_mib=_most(changed.memory_mib, wish.max_memory_mib, instance.max_memory_mib),
    )
    root = root_volume(ask.state, instance)
    root = msgspec.structs.replace(root, size_gib=disk_gib, generation=root.generation + 1)
    return Plan(
        summary=f"resize instance {instance.name} to {_words(instance, changed)}, {changed.disk_gib} GiB of disk",
        changes=(put(changed), put(root), *ports_limited(ask.state, changed)),
        begin=begin(resize_instance, _former(instance)),
        answers=changed,
        because=refitted(ask.view(Placer), instance, changed, storage_pool=root.storage_pool),
        undo="resize it back; its disk stays as large",
    )


def _resize_running(ask: Ask, instance: Instance, wish: InstanceResize, flavor: Flavor | None) -> Plan:
    changed = _of_size(instance.busy("it is being resized"), wish, flavor)
    stopped = {name: "only while it is stopped" for name in ("max_vcpus", "max_memory_mib") if getattr(wish, name)}
    if max(wish.disk_gib or 0, flavor.disk_gib if flavor else 0) > instance.disk_gib:
        stopped["disk_gib"] = "only while it is stopped; a volume can be grown while it is used"
    for name, most in (("vcpus", instance.max_vcpus), ("memory_mib", instance.max_memory_mib)):
        if getattr(changed, name) > (most or getattr(instance, name)):
            declared = f"{most} at the most" if most else f"no more than {getattr(instance, name)}"
            stopped[name] = f"while it runs {declared}"
    if stopped:
        raise Conflict(f"instance {instance.name} runs; stop it for that", fields=stopped)
    return Plan(
        summary=f"resize instance {instance.name} to {_words(instance, changed)} while it runs",
        changes=(put(changed), *ports_limited(ask.state, changed)),
        begin=begin(resize_running_instance, _former(instance)),
        answers=changed,
        because=refitted(ask.view(Placer), instance, changed),
        undo="resize it back, if its guest lets go of it",
    )


def _of_size(instance: Instance, wish: InstanceResize, flavor: Flavor | None) -> Instance:
    size = flavor or wish
    keeps_flavor = wish.vcpus is None and wish.memory_mib is None
    return msgspec.structs.replace(
        instance,
        vcpus=size.vcpus or instance.vcpus,
        memory_mib=size.memory_mib or instance.memory_mib,
        flavor_id=FlavorId(flavor.id) if flavor else instance.flavor_id if keeps_flavor else None,
        limits=instance.limits if flavor is None else _limits_by(flavor, instance),
    )


def _limits_by(flavor: Flavor, instance: Instance) -> Limits | None:
    # Never None again: a guest that was limited has to be told that it no longer is.
    return flavor.limits or (None if instance.limits is None else Limits())


def _most(now: int, wished: int | None, former: int | None) -> int | None:
    """The former maximum stands as long as it is one."""
    return wished or (former if former is not None and former >= now else None)


def _former(instance: Instance) -> ResizeInstance:
    return ResizeInstance(
        InstanceId(instance.id),
        instance.vcpus,
        instance.memory_mib,
        instance.disk_gib,
        instance.flavor_id,
        instance.max_vcpus,
        instance.max_memory_mib,
        instance.limits,
    )


def _words(instance: Instance, changed: Instance) -> str:
    size = f"{changed.vcpus} vCPUs, {changed.memory_mib} MiB of memory"
    if changed.limits is None or changed.limits == instance.limits:
        return size
    return f"{size} limited to {changed.limits.words or 'nothing'}"
