"""Config drives: what the metadata service answers a guest, on a disk of its own, which it reads without a network.

A FAT file system labelled `config-2` in OpenStack's layout, with every path that the guest could ask for at
169.254.169.254: https://docs.openstack.org/nova/latest/user/metadata.html#config-drives
"""

import asyncio
import shutil
from pathlib import Path
from typing import Final

import structlog

from pileus.agent.metadata import files
from pileus.agent.storage.port import DiskSource
from pileus.guestimage.fat import fat16
from pileus.kernel.errors import Unavailable
from pileus.kernel.files import write_atomically
from pileus.kernel.ids import InstanceId
from pileus.kernel.units import MIB
from pileus.link.guests import GuestSpec

LABEL: Final = "config-2"
_FILE: Final = "config-drive.raw"
_STEP_BYTES: Final = 4 * MIB
_CLUSTER_BYTES: Final = 512

log = structlog.stdlib.get_logger()


class ConfigDrives:
    """The config drives of a host's guests, each in a folder of its guest's own. Every call is idempotent."""

    def __init__(self, folder: Path | None) -> None:
        """Drives below this folder, to which QEMU's user is let through; without one there is nothing behind them."""
        self._folder = folder

    async def ensure(self, guest: GuestSpec) -> DiskSource | None:
        """Have the guest's drive say what metadata answers now; None if the guest is to have none.

        A new file takes the place of the old one: a guest that runs goes on with what it was started with.

        Raises:
            Unavailable: it cannot be written.
        """
        if not guest.config_drive:
            return None
        if self._folder is None:
            return DiskSource(kind="file", path=f"/simulated/config-drives/{guest.id}", format="raw")
        file = self._folder / guest.id / _FILE
        try:
            await asyncio.to_thread(_write, file, guest)
        except OSError as why:
            raise Unavailable("the host cannot write the guest's config drive", internal=str(why)) from why
        return DiskSource(kind="file", path=str(file), format="raw")

    async def remove(self, id: InstanceId) -> None:
        """Have no drive of this guest.

        Raises:
            Unavailable: it cannot be removed.
        """
        if self._folder is None:
            return
        try:
            await asyncio.to_thread(_remove, self._folder / id)
        except OSError as why:
            raise Unavailable("the host cannot remove the guest's config drive", internal=str(why)) from why


def image(guest: GuestSpec) -> bytes:
    """The content of a guest's drive: the same whenever metadata answers the same."""
    # A line of a list, of which the name is all that there is, is no file.
    content = {path: data for path, data in files(guest).items() if "=" not in path}
    used_bytes = sum(len(data) + _CLUSTER_BYTES for data in content.values())
    # Half a step is more than the tables and folders need.
    steps = (used_bytes + _STEP_BYTES // 2) // _STEP_BYTES + 1
    return fat16(content, label=LABEL, size_bytes=steps * _STEP_BYTES)


def _write(file: Path, guest: GuestSpec) -> None:
    data = image(guest)
    if file.exists() and file.read_bytes() == data:
        return
    for folder in (file.parent.parent, file.parent):
        folder.mkdir(mode=0o711, parents=True, exist_ok=True)
        folder.chmod(0o711)
    write_atomically(file, data)
    log.info("config drive written", guest=guest.id, bytes=len(data))


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
