"""Backups as objects of a place, each project's apart from all others'.

    <project>/chunks/<2 digits>/<sha256>        content, compressed; what is the same is there once
    <project>/backups/<backup>/<volume>.index   which chunks a volume consists of
    <project>/backups/<backup>/manifest.json    written last: with it the backup is there, without it there is none
    <project>/damaged/<sha256>                  chunks that were found to be others than they should be
    unfinished/<project>/<backup>               a note that there may be chunks which no manifest accounts for

Every backup is whole by itself: none is lost with another. Who writes or removes leaves a note first. While there are
notes, `sweep` removes what no manifest names, and it does so alone: nobody can be about to name a chunk that it takes.
"""

from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress

import msgspec
import structlog

from pileus.agent.backup.chunks import CHUNK_BYTES, Damaged, decoded, digest_of, encoded
from pileus.agent.backup.manifest import Index, KeptVolume, Manifest, decoded_index, encoded_index, hash_of
from pileus.agent.backup.port import BackupPlace
from pileus.agent.storage.files import in_thread
from pileus.kernel.errors import Conflict, NotFound
from pileus.kernel.ids import BackupId, ProjectId, VolumeId, check_id

log = structlog.stdlib.get_logger()


class BackupStore:
    """The backups in one place."""

    def __init__(self, place: BackupPlace) -> None:
        self._place = place

    # Reading.

    async def find(self, project: ProjectId, id: BackupId) -> Manifest | None:
        """The backup; None if there is none, or it is not finished.

        Raises:
            Conflict: its manifest is damaged.
        """
        try:
            kept = await self._place.get(_manifest(project, id))
        except NotFound:
            return None
        try:
            return msgspec.json.decode(kept, type=Manifest)
        except msgspec.DecodeError as wrong:
            raise Conflict(f"the manifest of backup {id} is damaged", internal=str(wrong)) from wrong

    async def every(self, project: ProjectId) -> list[Manifest]:
        """All backups of a project.

        Raises:
            Conflict: a manifest is damaged.
        """
        names = await self._place.names(f"{project}/backups")
        ids = {BackupId(name.split("/")[2]) for name in names if name.endswith("/manifest.json")}
        found = [await self.find(project, id) for id in sorted(ids)]
        return [each for each in found if each is not None]

    async def unfinished(self) -> list[ProjectId]:
        """The projects of which there is something to be swept, or is being written."""
        return sorted({ProjectId(name.split("/")[1]) for name in await self._place.names("unfinished")})

    async def index(self, manifest: Manifest, volume: KeptVolume) -> Index:
        """Which chunks a volume consists of.

        Raises:
            Conflict: that is damaged or lost.
        """
        try:
            kept = await self._place.get(_index(manifest.project, manifest.id, volume.id))
            return await in_thread(decoded_index, kept, volume.index_sha256)
        except (NotFound, Damaged, msgspec.DecodeError) as why:
            raise Conflict(f"backup {manifest.id} is damaged: an index is lost", internal=str(why)) from why

    async def chunk(self, project: ProjectId, digest: str) -> bytes:
        """The content of a chunk.

        Raises:
            Damaged: it is not what was written.
            NotFound: it is lost.
        """
        kept = await self._place.get(_chunk(project, digest))
        return await in_thread(decoded, kept, digest)

    # Writing.

    @asynccontextmanager
    async def writing(self, project: ProjectId, id: BackupId) -> AsyncGenerator[None, None]:
        """While a backup is written or removed: nothing of its project is swept away meanwhile."""
        check_id(project)
        check_id(id)
        async with self._place.holding(project, alone=False):
            await self._place.put(_note(project, id), b"")
            yield

    async def present(self, project: ProjectId) -> set[str]:
        """The names of all chunks of a project."""
        return {name.rpartition("/")[2] for name in await self._place.names(f"{project}/chunks")}

    async def keep(self, project: ProjectId, content: bytes, present: set[str]) -> tuple[str, int]:
        """Have this content as a chunk, unless it is `present`: its name, and by how many bytes the place is fuller."""
        digest = await in_thread(digest_of, content)
        if digest in present:
            return digest, 0
        kept = await in_thread(encoded, content)
        await self._place.put(_chunk(project, digest), kept)
        present.add(digest)
        return digest, len(kept)

    async def publish(self, manifest: Manifest, indexes: Mapping[VolumeId, Index]) -> Manifest:
        """Have the backup, as soon as all of it is there; its indexes' hashes are put in."""
        volumes: list[KeptVolume] = []
        for volume in manifest.volumes:
            kept = await in_thread(encoded_index, indexes[volume.id])
            await self._place.put(_index(manifest.project, manifest.id, volume.id), kept)
            hashed = await in_thread(hash_of, kept)
            volumes.append(msgspec.structs.replace(volume, index_sha256=hashed))
        whole = msgspec.structs.replace(manifest, volumes=tuple(volumes))
        await self._place.put(_manifest(whole.project, whole.id), msgspec.json.encode(whole))
        await self._place.remove(_note(whole.project, whole.id))
        return whole

    # Removing.

    async def discard(self, project: ProjectId, id: BackupId) -> None:
        """Have the backup no more; what it alone needed is left to be swept."""
        async with self.writing(project, id):
            await self._place.remove(_manifest(project, id))

    async def set_aside(self, project: ProjectId, digests: Iterable[str]) -> None:
        """Take damaged chunks out of use, so that the next backup that has their content writes them anew.

        Not while somebody writes, who may count on them being there.
        """
        async with self._place.holding(project, alone=True) as alone:
            for digest in digests if alone else ():
                with suppress(NotFound):
                    kept = await self._place.get(_chunk(project, digest))
                    await self._place.put(f"{project}/damaged/{digest}", kept)
                    await self._place.remove(_chunk(project, digest))

    async def sweep(self, project: ProjectId) -> bool:
        """Remove what no backup of a project needs; whether that could be done, or somebody is writing.

        Raises:
            Conflict: a backup is damaged so that nobody knows what it needs: nothing is removed then.
        """
        check_id(project)
        notes = await self._place.names(f"unfinished/{project}")
        if not notes:
            return True
        async with self._place.holding(project, alone=True) as alone:
            if not alone:
                return False
            notes = await self._place.names(f"unfinished/{project}")
            needed = await self.needed(project)
            for part in ("chunks", "backups", "damaged"):
                for name in await self._place.names(f"{project}/{part}"):
                    if name not in needed:
                        await self._place.remove(name)
            for note in notes:
                await self._place.remove(note)
        log.info("backups swept", project=project)
        return True

    async def needed(self, project: ProjectId) -> set[str]:
        """The names of all objects that a project's backups consist of.

        Raises:
            Conflict: a backup is damaged so that nobody knows.
        """
        needed: set[str] = set()
        for manifest in await self.every(project):
            needed.add(_manifest(project, manifest.id))
            for volume in manifest.volumes:
                needed.add(_index(project, manifest.id, volume.id))
                index = await self.index(manifest, volume)
                needed.update(_chunk(project, digest) for digest in index.values())
        return needed


def length_of(volume: KeptVolume, number: int) -> int:
    """Of a chunk of a volume, in bytes: the last one may be shorter."""
    return min(CHUNK_BYTES, volume.size_bytes - number * CHUNK_BYTES)


def _chunk(project: ProjectId, digest: str) -> str:
    return f"{project}/chunks/{digest[:2]}/{digest}"


def _index(project: ProjectId, id: BackupId, volume: VolumeId) -> str:
    return f"{project}/backups/{id}/{volume}.index"


def _manifest(project: ProjectId, id: BackupId) -> str:
    return f"{project}/backups/{id}/manifest.json"


def _note(project: ProjectId, id: BackupId) -> str:
    return f"unfinished/{project}/{id}"
