"""Copies of images on hosts, before anything is made from them."""

from typing import Annotated

from pileus.cloud.hosts.model import HOSTS
from pileus.cloud.images.model import Image, ImageState
from pileus.cloud.images.operations.noun import images
from pileus.cloud.images.workflows import PrefetchImage, prefetch_image
from pileus.cloud.pools.model import POOLS
from pileus.cloud.storagepools.model import STORAGE_POOLS
from pileus.kernel.errors import Conflict
from pileus.kernel.ids import HostId, ImageId
from pileus.operations.caller import Role
from pileus.operations.plan import Ask, Plan, Reason
from pileus.operations.wire import Id, Wire, ref
from pileus.workflow.workflow import begin


class ImagePrefetch(Wire):
    pool_id: Annotated[Id, ref("pool")]
    """The hosts of this pool that are connected."""
    storage_pool_id: Annotated[Id, ref("storage_pool")] | None = None
    """Where on them; without one, where disks of the pool's instances are."""


@images.post("/{id}/prefetch", least=Role.PLATFORM, starts=prefetch_image)
def prefetch(ask: Ask, image: Image, wish: ImagePrefetch) -> Plan:
    """Bring an image to the hosts of a pool, so that the first instances there need not wait for it.

    Each host then treats its copy as one that a volume was just made from: it stays for an hour in any case, and after
    that for a week since its last use, unless its room is needed.
    """
    if image.state is not ImageState.ACTIVE:
        raise Conflict(f"image {image.name} has no data yet")
    pool = ask.see(POOLS, wish.pool_id, "pool_id")
    storage = ask.see(STORAGE_POOLS, wish.storage_pool_id, "storage_pool_id") if wish.storage_pool_id else None
    hosts = ask.state[HOSTS].by("pool", pool.id)
    if not any(host.connected for host in hosts):
        raise Conflict(f"no host of pool {pool.name} is connected", fields={"pool_id": "no host is connected"})
    there = tuple(HostId(host.id) for host in hosts if host.connected)
    place = storage.name if storage is not None else pool.storage_pool
    return Plan(
        summary=f"bring image {image.name} to {len(there)} hosts of pool {pool.name}",
        begin=begin(prefetch_image, PrefetchImage(ImageId(image.id), there, place)),
        answers=image,
        because=[
            Reason(about=host.name, says="is connected" if host.connected else "is away", chosen=host.connected)
            for host in hosts
        ],
        undo="nothing: hosts let go of it by themselves",
    )
