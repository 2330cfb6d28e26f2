"""What a volume in a directory was at a snapshot: which parts of it to read, and where its layers have them."""

import errno
import os
from bisect import bisect_right
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

from pileus.agent.storage import overlays
from pileus.agent.storage.files import in_thread
from pileus.agent.storage.layers import Layers
from pileus.agent.storage.overlays import Extent
from pileus.agent.storage.volumefolder import VolumeFolder
from pileus.kernel.errors import Conflict


class LayeredMoment:
    """A chain of files, open for reading (a Moment)."""

    def __init__(
        self,
        size_bytes: int,
        changed: Sequence[tuple[int, int]],
        parts: Sequence[tuple[int, int, int, int]],
        *,
        is_compared: bool,
    ) -> None:
        """`parts` say where data is: its beginning and end, an open file, and its beginning there."""
        self.size_bytes = size_bytes
        self.changed = changed
        self.is_compared = is_compared
        self._parts = parts
        self._starts = [start for start, *_ in parts]

    async def read(self, start: int, length: int) -> bytes:
        return await in_thread(self._read, start, length)

    def _read(self, start: int, length: int) -> bytes:
        content, end = bytearray(length), start + length
        for begins, ends, file, offset in self._parts[max(0, bisect_right(self._starts, start) - 1) :]:
            if begins >= end:
                break
            position, behind = max(begins, start), min(ends, end)
            while position < behind:
                data = os.pread(file, behind - position, offset + position - begins)
                if not data:
                    raise OSError(errno.EIO, "a layer ended early while it was read")
                content[position - start : position - start + len(data)] = data
                position += len(data)
        return bytes(content)


@asynccontextmanager
async def opened(
    folder: VolumeFolder, layers: Layers, snapshot: str, since: str | None
) -> AsyncGenerator[LayeredMoment, None]:
    """Read what a snapshot froze, compared with another if that is there.

    Raises:
        NotFound: there is no such snapshot.
        Conflict: a layer is not what was made.
    """
    layer = layers.of(snapshot)
    chain = folder.chain(layers, layer)
    with ExitStack() as files:
        # Opened before the map is read: what is unlinked meanwhile stays readable.
        numbers = await in_thread(_open_all, chain, files)
        extents = await overlays.extents(chain)
        size = await in_thread(overlays.size_of, chain[0])
        parts = [_part(each, numbers[chain[each.depth]]) for each in extents if each.data and not each.zero]
        if since is None or since not in layers.frozen:
            changed = [(start, end) for start, end, *_ in parts]
        else:
            changed = await _changed(folder, layers, layer, layers.frozen[since], extents)
        yield LayeredMoment(size, changed, parts, is_compared=since is not None and since in layers.frozen)


async def _changed(
    folder: VolumeFolder, layers: Layers, layer: str, before: str, extents: Sequence[Extent]
) -> list[tuple[int, int]]:
    """Where what is seen through one layer may differ from what is seen through another.

    That is where a layer has something that only one of them lies on: also if the volume was reverted in between.
    """
    ours, theirs = layers.chain(layer), layers.chain(before)
    own, other = _own(ours, theirs), _own(theirs, ours)
    changed = [(each.start, each.start + each.length) for each in extents if each.depth < own]
    chain = folder.chain(layers, before)
    if other:
        gone = await overlays.extents(chain)
        changed += [(each.start, each.start + each.length) for each in gone if each.depth < other]
    size, grown_from = (
        await in_thread(overlays.size_of, folder.file(layer)),
        await in_thread(overlays.size_of, chain[0]),
    )
    if size != grown_from:
        # Its last piece may have been a short one.
        changed.append((grown_from, grown_from + 1))
    return sorted(changed)


def _own(chain: Sequence[str], other: Sequence[str]) -> int:
    """How many layers on top of a chain the other has not."""
    shared = set(other)
    return next((depth for depth, layer in enumerate(chain) if layer in shared), len(chain))


def _part(extent: Extent, file: int) -> tuple[int, int, int, int]:
    if extent.offset is None:
        raise Conflict("a layer of the volume is not what was made", internal="it has data of which nobody says where")
    return extent.start, extent.start + extent.length, file, extent.offset


def _open_all(chain: Sequence[Path], files: ExitStack) -> Mapping[Path, int]:
    return {file: files.enter_context(file.open("rb")).fileno() for file in chain}
