"""The chunks that backups are made of: pieces of volumes, called after what is in them. Pure.

A chunk is named by the SHA-256 of its content, so that what is the same is kept once, and what was changed on its way
or in its place is known. Each carries how it is encoded: `z` for zlib, `r` for what that makes no smaller.
"""

import hashlib
import zlib
from typing import Final

from pileus.kernel.units import MIB

CHUNK_BYTES: Final = MIB
"""Of a volume's content, at multiples of this: less would make indexes long, more would copy more for each change."""
_MAGIC: Final = b"pbc1"
_LEVEL: Final = 1
"""The quickest: four times as quick as the default, for some tenth more."""


class Damaged(ValueError):
    """What was read is not what was written; says in words what it is."""


def digest_of(content: bytes) -> str:
    """The name of a chunk with this content."""
    return hashlib.sha256(content).hexdigest()


def encoded(content: bytes) -> bytes:
    """A chunk as it is kept."""
    packed = zlib.compress(content, _LEVEL)
    return _MAGIC + (b"z" + packed if len(packed) < len(content) else b"r" + content)


def decoded(kept: bytes, digest: str) -> bytes:
    """The content of a chunk that should be of this name.

    Raises:
        Damaged: it is not.
    """
    head = len(_MAGIC)
    kind, packed = kept[head : head + 1], kept[head + 1 :]
    if kept[:head] != _MAGIC or kind not in (b"z", b"r"):
        raise Damaged(f"chunk {digest} is no chunk")
    content = _unpacked(packed, digest) if kind == b"z" else packed
    if digest_of(content) != digest:
        raise Damaged(f"chunk {digest} has another content")
    return content


def _unpacked(packed: bytes, digest: str) -> bytes:
    unpacking = zlib.decompressobj()
    try:
        # However small it is, it may not become larger than a chunk can be.
        content = unpacking.decompress(packed, CHUNK_BYTES + 1)
    except zlib.error as why:
        raise Damaged(f"chunk {digest} cannot be decompressed: {why}") from why
    if not unpacking.eof or unpacking.unused_data:
        raise Damaged(f"chunk {digest} is not as long as it was")
    return content
