"""What volumes really take of their storage pools."""

from collections.abc import Mapping

import msgspec

from pileus.cloud.snapshots.model import SNAPSHOTS
from pileus.cloud.volumes.model import Volume
from pileus.cloud.volumes.moving import volumes
from pileus.cloud.world import Hosts
from pileus.kernel.ids import SnapshotId, VolumeId
from pileus.kernel.units import GIB
from pileus.link.messages import Method
from pileus.link.snapshots import VolumeOf, VolumeSpace
from pileus.operations.caller import Role
from pileus.operations.declare import Answer, Exchange

__all__ = ["volumes"]

_ANSWER_S = 15.0


class SpaceOfVolume(msgspec.Struct, frozen=True, kw_only=True):
    """What a volume really takes of its storage pool, against what it was promised."""

    volume_id: VolumeId
    promised_bytes: int
    allocated_bytes: int
    """All together, with what is kept for its snapshots; 0 for one never attached, or taken over as it was."""
    snapshots: Mapping[SnapshotId, int]
    """What is kept for each snapshot: what was written since."""


@volumes.special("GET", "/{id}/space", least=Role.READER, answers=SpaceOfVolume)
async def space(exchange: Exchange, volume: Volume) -> Answer:
    """Show how many bytes a volume and its snapshots really take."""
    hosts: Hosts = exchange.services[Hosts]
    found = VolumeSpace()
    if volume.host_id is not None:
        asked = VolumeOf(id=VolumeId(volume.id), pool=volume.storage_pool)
        found = await hosts.ask(volume.host_id, Method.VOLUME_SPACE, asked, VolumeSpace, timeout_s=_ANSWER_S)
    own = set(exchange.ask.state[SNAPSHOTS].ids_by("volume", volume.id))
    shown = SpaceOfVolume(
        volume_id=VolumeId(volume.id),
        promised_bytes=volume.size_gib * GIB,
        allocated_bytes=found.allocated_bytes,
        # Backups keep layers of their own, which are nobody's snapshots.
        snapshots={id: size for id, size in found.snapshots.items() if id in own},
    )
    return Answer(status=200, body=msgspec.json.encode(shown))
