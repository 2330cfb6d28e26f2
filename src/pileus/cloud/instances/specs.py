"""What a host is told of an instance: its guest and its volumes, made from the records. Pure."""

from collections.abc import Callable, Sequence

import msgspec

from pileus.cloud.images.model import IMAGES, Image
from pileus.cloud.instances.model import FIRST_BOOTS, Instance, InstanceState, Limits
from pileus.cloud.networks.model import NETWORKS, PORTS, NetworkKind, Port, PortState, in_slots
from pileus.cloud.storagepools.model import named
from pileus.cloud.volumes.model import BOOT_SLOT, VOLUMES, Volume, VolumeLimits, VolumeState
from pileus.kernel.ids import ImageId, InstanceId, PortId, VolumeId
from pileus.kernel.units import GIB
from pileus.link.guests import DiskLimits, FirstBoot, GuestDisk, GuestLimits, GuestMedium, GuestSpec, NicSpec, Power
from pileus.link.images import ImageSource
from pileus.link.volumes import VolumeSpec
from pileus.state.state import State

_S = InstanceState
_TO_RUN = frozenset({_S.BUILDING, _S.RUNNING, _S.STARTING, _S.REBOOTING, _S.RESUMING})
_TO_BE_PAUSED = frozenset({_S.PAUSING, _S.PAUSED})
_TO_BE_SUSPENDED = frozenset({_S.SUSPENDING, _S.SUSPENDED})


def volumes_of(state: State, instance: Instance) -> list[Volume]:
    """The volumes of an instance by their slots, with those on their way in or out."""
    return sorted(state[VOLUMES].by("instance", instance.id), key=lambda volume: volume.slot or BOOT_SLOT)


def ports_of(state: State, instance: Instance) -> list[Port]:
    """The ports of an instance by their slots, with those on their way in or out."""
    return in_slots(state[PORTS].by("instance_id", instance.id))


def plugged_ports_of(state: State, instance: Instance) -> list[Port]:
    """The ports that its host plugs for it: all but those that it was found with."""
    return [each for each in ports_of(state, instance) if not _is_found(state, each)]


def _is_found(state: State, port: Port) -> bool:
    return state[NETWORKS].get(port.network_id).kind is NetworkKind.UNMANAGED


def guest_spec(
    state: State,
    instance: Instance,
    volumes: Sequence[Volume] | None = None,
    ports: Sequence[Port] | None = None,
) -> GuestSpec:
    """The guest as it ought to be: with these volumes and ports, or else with all that are to stay."""
    if ports is None:
        ports = [each for each in ports_of(state, instance) if each.state is not PortState.DETACHING]
    if volumes is None:
        volumes = [each for each in volumes_of(state, instance) if each.state is not VolumeState.DETACHING]
    told = state[FIRST_BOOTS].find(instance.id)
    return GuestSpec(
        id=InstanceId(instance.id),
        generation=instance.generation,
        name=instance.name,
        project=instance.project_id,
        vcpus=instance.vcpus,
        memory_mib=instance.memory_mib,
        max_vcpus=instance.max_vcpus or 0,
        max_memory_mib=instance.max_memory_mib or 0,
        power=_power(instance),
        disks=tuple(
            GuestDisk(
                volume=VolumeId(volume.id),
                pool=volume.storage_pool,
                serial=serial_of(VolumeId(volume.id)),
                slot=volume.slot or BOOT_SLOT,
                size_bytes=0 if volume.found else volume.size_gib * GIB,
                limits=_disk_limits(state, volume),
                target=volume.found.target if volume.found else "",
            )
            for volume in volumes
        ),
        nics=tuple(_nic(state, port) for port in ports if not _is_found(state, port)),
        found_macs=tuple(port.mac for port in ports if _is_found(state, port)),
        first_boot=FirstBoot(
            hostname=told.hostname if told else "",
            public_keys=told.public_keys if told else (),
            user_data=told.user_data if told else "",
            user_data_base64=True,
            availability_zone=instance.zone,
        ),
        restart=instance.restart,
        watchdog=instance.watchdog,
        media=tuple(GuestMedium(image=each.image_id, drive=each.drive) for each in instance.media),
        boot=instance.boot_order,
        limits=None if instance.limits is None else _guest_limits(instance.limits),
        template=instance.template,
        config_drive=instance.config_drive,
    )


def _guest_limits(limits: Limits) -> GuestLimits:
    # What its ports pass, the switches see to.
    told = {name: value for name, value in msgspec.structs.asdict(limits).items() if name != "network_mbit"}
    return GuestLimits(**told)


def _disk_limits(state: State, volume: Volume) -> DiskLimits | None:
    """The lower of what the volume may do and what its storage pool lets any of its volumes do."""
    own, pool = volume.limits, named(state, volume.storage_pool)
    ceilings = (pool.iops, pool.bytes_per_s) if pool is not None else (0, 0)
    if own is None and not any(ceilings):
        return None
    own = own or VolumeLimits()
    iops, bytes_per_s = (
        min(each for each in pair if each) if any(pair) else 0
        for pair in ((own.iops, ceilings[0]), (own.bytes_per_s, ceilings[1]))
    )
    return DiskLimits(iops=iops, bytes_per_s=bytes_per_s)


def root_volume(state: State, instance: Instance) -> Volume:
    """What the guest boots from."""
    return volumes_of(state, instance)[0]


def serial_of(volume: VolumeId) -> str:
    """By which the guest knows a disk; virtio has room for 20 characters."""
    return volume[:20]


def _power(instance: Instance) -> Power:
    if instance.state in _TO_BE_PAUSED:
        return Power.PAUSED
    if instance.state in _TO_BE_SUSPENDED:
        return Power.SUSPENDED
    return Power.RUNNING if instance.state in _TO_RUN else Power.STOPPED


def _nic(state: State, port: Port) -> NicSpec:
    return NicSpec(
        port=PortId(port.id),
        network=port.network_id,
        mac=port.mac,
        addresses=tuple(each.address for each in port.addresses),
        mtu=state[NETWORKS].get(port.network_id).mtu,
        slot=port.slot,
    )


def volume_spec(state: State, volume: Volume, image_url: Callable[[ImageId], str]) -> VolumeSpec:
    """The volume as it ought to be; `image_url` says where its host may fetch the image."""
    image = state[IMAGES].find(volume.image_id) if volume.image_id else None
    return VolumeSpec(
        id=VolumeId(volume.id),
        generation=volume.generation,
        size_bytes=volume.size_gib * GIB,
        pool=volume.storage_pool,
        image=None if image is None else image_source(image, image_url(ImageId(image.id))),
        found=volume.found,
    )


def image_source(image: Image, url: str) -> ImageSource:
    """Where a host gets an image: at this path of the API."""
    return ImageSource(
        id=ImageId(image.id),
        sha256=image.sha256,
        size_bytes=image.size_bytes,
        virtual_size_bytes=image.virtual_size_bytes,
        format=image.format,
        url=url,
    )
