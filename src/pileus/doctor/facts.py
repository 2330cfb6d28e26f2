"""What was gathered, as plain data. A part that could not be looked at is None, and `unseen` says why."""

import shlex
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import msgspec

from pileus.machine.daemons import DaemonStatus


class Unseen(msgspec.Struct, frozen=True, kw_only=True):
    """Something that could not be looked at."""

    what: str
    why: str
    denied: bool = False
    """Whether it is only that this user may not."""
    daemon: str = ""
    """Who ought to have answered."""


class Commands(msgspec.Struct, frozen=True, kw_only=True):
    """How this installation's commands are typed."""

    data: Path
    default: bool
    """Whether `data` is the folder that commands take without being told."""
    program: str = "pileus"
    """What is typed for `pileus`."""
    external: str = ""
    """The external network's address, if it is not the one that `pileus up` takes by itself."""
    simulated: int = 0
    """How many hosts it simulates; 0 for a real one."""
    libvirt_uri: str = ""
    programs: Mapping[str, str] = {}
    """The paths of programs of Open vSwitch and OVN, with the option that names their database."""

    @property
    def up(self) -> str:
        simulated = f" --simulated {self.simulated}" if self.simulated else ""
        external = f" --external {self.external}" if self.external else ""
        return f"{self.program} up{simulated}{self._data(self.data)}{external}"

    @property
    def down(self) -> str:
        return f"{self.program} up --down{self._data(self.data)}"

    @property
    def doctor(self) -> str:
        return f"{self.program} doctor{self._data(self.data)}"

    def of_controller(self, command: str) -> str:
        """A command on this machine that works in the controller's folder: `backup FILE`, `restore FILE`."""
        return f"{self.program} {command}{self._data(self.data / 'controller')}"

    def cloud(self, command: str) -> str:
        """A command that goes through the API."""
        config = "" if self.default else f"PILEUS_CONFIG={shlex.quote(str(self.data / 'cli.json'))} "
        return f"{config}{self.program} {command}"

    def virsh(self, command: str) -> str:
        return f"virsh -c {shlex.quote(self.libvirt_uri)} {command}"

    def control(self, program: str, command: str) -> str:
        """A command of `ovs-vsctl`, `ovn-nbctl` or `ovn-sbctl`."""
        return f"{self.programs.get(program, program)} {command}"

    def log(self, daemon: str) -> str:
        """Show the end of a daemon's log."""
        return f"tail -n 50 {shlex.quote(str(self.data / 'log' / f'{daemon}.log'))}"

    def _data(self, folder: Path) -> str:
        return "" if self.default else f" --data {shlex.quote(str(folder))}"


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """The machine, apart from what we run on it."""

    missing_packages: tuple[str, ...] = ()
    binding: str = ""
    """Why libvirt's binding cannot be used; empty if it can."""
    binding_mend: str = ""
    has_kvm: bool = False
    """Whether there is a /dev/kvm."""
    kvm_module: str = ""
    """The module that would bring one, if the processor can: `kvm_intel` or `kvm_amd`."""
    has_tun: bool = True
    accelerator: str = ""
    """What guests were found to run on: `kvm` or `qemu` (emulated); empty before the first `up`."""
    accelerator_reason: str = ""
    datapath: str = ""
    """`system` or `netdev`."""
    datapath_reason: str = ""
    kernel_can_switch: bool = False
    """Whether the kernel has Open vSwitch's datapath, loaded or to be loaded."""


class KeptDaemon(msgspec.Struct, frozen=True, kw_only=True):
    """A daemon, and what it said last."""

    status: DaemonStatus
    last_words: str = ""
    lives_s: float = 0.0
    """How long its process has lived; 0 if that is not known."""


class Supervision(msgspec.Struct, frozen=True, kw_only=True):
    """The daemons, and who looks after them."""

    answers: bool
    """Whether the supervisor does."""
    daemons: tuple[KeptDaemon, ...] = ()

    def runs(self, name: str) -> bool:
        return any(each.status.name == name and each.status.running for each in self.daemons)

    def pid(self, name: str) -> int | None:
        return next((each.status.pid for each in self.daemons if each.status.name == name), None)


