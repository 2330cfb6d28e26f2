"""What keeps image exports no longer than somebody fetches them."""

import structlog

from pileus.cloud.imageexports.files import ExportFiles
from pileus.cloud.imageexports.model import IMAGE_EXPORTS, ImageExportState
from pileus.cloud.imageexports.operations import KEPT
from pileus.kernel.clock import Clock
from pileus.kernel.ids import ImageExportId
from pileus.state.state import Origin, State, remove

ORIGIN = Origin(actor="system", operation="housekeeping")

log = structlog.stdlib.get_logger()


class ExpireExports:
    """Forgets exports that nobody has fetched of for long, and files without an export."""

    def __init__(self, state: State, files: ExportFiles, clock: Clock) -> None:
        self._state = state
        self._files = files
        self._clock = clock

    async def once(self) -> None:
        """Have those gone whose time is over; doing it twice is doing it once."""
        exports = self._state[IMAGE_EXPORTS]
        for export in exports.by("state", ImageExportState.AVAILABLE):
            used_at = self._files.used_at(ImageExportId(export.id)) or export.created_at
            if self._clock.now() - used_at > KEPT:
                await self._state.commit([remove(export)], ORIGIN)
                log.info("image export forgotten", export=export.id, image=export.image_id)
        await self._files.keep_only(lambda: set(exports.ids))
