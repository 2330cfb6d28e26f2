"""Building an image from a volume: packed on its host as it was at one moment, and sent from there.

The volume, or the snapshot, is held only until it is packed. What is packed is on the host until the image is whole.
"""

import msgspec

from pileus.cloud.images.model import IMAGE_SHARES, IMAGES, Image
from pileus.cloud.images.quota import room
from pileus.cloud.images.workflows.arrival import check, keep
from pileus.cloud.snapshots.workflows import CopyOf, drop, left, take_for_copy
from pileus.cloud.world import Nothing, World
from pileus.diskimages.headers import DiskFormat
from pileus.kernel.errors import QuotaExceeded
from pileus.kernel.ids import HostId, ImageId
from pileus.kernel.units import size_text
from pileus.link.images import ImageForget, ImagePack, ImagePacked, ImageSend
from pileus.link.messages import Method
from pileus.link.snapshots import Consistency
from pileus.state.state import Change, Origin, State, put, remove
from pileus.workflow.workflow import Changes, Run, step_with, workflow

PACK_S = 4 * 3600.0
"""How long a host may take to pack a volume: some 35 MB/s of what is in one of 500 GiB."""
SEND_S = 4 * 3600.0
_FORGET_S = 180.0


class BuildImage(CopyOf, frozen=True):
    """Which image, and the host and pool of what it is made of."""

    image: ImageId
    host: HostId
    pool: str


@workflow("image.build")
async def build_image(run: Run[World], wish: BuildImage) -> None:
    """Take a snapshot if there is none, pack it, let go of it; bring the image here, check it, have it in its place."""
    consistency = await run(take_for_copy, wish)
    packed = await run(pack, wish)
    await run(drop_snapshot, wish)
    await run(let_go, wish, packed, consistency)
    await run(send, wish)
    found = await run(check, wish.image, DiskFormat.QCOW2)
    await run(keep, wish.image, DiskFormat.QCOW2, found)
    await run(forget_packed, wish)


@build_image.finish
def built(state: State, wish: BuildImage) -> Changes:
    return [put(state[IMAGES].get(wish.image).complete())]


@build_image.withdraw
def not_built(state: State, wish: BuildImage) -> Changes:
    image = state[IMAGES].get(wish.image)
    shares = [remove(share) for share in state[IMAGE_SHARES].by("image", wish.image)]
    return [remove(image), *shares, *_held(state, wish, image)]


@step_with(patience_s=120)
async def pack(world: World, wish: BuildImage) -> ImagePacked:
    asked = ImagePack(image=wish.image, volume=wish.source, snapshot=wish.snapshot, pool=wish.pool)
    return await world.hosts.ask(wish.host, Method.IMAGE_PACK, asked, ImagePacked, timeout_s=PACK_S)


@pack.undo
async def unpack(world: World, wish: BuildImage) -> None:
    await _forget(world, wish)


@step_with(patience_s=120)
async def drop_snapshot(world: World, wish: BuildImage) -> None:
    await drop(world, wish)


@step_with()
async def let_go(world: World, wish: BuildImage, packed: ImagePacked, consistency: Consistency) -> None:
    """Let others have the volume again, and say what is to arrive: from here on it counts."""
    image = world.state[IMAGES].get(wish.image)
    if not image.packing:
        return
    if packed.size_bytes > (most := room(world.state, image, world.files.arrived)):
        raise QuotaExceeded(
            f"the image has {size_text(packed.size_bytes)}, the project's quota leaves room for {size_text(most)}"
        )
    changed = msgspec.structs.replace(
        image,
        packing=False,
        expected_bytes=packed.size_bytes,
        expected_sha256=packed.sha256,
        consistency=str(consistency),
    )
    changes = [put(changed), *_held(world.state, wish, image)]
    await world.state.commit(changes, Origin(actor="system", operation="image.build: let go"))


@step_with(patience_s=300)
async def send(world: World, wish: BuildImage) -> None:
    to = ImageSend(image=wish.image, url=world.images.arrival_url(wish.image, wish.host), pool=wish.pool)
    await world.hosts.ask(wish.host, Method.IMAGE_SEND, to, Nothing, timeout_s=SEND_S)


@send.undo
async def forget_arrived(world: World, wish: BuildImage) -> None:
    # The host first: what it still sends would arrive behind this.
    await _forget(world, wish)
    await world.files.discard(wish.image)


@step_with(forward_only=True)
async def forget_packed(world: World, wish: BuildImage) -> None:
    await _forget(world, wish)


async def _forget(world: World, wish: BuildImage) -> None:
    no_more = ImageForget(image=wish.image, pool=wish.pool)
    await world.hosts.ask(wish.host, Method.IMAGE_FORGET, no_more, Nothing, timeout_s=_FORGET_S)


def _held(state: State, wish: BuildImage, image: Image) -> list[Change]:
    """What is held for the image as it was before, unless it has been let go of already."""
    return left(state, wish) if image.packing else []
