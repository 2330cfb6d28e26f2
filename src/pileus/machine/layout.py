"""Where the engines of one host keep their things: everything below one data folder."""

import hashlib
import shutil
from pathlib import Path

import msgspec

from pileus.kernel.files import write_atomically
from pileus.kernel.ids import new_id

_SOCKET_PATH_LIMIT = 107
"""Bytes in `sockaddr_un.sun_path`, less its closing zero: unix(7)."""
_LONGEST_SOCKET = len("/instances/00000000-0000-0000-0000-000000000000.serial")
"""Room that the run folder leaves for the longest name of a socket below it."""


def boot_id() -> str:
    """What tells this boot of the machine from every other: random(4)."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


class Layout(msgspec.Struct, frozen=True):
    """The folders of one host. Two hosts on one machine have two data folders, and share none of these."""

    data: Path
    run: Path
    """Sockets and pid files; `data/run`, or a short folder under /run where that would be too long for a socket."""
    tag: str
    """Eight letters that stand for the data folder wherever a whole path does not fit."""

    @classmethod
    def of(cls, data: Path) -> "Layout":
        """The layout of a data folder; two calls for one folder answer the same."""
        data = data.resolve()
        tag = hashlib.sha256(bytes(data)).hexdigest()[:8]
        run = data / "run"
        if len(bytes(run)) + _LONGEST_SOCKET > _SOCKET_PATH_LIMIT:
            run = Path("/run") / f"pileus-{tag}"
        return cls(data, run, tag)

    @property
    def machine(self) -> Path:
        """What we remember about the machine and the daemons."""
        return self.data / "machine"

    @property
    def log(self) -> Path:
        return self.data / "log"

    @property
    def cache(self) -> Path:
        """What can be fetched or made again."""
        return self.data / "cache"

    @property
    def libvirt(self) -> Path:
        return self.data / "libvirt"

    @property
    def switch(self) -> Path:
        """The databases of Open vSwitch and OVN."""
        return self.data / "ovn"

    def identity(self) -> str:
        """The UUID of this host in libvirt, which is also its name in OVN: made once, then kept."""
        file = self.machine / "host-uuid"
        if not file.exists():
            write_atomically(file, new_id().encode(), mode=0o644)
        return file.read_text(encoding="ascii")

    def make(self) -> None:
        """Make the folders; a run folder from before the machine's last boot is emptied first.

        The data folder can be passed through by all, because guests run as a user of their own; what is secret in it
        protects itself.
        """
        self.data.mkdir(mode=0o711, parents=True, exist_ok=True)
        stamp = self.run / "boot"
        if self.run.exists() and (not stamp.exists() or stamp.read_text(encoding="ascii") != boot_id()):
            shutil.rmtree(self.run)
        for folder in (self.run, self.machine, self.log, self.cache, self.libvirt, self.switch):
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        stamp.write_text(boot_id(), encoding="ascii")
