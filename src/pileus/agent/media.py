"""The media in the drives of a host's guests: ISO images, read by any number of guests and written by none."""

from collections.abc import Callable, Iterable
from typing import Final

import structlog

from pileus.agent.pools import Pools
from pileus.agent.storage.port import DiskSource, Fetch, StoragePool
from pileus.agent.volumes import Tell
from pileus.kernel.clock import Clock
from pileus.kernel.errors import NotFound, PileusError
from pileus.kernel.ids import ImageId
from pileus.link.guests import GuestMedium, GuestSpec
from pileus.link.images import MediumSpec
from pileus.link.messages import Progress

KEPT_S: Final = 3600.0
"""How long a medium stays here that no guest has: long enough for the guest to come that it was brought for."""

log = structlog.stdlib.get_logger()


class Media:
    """Brings media, says where they are, and lets those go that no guest has any more."""

    def __init__(
        self,
        pools: Pools,
        fetch: Fetch,
        clock: Clock,
        guests: Callable[[], Iterable[GuestSpec]],
    ) -> None:
        """Media in these pools for these guests."""
        self._pools = pools
        self._fetch = fetch
        self._clock = clock
        self._guests = guests
        self._unused: dict[tuple[str, ImageId], float] = {}
        """Since when no guest is known to have it, by our monotonic clock."""

    async def ensure(self, spec: MediumSpec, tell: Tell) -> None:
        """Have the medium ready for guests.

        Raises:
            NotFound: there is no such storage pool here.
            Conflict: the pool has no room, or the image is not what it claims to be.
            Unavailable: the pool, or where the image comes from, cannot be reached.
        """
        pool = self._pool(spec.pool)
        self._unused[spec.pool, spec.image.id] = self._clock.monotonic()
        if spec.image.id not in await pool.media():
            await pool.ensure_image(spec.image, self._fetch, lambda part: tell(Progress(step="image", fraction=part)))
        await pool.offer(spec.image.id)

    async def sources(self, media: Iterable[GuestMedium]) -> dict[int, DiskSource]:
        """Where media are, by their drives. One that is not here leaves its drive empty: no guest needs it to run."""
        found: dict[int, DiskSource] = {}
        for medium in media:
            try:
                found[medium.drive] = await self._pool(medium.pool).offer(medium.image)
            except NotFound:
                log.warning("medium is not on this host", image=medium.image, drive=medium.drive)
        return found

    async def settle(self) -> None:
        """Let go of media that no guest has had for a while."""
        used = {(medium.pool, medium.image) for guest in self._guests() for medium in guest.media}
        now = self._clock.monotonic()
        for name, pool in self._pools.items():
            try:
                for id in await pool.media():
                    if (name, id) in used:
                        self._unused.pop((name, id), None)
                    elif now - self._unused.setdefault((name, id), now) > KEPT_S:
                        await pool.withdraw(id)
                        del self._unused[name, id]
                        log.info("medium let go", image=id, pool=name)
            except PileusError as why:
                log.warning("media not looked after", pool=name, why=str(why), internal=why.internal)

    def _pool(self, name: str) -> StoragePool:
        return self._pools.find(name)
