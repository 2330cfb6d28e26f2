"""Bringing, checking and converting the data of an image."""

import msgspec

from pileus.cloud.images.fetching import Fetching
from pileus.cloud.images.files import Arrived, Expected
from pileus.cloud.images.model import IMAGE_SHARES, IMAGES, Image, ImageState
from pileus.cloud.images.quota import room
from pileus.cloud.world import World
from pileus.diskimages.headers import DiskFormat
from pileus.kernel.ids import ImageId
from pileus.state.state import Change, Origin, State, put, remove
from pileus.workflow.workflow import Run, step_with, tell_progress, workflow

_PATIENCE_S = 300.0


class FinishUpload(msgspec.Struct, frozen=True):
    """Which image, and the format of what has arrived."""

    image: ImageId
    format: DiskFormat


@workflow("image.finish")
async def finish_upload(run: Run[World], wish: FinishUpload) -> None:
    """Check what has arrived, convert it if need be, and have it in its place."""
    found = await run(check, wish.image, wish.format)
    await run(keep, wish.image, wish.format, found)


@finish_upload.finish
def finished(state: State, wish: FinishUpload) -> list[Change]:
    return [put(state[IMAGES].get(wish.image).complete())]


@finish_upload.withdraw
def not_finished(state: State, wish: FinishUpload) -> list[Change]:
    return [put(msgspec.structs.replace(state[IMAGES].get(wish.image), state=ImageState.QUEUED))]


class ImportImage(msgspec.Struct, frozen=True):
    """Which image, the format of what is there, and where."""

    image: ImageId
    format: DiskFormat
    url: str


@workflow("image.import")
async def import_image(run: Run[World], wish: ImportImage) -> None:
    """Fetch it, check it, convert it if need be, and have it in its place."""
    await run(fetch, wish)
    found = await run(check, wish.image, wish.format)
    await run(keep, wish.image, wish.format, found)


@import_image.finish
def imported(state: State, wish: ImportImage) -> list[Change]:
    return [put(state[IMAGES].get(wish.image).complete())]


@import_image.withdraw
def not_imported(state: State, wish: ImportImage) -> list[Change]:
    shares = [remove(share) for share in state[IMAGE_SHARES].by("image", wish.image)]
    return [remove(state[IMAGES].get(wish.image)), *shares]


@step_with(patience_s=_PATIENCE_S)
async def fetch(world: World, wish: ImportImage) -> None:
    await Fetching(world, wish.image, wish.url, tell_progress.get()).all()


@fetch.undo
async def forget_fetched(world: World, wish: ImportImage) -> None:
    await world.files.discard(wish.image)


@step_with(patience_s=_PATIENCE_S)
async def check(world: World, id: ImageId, format: DiskFormat) -> Arrived:
    image = world.state[IMAGES].get(id)
    expected = Expected(format=format, size_bytes=image.expected_bytes, sha256=image.expected_sha256)
    most = room(world.state, image, world.files.arrived)
    return await world.files.prepare(id, expected, at_most=most, told=tell_progress.get())


@check.undo
async def forget_converted(world: World, id: ImageId, format: DiskFormat) -> None:
    await world.files.discard_ready(id)


@step_with(patience_s=_PATIENCE_S)
async def keep(world: World, id: ImageId, format: DiskFormat, found: Arrived) -> None:
    await world.files.place(id)
    await _say(
        world,
        msgspec.structs.replace(
            world.state[IMAGES].get(id),
            format=found.format,
            size_bytes=found.size_bytes,
            virtual_size_bytes=found.virtual_size_bytes,
            sha256=found.sha256,
        ),
    )


@keep.undo
async def have_none(world: World, id: ImageId, format: DiskFormat, found: Arrived) -> None:
    await world.files.withdraw(id)
    await _say(
        world,
        msgspec.structs.replace(
            world.state[IMAGES].get(id), format=format, size_bytes=0, virtual_size_bytes=0, sha256=""
        ),
    )


async def _say(world: World, image: Image) -> None:
    """Have the record say what is known now, which only the deed has found out."""
    if image != world.state[IMAGES].get(image.id):
        await world.state.commit([put(image)], Origin(actor="system", operation="image.import"))
