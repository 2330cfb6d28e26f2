"""Making image exports."""

from typing import Any

import msgspec

from pileus.cloud.imageexports.files import Exported
from pileus.cloud.imageexports.model import IMAGE_EXPORTS
from pileus.cloud.images.model import IMAGES
from pileus.cloud.images.quota import left
from pileus.cloud.world import World
from pileus.kernel.errors import NotFound
from pileus.kernel.ids import ImageExportId
from pileus.state.state import Origin, State, put, remove
from pileus.workflow.workflow import Changes, Run, Workflow, step_with, tell_progress, workflow


class ExportImage(msgspec.Struct, frozen=True):
    """Which export."""

    export: ImageExportId


@workflow("image_export.create")
async def create_export(run: Run[World], wish: ExportImage) -> None:
    """Convert the image, and say what came of it."""
    found = await run(convert, wish)
    await run(note, wish, found)


@create_export.finish
def exported(state: State, wish: ExportImage) -> Changes:
    return [put(state[IMAGE_EXPORTS].get(wish.export).available())]


@create_export.withdraw
def not_exported(state: State, wish: ExportImage) -> Changes:
    return [remove(state[IMAGE_EXPORTS].get(wish.export))]


@step_with(patience_s=300)
async def convert(world: World, wish: ExportImage) -> Exported:
    export = world.state[IMAGE_EXPORTS].get(wish.export)
    image = world.state[IMAGES].find(export.image_id)
    if image is None:
        raise NotFound(f"image {export.name} was deleted")
    return await world.exports.make(
        wish.export,
        export.image_id,
        format=image.format,
        to=export.format,
        virtual_size_bytes=image.virtual_size_bytes,
        at_most=left(world.state, export.project_id, export.id, world.files.arrived),
        told=tell_progress.get(),
    )


@convert.undo
async def forget(world: World, wish: ExportImage) -> None:
    await world.exports.discard(wish.export)


@step_with()
async def note(world: World, wish: ExportImage, found: Exported) -> None:
    export = world.state[IMAGE_EXPORTS].get(wish.export)
    known = export.made(found.size_bytes, found.sha256)
    if known != export:
        await world.state.commit([put(known)], Origin(actor="system", operation="image_export.create"))


WORKFLOWS: tuple[Workflow[World, Any], ...] = (create_export,)
