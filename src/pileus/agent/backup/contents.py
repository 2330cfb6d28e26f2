"""What volumes are in backups, for those that are made from them."""

from collections.abc import AsyncIterator, Mapping

from pileus.agent.backup.chunks import CHUNK_BYTES, Damaged
from pileus.agent.backup.manifest import KeptVolume, Manifest
from pileus.agent.backup.store import BackupStore
from pileus.agent.pools import Pools
from pileus.agent.storage.port import Told
from pileus.kernel.errors import Conflict, NotFound
from pileus.link.volumes import VolumeBackup


class BackupContents:
    """Reads backups from the storage pools of a host."""

    def __init__(self, pools: Pools) -> None:
        self._pools = pools

    def store(self, place: str) -> BackupStore:
        """The backups in a storage pool.

        Raises:
            NotFound: this host is to have no such pool.
            Unavailable: it is not to be had just now.
        """
        return BackupStore(self._pools.find(place).place)

    @property
    def stores(self) -> Mapping[str, BackupStore]:
        """The backups in each pool that is to be had now."""
        return {name: BackupStore(pool.place) for name, pool in self._pools.items()}

    async def found(self, source: VolumeBackup) -> KeptVolume:
        """A volume in a backup.

        Raises:
            NotFound: there is no such backup, or the volume is not in it.
            Conflict: it is damaged.
        """
        return (await self._found(source))[1]

    async def read(self, source: VolumeBackup, told: Told) -> AsyncIterator[tuple[int, bytes]]:
        """All that is in a volume but zeroes, piece by piece with where it begins; every piece is what was written.

        Raises:
            NotFound: there is no such backup, or the volume is not in it.
            Conflict: a piece is damaged or lost.
        """
        store = self.store(source.place)
        manifest, volume = await self._found(source)
        index = await store.index(manifest, volume)
        for count, (number, digest) in enumerate(sorted(index.items()), 1):
            try:
                content = await store.chunk(source.project, digest)
            except (Damaged, NotFound) as why:
                raise Conflict(
                    f"backup {source.id} is damaged: what it has of the volume cannot be relied on", internal=str(why)
                ) from why
            yield number * CHUNK_BYTES, content
            told(count / len(index))

    async def _found(self, source: VolumeBackup) -> tuple[Manifest, KeptVolume]:
        manifest = await self.store(source.place).find(source.project, source.id)
        volume = None if manifest is None else manifest.of(source.volume)
        if manifest is None or volume is None:
            raise NotFound(f"there is no backup {source.id} of the volume in this storage pool")
        return manifest, volume
