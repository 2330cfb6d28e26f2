"""`pileus up`: from a fresh machine to a running guest, by one command that may be repeated, and broken off.

Each part looks at what is there before it does anything, so that repeating is going on.
"""

import asyncio
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from pileus import __version__
from pileus.agent.agent import Pace
from pileus.agent.daemon import IDENTITY, AgentConfig, DirectoryConfig, LibvirtConfig, OvnConfig, read_config
from pileus.agent.imagecache import AT_MOST
from pileus.client.client import Client
from pileus.client.config import Config
from pileus.cloud.hosts.model import HOSTS, Host
from pileus.cloud.pools.model import POOLS
from pileus.controller.bootstrap import FirstSecrets, Outside, new_secrets
from pileus.controller.compose import Controller, Settings, composed
from pileus.controller.daemon import read_settings
from pileus.guestimage import build, build_appliance
from pileus.installation.hello import Hello, first_instance
from pileus.installation.places import DATA, Places
from pileus.kernel.clock import SystemClock
from pileus.kernel.errors import Forbidden, TimedOut, Unavailable
from pileus.kernel.files import write_atomically
from pileus.kernel.ids import HostId, PoolId, new_id
from pileus.kernel.programs import ProgramFailed
from pileus.link.addresses import Address
from pileus.link.certificates import AgentIdentity, AgentKey, Authority, is_due
from pileus.machine import packages
from pileus.machine.daemons import Daemon
from pileus.machine.engines import EngineAddresses, Engines, EngineSettings
from pileus.machine.kvm import Accelerator
from pileus.state.state import Origin, put

Say = Callable[[str], None]

_CONNECTED_WITHIN_S = 120.0
CONTROLLER, AGENT = "controller", "agent"


class Up(msgspec.Struct, frozen=True, kw_only=True):
    """What is told at the end."""

    api: str
    """Where others reach it too, if this machine has an address."""
    fingerprint: str
    password: str | None
    """Of `admin`, the first time."""
    hello: Hello | None
    accelerator: str
    command: str
    """What is typed for `pileus NOUN VERB` to reach this cloud."""
    stop: str
    """What stops it all."""


async def up(data: Path, say: Say, settings: EngineSettings) -> Up:
    """Have the whole cloud running on this machine, and the first time an instance in it.

    Args:
        data: the folder for everything.
        say: is told what happens, in sentences.
        settings: where the external network is.

    Raises:
        PileusError: with what is in the way; calling again goes on from there.
    """
    if os.geteuid() != 0:
        raise Forbidden("this takes root; a cloud of simulated hosts does not: `pileus up --simulated 3`")
    places = Places.of(data)
    await asyncio.to_thread(places.data.mkdir, mode=0o711, parents=True, exist_ok=True)
    engines = Engines(data, say=say, settings=settings)
    await packages.install(await packages.missing(), say)
    places.layout.make()
    begun = places.begun.exists()
    async with asyncio.TaskGroup() as tasks:
        image = None if begun else tasks.create_task(build(places.image, cache=places.packages, say=say))
        tasks.create_task(_have_appliance(places, say))
        first = await _begin(places, settings)
        _certify(places)
        say("starting libvirt, Open vSwitch and OVN")
        addresses = await engines.up()
        say("starting controller and agent")
        wanted = _configure_controller(places, settings, northbound=addresses.northbound or "")
        _configure_agent(places, addresses, wanted)
        _write_client(places, wanted, _client_config(places).token)
        await engines.daemons.keep(
            [
                _daemon(CONTROLLER, places.controller, ready=f"tcp:127.0.0.1:{wanted.api_port}"),
                _daemon(AGENT, places.agent, ready=None),
            ]
        )
    async with Client(_client_config(places)) as client:
        await _connected(client)
        hello = None if image is None else await first_instance(client, places, image.result(), say)
        write_atomically(places.begun, b"", mode=0o644)
        fingerprint = Authority.load_or_create(places.controller / "authority", SystemClock()).fingerprint
    return Up(
        api=f"https://{next(iter(_own_addresses()), '127.0.0.1')}:{wanted.api_port}",
        fingerprint=fingerprint,
        password=first.password if first else None,
        hello=hello,
        accelerator=f"{_accelerator(addresses)}: {addresses.accelerator.reason}",
        command=places.command,
        stop=f"{places.program} up --down" + ("" if places.data == DATA else f" --data {places.data}"),
    )


