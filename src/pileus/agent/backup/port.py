"""The port through which an agent reaches a place for backups: a few operations on named objects.

What a backup is made of (`store.py`) needs no more, so that a folder, a share and an object store fit behind it alike.
"""

from contextlib import AbstractAsyncContextManager
from typing import Protocol


class BackupPlace(Protocol):
    """Keeps objects by name; names have slashes as paths do. Every call is idempotent.

    Raises Unavailable if the place cannot be reached, Conflict if it has no room.
    """

    async def put(self, name: str, data: bytes) -> None:
        """Have the object with this content. It is there as a whole or not at all, and lasts when this returns."""
        ...

    async def get(self, name: str) -> bytes:
        """Its content. Raises NotFound."""
        ...

    async def has(self, name: str) -> bool: ...

    async def names(self, under: str) -> list[str]:
        """The whole names of all objects below a name; of the whole place for the empty one."""
        ...

    async def remove(self, name: str) -> None: ...

    def holding(self, name: str, *, alone: bool) -> AbstractAsyncContextManager[bool]:
        """Hold a lock of this name while in the context: with others, or `alone`.

        With others it waits for whoever is alone. Who wants to be alone is told whether it is, at once. It ends with
        the process that holds it, whatever becomes of that.
        """
        ...
