"""Where an installation keeps what is not the engines': all of it below one data folder."""

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
    def first(self) -> Path:
        """The first secrets, until they have been told."""
        return self.data / "first.json"

    @property
    def begun(self) -> Path:
        """There as soon as the first `up` has come to its end."""
        return self.data / "begun"
