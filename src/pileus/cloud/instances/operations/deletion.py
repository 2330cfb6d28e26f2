"""Deleting instances, having them back for a while, and deleting them for good."""

from datetime import timedelta

import msgspec

from pileus.cloud.floatingips.model import FLOATING_IPS, without_port
from pileus.cloud.instances.model import FIRST_BOOTS, Instance, InstanceState
from pileus.cloud.instances.operations.noun import instances
from pileus.cloud.instances.placement import Placer, refitted
from pileus.cloud.instances.specs import root_volume
from pileus.cloud.instances.workflows import (
    delete_but_disks,
    delete_instance,
    soft_delete_instance,
    undelete_instance,
)
from pileus.cloud.instances.workflows.deletion import Undelete
from pileus.cloud.instances.workflows.hosting import OfInstance
from pileus.cloud.networks.model import PORTS
from pileus.cloud.snapshots.model import must_have_none
from pileus.cloud.volumes.model import BOOT_SLOT, VOLUMES
from pileus.kernel.errors import Conflict
from pileus.kernel.ids import InstanceId
from pileus.link.templates import GuestTemplate
from pileus.operations.plan import Ask, Plan
from pileus.state.state import Change, put
from pileus.workflow.workflow import begin


class Retention(msgspec.Struct, frozen=True, kw_only=True):
    """How long what is deleted can be had back."""

    deleted: timedelta


@instances.delete(starts=soft_delete_instance)
def delete(ask: Ask, instance: Instance) -> Plan:
    """Delete an instance. For a while it can be had back: its disk, its addresses and its first boot's data are kept.

    Of one that was taken over as it was nothing is kept but its disks, which become volumes without an instance.

    Its floating IPs, its other volumes, and ports that were made or detached before are set free and kept. What it had
    in memory is lost.
    """
    if instance.state is InstanceState.DELETED:
        raise Conflict(f"instance {instance.name} is deleted already; purge it to be rid of its disk")
    if instance.template is GuestTemplate.AS_FOUND:
        return _but_disks(ask, instance)
    kept = ask.view(Retention).deleted
    if not kept:
        return purge(ask, instance)
    changed = msgspec.structs.replace(_on_its_way_out(ask, instance), deleted_at=ask.now)
    return Plan(
        summary=f"delete instance {instance.name}, and keep its disk and addresses for {_words(kept)}",
        changes=[put(changed), *_without_floating_ips(ask, instance)],
        begin=begin(soft_delete_instance, OfInstance(InstanceId(instance.id))),
        answers=changed,
        undo=f"undelete it within {_words(kept)}",
    )


@instances.post("/{id}/purge", starts=delete_instance)
def purge(ask: Ask, instance: Instance) -> Plan:
    """Delete an instance for good, at once, with the disk that it boots from; also one that is deleted already.

    Its floating IPs, its other volumes, and ports that were made or detached before are kept.
    """
    changed = _on_its_way_out(ask, instance)
    return Plan(
        summary=f"delete instance {instance.name} with its disk",
        changes=[put(changed), *_without_floating_ips(ask, instance)],
        begin=begin(delete_instance, OfInstance(InstanceId(instance.id))),
        answers=changed,
        undo="none: its disk is gone",
    )


@instances.post("/{id}/undelete", starts=undelete_instance)
def undelete(ask: Ask, instance: Instance) -> Plan:
    """Have a deleted instance back, stopped: with its disk, its addresses and its name.

    Floating IPs, other volumes and ports that were set free do not come back with it.
    """
    changed = msgspec.structs.replace(instance.to(InstanceState.UNDELETING).newer(), deleted_at=None)
    told = ask.state[FIRST_BOOTS].get(instance.id)
    ports = [
        put(msgspec.structs.replace(port, host_id=instance.host_id, hostname=told.hostname))
        for port in ask.state[PORTS].by("instance_id", instance.id)
    ]
    return Plan(
        summary=f"undelete instance {instance.name}",
        changes=[put(changed), *ports],
        begin=begin(undelete_instance, Undelete(InstanceId(instance.id), instance.deleted_at)),
        answers=changed,
        because=refitted(ask.view(Placer), instance, changed),
        undo="delete it again",
    )


def _but_disks(ask: Ask, instance: Instance) -> Plan:
    changed = _on_its_way_out(ask, instance)
    return Plan(
        summary=f"delete instance {instance.name}, and keep its disks as volumes",
        changes=[put(changed), *_without_floating_ips(ask, instance)],
        begin=begin(delete_but_disks, OfInstance(InstanceId(instance.id))),
        answers=changed,
        undo="none: what it was defined as is gone; its disks are kept",
    )


def _on_its_way_out(ask: Ask, instance: Instance) -> Instance:
    """The instance as its deletion begins. Raises Conflict if it, or the disk that it boots from, is kept."""
    if instance.protected:
        raise Conflict(f"instance {instance.name} is protected; take the protection away first")
    for volume in ask.state[VOLUMES].by("instance", instance.id):
        if volume.protected and volume.slot == BOOT_SLOT:
            raise Conflict(f"volume {volume.name}, which it boots from, is protected; take the protection away first")
    must_have_none(ask.state, root_volume(ask.state, instance), "deleted")
    return msgspec.structs.replace(instance.to(InstanceState.DELETING).newer(), floating_addresses=())


def _without_floating_ips(ask: Ask, instance: Instance) -> list[Change]:
    ports = [each for each in ask.state[PORTS].by("instance_id", instance.id) if not each.kept]
    return [
        put(without_port(floating)) for port in ports for floating in ask.state[FLOATING_IPS].by("port_id", port.id)
    ]


def _words(kept: timedelta) -> str:
    hours = kept // timedelta(hours=1)
    return "an hour" if hours == 1 else f"{hours} hours"
