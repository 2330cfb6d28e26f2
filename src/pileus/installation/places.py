"""Where an installation keeps what is not the engines': all of it below one data folder."""

import shutil
import sys
from pathlib import Path

import msgspec

from pileus.machine.layout import Layout

DATA = Path("/var/lib/pileus")


class Places(msgspec.Struct, frozen=True):
    """The folders and files of an installation."""

    layout: Layout

    @classmethod
    def of(cls, data: Path) -> "Places":
        return cls(Layout.of(data))

    @property
    def data(self) -> Path:
        return self.layout.data

    @property
    def controller(self) -> Path:
        return self.data / "controller"

    @property
    def agent(self) -> Path:
        return self.data / "agent"

    @property
    def volumes(self) -> Path:
        return self.data / "volumes"

    @property
    def image(self) -> Path:
        return self.layout.cache / "mini.qcow2"

    @property
    def appliance(self) -> Path:
        """What looks into the disks of stopped guests; QEMU's user is let through to it."""
        return self.data / "appliance"

    @property
    def packages(self) -> Path:
        """What was fetched to build the image."""
        return self.layout.cache / "mini"

    @property
    def key(self) -> Path:
        """The SSH key that the first instance lets in."""
        return self.data / "ssh" / "id_ed25519"

    @property
    def client(self) -> Path:
        """What the command line on this machine needs; for root only."""
        return self.data / "cli.json"

    @property
    def program(self) -> str:
        """What is typed for `pileus`, so that it works as it stands."""
        beside = Path(sys.executable).with_name("pileus")
        if shutil.which("pileus") is not None:
            return "pileus"
        return str(beside) if beside.exists() else f"{sys.executable} -m pileus"

    @property
    def command(self) -> str:
        """What is typed before a noun, to speak to this cloud."""
        return self.program if self.data == DATA else f"PILEUS_CONFIG={self.client} {self.program}"

    @property
    def first(self) -> Path:
        """The first secrets, until they have been told."""
        return self.data / "first.json"

    @property
    def begun(self) -> Path:
        """There as soon as the first `up` has come to its end."""
        return self.data / "begun"