class Api(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the controller answers."""

    url: str
    failure: str = ""
    """Why not; empty if it does."""


class Certificate(msgspec.Struct, frozen=True, kw_only=True):
    """A certificate of the cloud's."""

    of: str
    """`authority`, `server` or `agent`."""
    path: Path
    begins_at: datetime
    ends_at: datetime


class FileSystem(msgspec.Struct, frozen=True, kw_only=True):
    """How full the file system of a folder is."""

    of: str
    path: Path
    used_bytes: int
    free_bytes: int
    """For us; what is kept for root alone does not count."""
    used_inodes: int = 0
    free_inodes: int = 0
    grows_bytes: int = 0
    """What disks on it were promised and do not take yet."""


class Database(msgspec.Struct, frozen=True, kw_only=True):
    """The database of records and events."""

    path: Path
    damage: str = ""
    """What is wrong with it; empty if it is whole."""
    size_bytes: int = 0
    events: int = 0
    last_event_at: datetime | None = None
    begun_at: datetime | None = None
    """When the cloud was."""
    backup_at: datetime | None = None
    """When the last backup was made, as far as is known."""
    backup: Path | None = None


class SecretFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file or folder that is for one user alone."""

    path: Path
    mode: int
    owner: int
    """User id."""
    is_folder: bool = False


class Secrets(msgspec.Struct, frozen=True, kw_only=True):
    """What must be secret."""

    files: tuple[SecretFile, ...]
    owner: int
    """Of the data folder, and so of all of it."""
    first: Path | None = None
    """Where the first password still is on disk, though it has been told."""


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """This machine's own network, as far as the cloud needs it."""

    forwards: bool
    masquerades: bool
    external_bridge: str = "br-ex"
    external_address: str = ""
    external_addresses: tuple[str, ...] | None = ()
    """Those that the bridge has; None if there is no such bridge."""
    dropping: tuple[str, ...] = ()
    """Chains that drop what is forwarded, and have no rule that accepts the external bridge: `ip filter FORWARD`."""
    unguarded: tuple[str, ...] = ()
    """Ports whose frames this machine's own network stack would take in."""


class LogicalPort(msgspec.Struct, frozen=True, kw_only=True):
    """A guest's port in OVN's northbound database."""

    name: str
    up: bool


class Ovn(msgspec.Struct, frozen=True, kw_only=True):
    """What OVN's databases say. A part is None if its database does not answer, or is another host's."""

    chassis: str
    """The name that this host ought to have."""
    registered: tuple[str, ...] | None = None
    ports: tuple[LogicalPort, ...] | None = None


class HostSeen(msgspec.Struct, frozen=True, kw_only=True):
    """A host, as the records have it."""

    id: str
    name: str
    connected: bool
    since: datetime


class InstanceSeen(msgspec.Struct, frozen=True, kw_only=True):
    """An instance, as the records have it."""

    id: str
    revision: int
    name: str
    state: str
    host_id: str


class VolumeSeen(msgspec.Struct, frozen=True, kw_only=True):
    """A volume, as the records have it."""

    id: str
    revision: int
    name: str
    state: str
    storage_pool: str
    instance_id: str | None = None
    host_id: str | None = None
    found: dict[str, str] | None = None
    """Where it is, if it is in no pool."""


class PortSeen(msgspec.Struct, frozen=True, kw_only=True):
    """A port, as the records have it."""

    id: str
    revision: int
    network_id: str = ""
    instance_id: str | None = None
    host_id: str | None = None


class NetworkSeen(msgspec.Struct, frozen=True, kw_only=True):
    """A network, as the records have it."""

    id: str
    name: str
    kind: str
    in_service: bool = True


class TaskSeen(msgspec.Struct, frozen=True, kw_only=True):
    """A task, as the records have it."""

    id: str
    created_at: datetime
    workflow: str
    subject_name: str
    state: str
    stuck_because: str = ""


class Records(msgspec.Struct, frozen=True, kw_only=True):
    """The records that engines are compared with: those that were the same before and after these were looked at."""

    source: str
    hosts: tuple[HostSeen, ...]
    instances: tuple[InstanceSeen, ...]
    volumes: tuple[VolumeSeen, ...]
    ports: tuple[PortSeen, ...]
    tasks: tuple[TaskSeen, ...]
    lines: tuple[NetworkSeen, ...] = ()
    """The external networks."""
    known: frozenset[str] = frozenset()
    """The ids of all that there was before or after, also of what is just being made or removed."""


class Process(msgspec.Struct, frozen=True, kw_only=True):
    """A process of QEMU."""

    pid: int
    guest: str
    """Its UUID."""


class Pool(msgspec.Struct, frozen=True, kw_only=True):
    """A storage pool of this host, in a folder."""

    name: str
    folder: Path
    away: str = ""
    """Why it is not to be had, if it is not."""


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What there is of instances on this host. A part is None if its engine does not answer."""

    host: str
    """This host's id."""
    guests: Mapping[str, bool] | None = None
    """By id, whether it runs (or is paused)."""
    others: frozenset[str] = frozenset()
    """The guests of others in the same libvirt."""
    told: frozenset[str] = frozenset()
    """The guests that this host's agent was told to have."""
    processes: tuple[Process, ...] | None = None
    devices: Mapping[str, str] | None = None
    """By tap device, its port's id."""
    volumes: Mapping[str, Path] | None = None
    """By id, the folder."""
    pools: tuple[Pool, ...] = ()


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that checks may know."""

    at: datetime
    commands: Commands
    installed: bool = True
    """Whether there is anything in the data folder."""
    unseen: tuple[Unseen, ...] = ()
    machine: Machine | None = None
    supervision: Supervision | None = None
    api: Api | None = None
    certificates: tuple[Certificate, ...] = ()
    file_systems: tuple[FileSystem, ...] = ()
    database: Database | None = None
    secrets: Secrets | None = None
    network: Network | None = None
    ovn: Ovn | None = None
    records: Records | None = None
    found: Found | None = None

    @property
    def is_up(self) -> bool:
        """Whether the cloud has not been taken down."""
        return self.installed and not (self.supervision is not None and not self.supervision.daemons)
