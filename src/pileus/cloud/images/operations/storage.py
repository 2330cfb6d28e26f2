"""What images take of the controller's disk."""

import msgspec

from pileus.cloud.images.files import ImageFiles, Space
from pileus.cloud.images.operations.noun import images
from pileus.operations.caller import Role
from pileus.operations.declare import Answer, Exchange


@images.special("GET", "/storage", least=Role.PLATFORM, answers=Space)
async def storage(exchange: Exchange) -> Answer:
    """Show what images take of the controller's disk, what is arriving, and how much there is room for."""
    files: ImageFiles = exchange.services[ImageFiles]
    return Answer(status=200, body=msgspec.json.encode(await files.space()))
