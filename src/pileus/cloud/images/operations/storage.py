"""What images take of the controller's disk."""

import msgspec

from pileus.cloud.imageexports.files import ExportFiles
from pileus.cloud.images.files import ImageFiles
from pileus.cloud.images.operations.noun import images
from pileus.cloud.images.room import Space
from pileus.operations.caller import Role
from pileus.operations.declare import Answer, Exchange


@images.special("GET", "/storage", least=Role.PLATFORM, answers=Space)
async def storage(exchange: Exchange) -> Answer:
    """Show what images take of the controller's disk, what is arriving or exported, and how much there is room for."""
    files: ImageFiles = exchange.services[ImageFiles]
    exports: ExportFiles = exchange.services[ExportFiles]
    space = msgspec.structs.replace(await files.space(), exports_bytes=await exports.taken())
    return Answer(status=200, body=msgspec.json.encode(space))