def told(data: Path) -> None:
    """Forget the first secrets: they have been told."""
    Places.of(data).first.unlink(missing_ok=True)


async def _have_appliance(places: Places, say: Say) -> None:
    """Have what looks into the disks of stopped guests. The cloud can do without."""
    await asyncio.to_thread(places.appliance.mkdir, mode=0o711, exist_ok=True)
    try:
        await build_appliance(places.appliance, cache=places.packages, say=say)
    except (Unavailable, ProgramFailed) as why:
        say(f"the appliance for disks of stopped instances is not renewed: {why}")


async def _begin(places: Places, settings: EngineSettings) -> FirstSecrets | None:
    """Make the cloud's first records, with this host among them; what is still to be told of its first secrets.

    The secrets are on disk before the cloud is: they cannot be lost between the two.
    """
    if not places.first.exists():
        if places.client.exists():
            return None
        write_atomically(places.first, msgspec.json.encode(new_secrets()), mode=0o600)
    first = msgspec.json.decode(places.first.read_bytes(), type=FirstSecrets)
    if not places.client.exists():
        wanted = _configure_controller(places, settings, northbound="")
        async with composed(places.controller, wanted, first=first) as controller:
            await _enlist(controller, places)
        _write_client(places, wanted, first.token)
    return first


async def _enlist(controller: Controller, places: Places) -> None:
    """Have this host among the cloud's, with a certificate. It has one name in our records, in libvirt and in OVN."""
    state, id = controller.state, HostId(places.layout.identity())
    if id not in state[HOSTS]:
        pool = state[POOLS].one("default", key=True)
        assert pool is not None
        now = SystemClock().now()
        host = Host(
            id=id, created_at=now, since=now, name=socket.gethostname(), pool_id=PoolId(pool.id), roles=("gateway",)
        )
        await state.commit([put(host)], Origin(actor="system", operation="up"))


def _certify(places: Places) -> None:
    """Have a certificate of this host's that is good, also if the machine was off until the last one was over."""
    identity = AgentIdentity(places.agent / IDENTITY)
    clock = SystemClock()
    if identity.exists and not is_due(identity.certificate, clock.now()):
        return
    authority = Authority.load_or_create(places.controller / "authority", clock)
    key = AgentKey.load_or_create(identity.folder)
    certificate = authority.certify_host(key.signing_request(), HostId(places.layout.identity()))
    identity.install(key, certificate, authority.pem)


def _configure_controller(places: Places, settings: EngineSettings, *, northbound: str) -> Settings:
    """The controller's settings: what is in its file, with the names of this machine as they are now."""
    places.controller.mkdir(mode=0o700, exist_ok=True)
    network = settings.external.network
    before = read_settings(places.controller)
    names = tuple(dict.fromkeys(("localhost", "127.0.0.1", socket.gethostname(), *_own_addresses())))
    outside = Outside(
        cidr=str(network),
        gateway=str(settings.external.ip),
        first=str(network.network_address + 10),
        last=str(network.broadcast_address - 1),
    )
    wanted = msgspec.structs.replace(before, names=names, northbound=northbound, outside=before.outside or outside)
    if wanted != before or not (places.controller / "controller.json").exists():
        text = msgspec.json.format(msgspec.json.encode(wanted), indent=2)
        write_atomically(places.controller / "controller.json", text, mode=0o600)
    return wanted


