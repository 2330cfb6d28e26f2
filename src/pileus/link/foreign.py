"""Guests on a host that are not of Pileus: somebody made them in the same hypervisor without it."""

from pileus.link.messages import Message


class ForeignDisk(Message, frozen=True, kw_only=True, omit_defaults=True):
    """A disk or drive of such a guest."""

    target: str
    """As the definition calls it: `vda`."""
    device: str = "disk"
    """`disk`, `cdrom`, `floppy` or `lun`."""
    bus: str = ""
    kind: str = "file"
    """Where it is: `file`, `block`, or what libvirt calls it otherwise."""
    path: str = ""
    """Empty for a drive without a medium."""
    format: str = ""
    size_bytes: int = 0
    """As large as the guest sees it; 0 if nobody can tell."""


class ForeignNic(Message, frozen=True, kw_only=True, omit_defaults=True):
    """A network interface of such a guest."""

    mac: str
    kind: str
    """How it is connected: `bridge`, `network`, or what libvirt calls it otherwise."""
    source: str = ""
    """The bridge or network."""
    model: str = ""


class ForeignGuest(Message, frozen=True, kw_only=True, omit_defaults=True):
    """A guest as its hypervisor has it."""

    id: str
    """The hypervisor's own (a UUID)."""
    name: str
    running: bool
    vcpus: int
    memory_mib: int
    machine: str = ""
    firmware: str = "bios"
    """`bios` or `uefi`."""
    disks: tuple[ForeignDisk, ...] = ()
    nics: tuple[ForeignNic, ...] = ()
    obstacles: tuple[str, ...] = ()
    """What stands in the way of taking it over, in sentences."""
    untouched: tuple[str, ...] = ()
    """What it has besides that we do not know how to change: it would stay as it is."""
    generation: int = 0
    """Up to which this host would take a wish about it for late: it was ours before."""


class ForeignGuests(Message, frozen=True, kw_only=True, omit_defaults=True):
    """All that a host has."""

    guests: tuple[ForeignGuest, ...] = ()
