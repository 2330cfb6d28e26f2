"""What is taken at one moment, as a snapshot or a backup: a volume, or all volumes of an instance."""

from collections.abc import Collection

from pileus.cloud.instances.model import INSTANCES, Instance
from pileus.cloud.instances.specs import volumes_of
from pileus.cloud.volumes.model import VOLUMES, Volume
from pileus.kernel.errors import Conflict
from pileus.kernel.ids import ProjectId
from pileus.operations.plan import Ask


def subject(
    ask: Ask, instance_id: str | None, volume_id: str | None, to_do: str
) -> tuple[Instance | None, list[Volume]]:
    """The instance, if it is of a whole one, and the volumes.

    Args:
        ask: who asks.
        instance_id: of the one, if that is named; else the volume is.
        volume_id: of the volume.
        to_do: what nothing is there for in a volume without data, in words.

    Raises:
        NotFound: the caller knows of no such instance or volume.
        Conflict: a volume has no data yet.
    """
    project = ProjectId(ask.caller.project_id)
    if instance_id is not None:
        instance = ask.see(INSTANCES, instance_id, "instance_id", of=project)
        return instance, volumes_of(ask.state, instance)
    volume = ask.see(VOLUMES, volume_id or "", "volume_id", of=project)
    if volume.host_id is None:
        raise Conflict(
            f"volume {volume.name} was never attached: there is nothing in it to {to_do}",
            fields={"volume_id": "has no data yet"},
        )
    return None, [volume]


def must_have_no_others(ask: Ask, instance: Instance, volume_ids: Collection[str]) -> None:
    """Raises Conflict, with their names, if an instance has volumes that were not taken with it."""
    since = [volume.name for volume in volumes_of(ask.state, instance) if volume.id not in volume_ids]
    if since:
        raise Conflict(
            f"{', '.join(since)} was attached to instance {instance.name} since: detach it first, or its data would"
            " not be of the same time"
        )