def _own_addresses() -> list[str]:
    """The address that this machine speaks to others from; none if it is alone. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address for documentation (RFC 5737): only the route is looked up
        except OSError:
            return []
        return [str(probe.getsockname()[0])]


def _write_client(places: Places, settings: Settings, token: str) -> None:
    authority = Authority.load_or_create(places.controller / "authority", SystemClock())
    config = Config(url=f"https://127.0.0.1:{settings.api_port}", authority=authority.pem.decode(), token=token)
    text = msgspec.json.format(msgspec.json.encode(config), indent=2)
    if not places.client.exists() or places.client.read_bytes() != text:
        write_atomically(places.client, text, mode=0o600)


def _client_config(places: Places) -> Config:
    return msgspec.json.decode(places.client.read_bytes(), type=Config)


def _configure_agent(places: Places, addresses: EngineAddresses, controller: Settings) -> None:
    """The agent's settings: where everything is, and beside it what is in its file."""
    before = agent_config(places)
    places.volumes.mkdir(mode=0o711, exist_ok=True)
    config = AgentConfig(
        name=before.name if before else "",
        run=before.run if before else "",
        pace=before.pace if before else Pace(),
        images_at_most=before.images_at_most if before else AT_MOST,
        link=(Address("127.0.0.1", controller.link_port),),
        api=(Address("127.0.0.1", controller.api_port),),
        hypervisor=LibvirtConfig(
            uri=addresses.libvirt_uri,
            accelerator=_accelerator(addresses),
            accelerator_reason=addresses.accelerator.reason,
            sockets=str(places.layout.run / "instances"),
            logs=str(places.layout.log / "instances"),
            appliance=str(places.appliance),
        ),
        network=OvnConfig(switch=addresses.switch, bridge=addresses.integration_bridge),
        pools={"local": DirectoryConfig(folder=str(places.volumes))},
    )
    if config != before:
        _write_agent_config(places, config)


def _accelerator(addresses: EngineAddresses) -> str:
    return "kvm" if addresses.accelerator.accelerator is Accelerator.KVM else "tcg"


def agent_config(places: Places) -> AgentConfig | None:
    """What the agent of this installation is told, if it has been."""
    return read_config(places.agent) if (places.agent / "agent.json").exists() else None


def _write_agent_config(places: Places, config: AgentConfig) -> None:
    text = msgspec.json.format(msgspec.json.encode(config), indent=2)
    write_atomically(places.agent / "agent.json", text, mode=0o600)


def another_run(places: Places) -> None:
    """Note that the host is taken down with its guests: they start again with the next `up`, as after a boot."""
    if (config := agent_config(places)) is not None:
        _write_agent_config(places, msgspec.structs.replace(config, run=new_id()))


def _daemon(name: str, data: Path, *, ready: str | None) -> Daemon:
    command = (sys.executable, "-m", "pileus", name, "--data", str(data))
    # Another version is another environment: what runs of the one before is started anew.
    environment = {**_environment(), "PILEUS_VERSION": __version__}
    return Daemon(name=name, command=command, ready=ready, environment=environment)


def _environment() -> dict[str, str]:
    source = Path(__file__).parents[2]
    inside = any(Path(each).resolve() == source for each in sys.path if each)
    # Run from a checkout that is on the path by hand, daemons must find it too.
    return {"PYTHONPATH": str(source)} if inside and source.name == "src" else {}


async def _connected(client: Client) -> None:
    """Wait until this host's agent is there."""
    try:
        async with asyncio.timeout(_CONNECTED_WITHIN_S):
            while not await _a_host_is_connected(client):  # noqa: ASYNC110 - it may not even listen yet
                await asyncio.sleep(0.1)
    except TimeoutError as late:
        raise TimedOut(f"the agent did not connect within {_CONNECTED_WITHIN_S:g} s; log/agent.log says more") from late


async def _a_host_is_connected(client: Client) -> bool:
    try:
        return any([host["connected"] async for host in client.records("/v1/hosts")])
    except Unavailable:
        return False
