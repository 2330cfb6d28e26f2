"""What the tasks of instances and volumes ask of hosts."""

from collections.abc import Sequence
from functools import partial

import msgspec

from pileus.cloud.images.model import IMAGES
from pileus.cloud.instances.model import INSTANCES, Instance
from pileus.cloud.instances.specs import guest_spec, image_source, root_volume, volume_spec
from pileus.cloud.networks.model import Port
from pileus.cloud.volumes.model import Volume
from pileus.cloud.world import Nothing, World
from pileus.kernel.ids import InstanceId, SnapshotId, VolumeId
from pileus.link.guests import GuestObserved, GuestRemoval, GuestSpec, Leaving
from pileus.link.images import MediumSpec
from pileus.link.messages import Method
from pileus.link.volumes import VolumeBackup, VolumeCopy, VolumeObserved, VolumeRemoval

COPY_S = 1800.0
"""How long a host may take to fetch and copy an image."""
WHOLE_DISK_S = 86_400.0
"""How long a host may take to read or write all of a volume, however large: to back up, to restore, to move."""
GUEST_S = 180.0
"""How long a host may take to start, change or stop a guest, or to enlarge or remove a disk."""
MEMORY_S = 960.0
"""How long a host may take to write a guest's memory to its disk, or to read it from there."""
WIPE_S_PER_GIB = 60.0
"""How long a host may take to overwrite a disk: some 18 MB/s, as of a slow one that is used meanwhile."""


class OfInstance(msgspec.Struct, frozen=True):
    """What a task of an instance needs to know: which one; all else is in the records."""

    instance: InstanceId


async def ensure_guest(
    world: World,
    instance: Instance,
    volumes: Sequence[Volume] | None = None,
    ports: Sequence[Port] | None = None,
    *,
    timeout_s: float = GUEST_S,
) -> None:
    """Have the guest as its records say: with these volumes and ports, or else with all that are to stay."""
    await ensure_spec(world, instance, guest_spec(world.state, instance, volumes, ports), timeout_s=timeout_s)


async def ensure_spec(world: World, instance: Instance, spec: GuestSpec, *, timeout_s: float = GUEST_S) -> None:
    """Have the guest exactly so."""
    await world.hosts.ask(instance.host_id, Method.GUEST_ENSURE, spec, GuestObserved, timeout_s=timeout_s)


async def remove_guest(world: World, instance: Instance, leaving: Leaving | None = None) -> None:
    """Have the guest no more, or have it go on without us; its disks stay."""
    removal = GuestRemoval(id=InstanceId(instance.id), generation=instance.generation, leaving=leaving)
    await world.hosts.ask(instance.host_id, Method.GUEST_REMOVE, removal, Nothing, timeout_s=GUEST_S)


async def ensure_disk(
    world: World,
    volume: Volume,
    *,
    copy_of: tuple[VolumeId, SnapshotId] | None = None,
    backup: VolumeBackup | None = None,
    timeout_s: float = COPY_S,
) -> None:
    """Have the volume's disk on its host, as large as its record says.

    A new one is a copy of another's snapshot, or of what a backup holds, if either is given.
    """
    assert volume.host_id is not None
    spec = volume_spec(world.state, volume, partial(world.images.url, host=volume.host_id))
    if copy_of is not None:
        spec = msgspec.structs.replace(spec, image=None, copy_of=VolumeCopy(volume=copy_of[0], snapshot=copy_of[1]))
    if backup is not None:
        spec = msgspec.structs.replace(spec, image=None, backup=backup)
    await world.hosts.ask(volume.host_id, Method.VOLUME_ENSURE, spec, VolumeObserved, timeout_s=timeout_s)


async def ensure_media(world: World, instance: Instance) -> None:
    """Have the images ready on its host that are in the instance's drives. One that is deleted is there, or is lost."""
    for medium in instance.media:
        image = world.state[IMAGES].find(medium.image_id)
        if image is not None:
            url = world.images.url(medium.image_id, instance.host_id)
            spec = MediumSpec(image=image_source(image, url))
            await world.hosts.ask(instance.host_id, Method.MEDIUM_ENSURE, spec, Nothing, timeout_s=COPY_S)


async def remove_disk(world: World, volume: Volume) -> None:
    """Have the volume's disk no more, and its data neither; overwritten, if its record says so."""
    assert volume.host_id is not None
    removal = VolumeRemoval(
        id=VolumeId(volume.id), generation=volume.generation, pool=volume.storage_pool, secure=volume.secure_delete
    )
    timeout_s = GUEST_S + (WIPE_S_PER_GIB * volume.size_gib if volume.secure_delete else 0)
    await world.hosts.ask(volume.host_id, Method.VOLUME_REMOVE, removal, Nothing, timeout_s=timeout_s)


async def leave_disk(world: World, volume: Volume) -> None:
    """Have the volume be nobody's of ours; its data stays where it is."""
    assert volume.host_id is not None
    removal = VolumeRemoval(id=VolumeId(volume.id), generation=volume.generation, pool=volume.storage_pool, left=True)
    await world.hosts.ask(volume.host_id, Method.VOLUME_REMOVE, removal, Nothing, timeout_s=GUEST_S)


async def remove_boot_disk(world: World, id: InstanceId) -> None:
    """Have the disk no more that the instance boots from."""
    await remove_disk(world, root_volume(world.state, world.state[INSTANCES].get(id)))
