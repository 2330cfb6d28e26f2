"""What an agent says of its host: what it is, what is on it and how busy it is; and the hello on both sides."""

from datetime import datetime

from pileus.kernel.ids import HostId, InstanceId
from pileus.link.guests import GuestObserved
from pileus.link.messages import Message
from pileus.link.storagepools import PoolObserved
from pileus.link.volumes import VolumeObserved


class Load(Message, frozen=True, kw_only=True, omit_defaults=True):
    """How much of a host is in use, each between 0 and 1, measured."""

    cpu: float
    memory: float
    disk: float


class HostFacts(Message, frozen=True, kw_only=True, omit_defaults=True):
    """What a host is."""

    name: str
    hypervisor: str
    """`libvirt` or `simulated`."""
    accelerator: str
    """`kvm`, `tcg` or `simulated`."""
    accelerator_reason: str
    """Why this accelerator, in words."""
    architecture: str
    vcpus: int
    memory_mib: int
    disk_mib: int
    version: str
    datapath: str = ""
    addresses: tuple[str, ...] = ()
    traits: tuple[str, ...] = ()
    physical_networks: tuple[str, ...] = ()
    """The wires outside of the cloud that it has a bridge on, by name."""


class HostReport(Message, frozen=True, kw_only=True, omit_defaults=True):
    """What a host measures, every 2 s."""

    at: datetime
    load: Load
    running_guests: int
    physical_networks: tuple[str, ...] | None = None
    """As in its facts, which follow; None while the switch does not answer."""
    pools: tuple[PoolObserved, ...] = ()
    """As they were when they were last looked at, some seconds ago."""


class Inventory(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Everything of Pileus that is on a host."""

    guests: tuple[GuestObserved, ...] = ()
    volumes: tuple[VolumeObserved, ...] = ()


class Hello(Message, frozen=True, kw_only=True, omit_defaults=True):
    """The first thing an agent says on a new connection."""

    facts: HostFacts
    inventory: Inventory
    pools: tuple[PoolObserved, ...] = ()


class Welcome(Message, frozen=True, kw_only=True, omit_defaults=True):
    """The controller's answer to a hello."""

    host: HostId
    report_every_s: float = 2.0
    orphans: tuple[InstanceId, ...] = ()
    """Guests of the inventory that the controller has no record of: to be left alone, and told of by the doctor."""
