"""The port to what reaches into the disk of a guest that does not run."""

from typing import Protocol

from pileus.agent.storage.port import DiskSource
from pileus.kernel.ids import InstanceId


class Appliance(Protocol):
    """A small guest of Pileus's own, for what no host should do itself: to read what a guest has written to its disk.

    It is there for one deed, has no network, and ends with whoever holds this port.
    """

    async def set_password(self, id: InstanceId, disk: DiskSource, user: str, hash: str) -> None:
        """Have a user of the system on this disk let in by the password that is hashed so (crypt(5)).

        Nobody else may use the disk meanwhile. Whenever it is broken off the disk is as it was, or as it ought to be;
        asking again is right.

        Raises:
            Conflict: there is no such user, or no system there that is known; says what was found instead.
            Unavailable: it ended without an answer, or did not answer in time.
        """
        ...

    async def sweep(self) -> None:
        """Leave nothing of those that an earlier holder of this port began. Raises Unavailable."""
        ...
