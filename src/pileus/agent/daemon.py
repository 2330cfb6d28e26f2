"""The composition of an agent: the one place that knows which drivers are behind its ports."""

import asyncio
import fcntl
import signal
from collections.abc import Coroutine, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import msgspec
import structlog

from pileus.agent.agent import Agent, Engines, Pace
from pileus.agent.fetching import ImageFetcher, api_client
from pileus.agent.host import LinuxHost
from pileus.agent.hypervisor.port import Hypervisor
from pileus.agent.hypervisor.simulated import SimulatedHypervisor
from pileus.agent.imagecache import AT_MOST
from pileus.agent.network.port import HostNetwork
from pileus.agent.network.simulated import SimulatedNetwork
from pileus.agent.records import AgentRecords
from pileus.agent.sending import Sender
from pileus.agent.service import AgentService
from pileus.agent.storage.directory import DirectoryPool
from pileus.agent.storage.port import StoragePool
from pileus.agent.storage.simulated import SimulatedStorage
from pileus.kernel.clock import SystemClock
from pileus.kernel.errors import Conflict, Invalid
from pileus.link.addresses import Address
from pileus.link.certificates import AgentIdentity
from pileus.link.channel import Channel
from pileus.link.dialler import Dialler
from pileus.link.renewal import keep_renewed

IDENTITY: Final = "identity"
"""The folder below the agent's data where its certificate is (`AgentIdentity`)."""

log = structlog.stdlib.get_logger()


class LibvirtConfig(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="libvirt"
):
    """Guests on QEMU."""

    uri: str
    """Of libvirtd: `qemu:///system?socket=...`."""
    accelerator: str
    """`kvm` or `tcg`."""
    accelerator_reason: str
    sockets: str
    """The folder in which consoles listen."""
    logs: str
    """The folder in which consoles are logged."""
    appliance: str = ""
    """The folder of what looks into the disks of stopped guests; empty for none."""


class OvnConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="ovn"):
    """Ports on Open vSwitch, which ovn-controller programs."""

    switch: str
    """Where its database is: `unix:/run/openvswitch/db.sock`."""
    bridge: str = "br-int"


class DirectoryConfig(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="directory"
):
    """Volumes in files; QEMU's user must be let through to the folder."""

    folder: str


class SimulatedConfig(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="simulated"
):
    """In memory, and gone with the agent."""


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`agent.json` in the agent's data folder."""

    link: tuple[Address, ...]
    """Where the controller takes agents."""
    api: tuple[Address, ...]
    """Where the controller's API is, for images."""
    name: str = ""
    """The host's; without one, the machine's own."""
    run: str = ""
    """Another one whenever the host was taken down with its guests: they are to be started again, as after a boot."""
    hypervisor: LibvirtConfig | SimulatedConfig
    network: OvnConfig | SimulatedConfig
    pools: dict[str, DirectoryConfig | SimulatedConfig]
    pace: Pace = Pace()
    images_at_most: Annotated[float, msgspec.Meta(ge=0, le=1)] = AT_MOST
    """How much of each storage pool copies of images may take, between 0 and 1."""


def read_config(data: Path) -> AgentConfig:
    """Read `agent.json`.

    Raises:
        Invalid: it is not there, or wrong.
    """
    file = data / "agent.json"
    try:
        return msgspec.json.decode(file.read_bytes(), type=AgentConfig)
    except FileNotFoundError as missing:
        raise Invalid(f"{file} is missing: this host has not joined a cloud") from missing
    except msgspec.DecodeError as wrong:
        raise Invalid(f"{file} is wrong: {wrong}") from wrong


async def run(data: Path) -> None:
    """Run the agent whose data is in this folder until SIGTERM or SIGINT; its guests run on afterwards.

    Raises:
        Invalid: the configuration is wrong, or this host has not joined a cloud.
        Conflict: an agent is running over this data already.
        OSError: the data folder cannot be read or written.
    """
    config = read_config(data)
    identity = AgentIdentity(data / IDENTITY)
    if not identity.exists:
        raise Invalid("this host has not joined a cloud")
    with _alone(data):
        await _until_told(_serve(data, config, identity))


async def _serve(data: Path, config: AgentConfig, identity: AgentIdentity) -> None:
    clock = SystemClock()
    fetcher = ImageFetcher(lambda: config.api, identity.context)
    records = AgentRecords(data / "records")
    records.load()
    engines = Engines(
        hypervisor=hypervisor_of(config.hypervisor),
        network=network_of(config.network),
        pools={name: pool_of(pool) for name, pool in config.pools.items()},
        host=LinuxHost(_volumes_in(config, data), name=config.name, run=config.run),
        fetch=fetcher.fetch,
        send=Sender(lambda: config.api, lambda: api_client(identity.context())).send,
        config_drives=_volumes_in(config, data) / "config-drives",
        images_at_most=config.images_at_most,
    )
    service = AgentService(Agent(engines, records, clock, config.pace))

    async def connected(channel: Channel) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(service.accompany(channel))
            tasks.create_task(keep_renewed(identity, channel, clock))

    dialler = Dialler(lambda: config.link, identity.context, service.handlers, connected, clock=clock)
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(service.run())
            tasks.create_task(dialler.run())
    finally:
        await engines.network.close()
        await engines.hypervisor.close()


def _volumes_in(config: AgentConfig, data: Path) -> Path:
    """The folder whose file system is the host's disk, as the scheduler sees it."""
    folders = [Path(pool.folder) for pool in config.pools.values() if isinstance(pool, DirectoryConfig)]
    return folders[0] if folders else data


def hypervisor_of(config: LibvirtConfig | SimulatedConfig) -> Hypervisor:
    """The driver that is configured.

    Raises:
        Unavailable: the library that it needs is not installed.
    """
    match config:
        case SimulatedConfig():
            return SimulatedHypervisor()
        case LibvirtConfig():
            from pileus.agent.hypervisor.libvirt import binding
            from pileus.agent.hypervisor.libvirt.domain import Ground
            from pileus.agent.hypervisor.libvirt.driver import LibvirtHypervisor

            ground = Ground(
                accelerator=config.accelerator,
                sockets=Path(config.sockets),
                logs=Path(config.logs),
                appliance=Path(config.appliance) if config.appliance else None,
            )
            return LibvirtHypervisor(
                binding.load(), uri=config.uri, ground=ground, accelerator_reason=config.accelerator_reason
            )


def network_of(config: OvnConfig | SimulatedConfig) -> HostNetwork:
    """The driver that is configured."""
    match config:
        case SimulatedConfig():
            return SimulatedNetwork()
        case OvnConfig():
            from pileus.agent.network.ovn import OvnHostNetwork

            return OvnHostNetwork(config.switch, bridge=config.bridge)


def pool_of(config: DirectoryConfig | SimulatedConfig) -> StoragePool:
    """The driver that is configured.

    Raises:
        OSError: its folder cannot be written.
    """
    match config:
        case SimulatedConfig():
            return SimulatedStorage()
        case DirectoryConfig():
            return DirectoryPool.open(Path(config.folder))


@contextmanager
def _alone(data: Path) -> Generator[None, None, None]:
    """Two agents over the same records would undo each other's work."""
    with (data / "agent.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as taken:
            raise Conflict(f"an agent is running over {data} already") from taken
        yield


async def _until_told(work: Coroutine[None, None, None]) -> None:
    """Do this until it ends or somebody ends this process in order."""
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(work)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, serving.cancel)
        try:
            await asyncio.wait({serving})
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)
    log.info("agent ended, its guests run on")
