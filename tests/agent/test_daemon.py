"""The whole daemon: configuration, certificates, TLS, files, signals; simulated engines and a directory of volumes."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from pileus.agent import daemon
from pileus.agent.daemon import AgentConfig, DirectoryConfig, SimulatedConfig
from pileus.kernel.errors import Conflict, Invalid
from pileus.kernel.ids import HostId
from pileus.link.addresses import Address
from pileus.link.channel import Channel
from pileus.link.guests import GuestObserved, Power
from pileus.link.hosts import Hello, HostReport, Inventory, Welcome
from pileus.link.messages import Method
from pileus.link.volumes import VolumeObserved
from pileus.testing.links import LoopbackCloud, until

from .conftest import a_guest, a_volume


class Cloud(LoopbackCloud):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.hellos: list[Hello] = []
        self.server_handlers.add(Method.HELLO, Hello, self._hello)
        self.server_handlers.add_note(Method.REPORT, HostReport, lambda _, __: None)
        self.server_handlers.add_note(Method.GUEST_OBSERVED, GuestObserved, lambda _, __: None)

    async def _hello(self, hello: Hello, _call: object) -> Welcome:
        self.hellos.append(hello)
        return Welcome(host=HostId(""))

    def prepare(self, data: Path) -> HostId:
        """What joining leaves in an agent's data folder."""
        host = HostId("01934b5c-0000-7000-8000-000000000001")
        identity = self.join(host)
        data.mkdir()
        identity.folder.rename(data / daemon.IDENTITY)
        config = AgentConfig(
            link=(self.address,),
            api=(),
            name="host-1",
            hypervisor=SimulatedConfig(),
            network=SimulatedConfig(),
            pools={"local": DirectoryConfig(folder=str(data / "pool"))},
        )
        (data / "agent.json").write_bytes(msgspec.json.encode(config))
        return host

    def channel_to(self, host: HostId) -> Channel:
        channel = self.server.channel(host)
        assert channel is not None
        return channel


async def test_a_daemon_joins_in_works_and_ends_in_order(tmp_path: Path) -> None:
    cloud, data = Cloud(tmp_path), tmp_path / "agent"
    volume = a_volume()
    async with cloud.server, asyncio.TaskGroup() as tasks:
        host = cloud.prepare(data)
        running = tasks.create_task(daemon.run(data))
        await until(lambda: cloud.hellos)
        assert cloud.hellos[0].facts.name == "host-1"
        channel = cloud.channel_to(host)
        await channel.request(Method.VOLUME_ENSURE, volume, VolumeObserved, timeout_s=60)
        observed = await channel.request(Method.GUEST_ENSURE, a_guest(volume), GuestObserved, timeout_s=60)
        assert observed.power is Power.RUNNING
        with pytest.raises(Conflict, match="already"):
            await daemon.run(data)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait({running}, timeout=60)
        assert running.done()
    assert len(list((data / "records" / "guests").iterdir())) == 1
    assert len(list((data / "pool" / "volumes").iterdir())) == 1


async def test_a_daemon_that_is_killed_is_followed_by_the_next(tmp_path: Path) -> None:
    cloud, data = Cloud(tmp_path), tmp_path / "agent"
    volume = a_volume()
    guest = a_guest(volume)
    async with cloud.server:
        host = cloud.prepare(data)
        async with process(data) as first:
            await until(lambda: cloud.hellos)
            channel = cloud.channel_to(host)
            await channel.request(Method.VOLUME_ENSURE, volume, VolumeObserved, timeout_s=60)
            await channel.request(Method.GUEST_ENSURE, guest, GuestObserved, timeout_s=60)
            first.kill()
            await first.wait()
        async with process(data):
            await until(lambda: len(cloud.hellos) == 2)
            channel = cloud.channel_to(host)
            observed = await channel.request(Method.GUEST_ENSURE, guest, GuestObserved, timeout_s=60)
            assert (observed.power, observed.generation) == (Power.RUNNING, 1)
            (kept,) = (await channel.request(Method.INVENTORY, None, Inventory, timeout_s=60)).volumes
            assert kept.id == volume.id


@asynccontextmanager
async def process(data: Path) -> AsyncGenerator[asyncio.subprocess.Process, None]:
    """The daemon in a process of its own."""
    program = (
        "import asyncio, sys; from pathlib import Path; from pileus.agent import daemon; "
        "asyncio.run(daemon.run(Path(sys.argv[1])))"
    )
    source = str(Path(daemon.__file__).parents[2])
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(data), env={**os.environ, "PYTHONPATH": source}, stdout=subprocess.DEVNULL
    )
    try:
        yield running
    finally:
        if running.returncode is None:
            running.terminate()
            assert await running.wait() == 0


async def test_a_host_that_has_not_joined_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="joined"):
        await daemon.run(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "{}",
        '{"link": [], "api": [], "hypervisor": {"kind": "vax"}, "network": {"kind": "ovn"}, "pools": {}}',
        '{"link": [], "api": [], "hypervisor": {"kind": "simulated"}, "network": {"kind": "simulated"}, '
        '"pools": {}, "typo": 1}',
    ],
)
async def test_a_wrong_configuration_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "agent.json").write_text(text)
    with pytest.raises(Invalid, match=r"agent\.json is wrong"):
        daemon.read_config(tmp_path)


def test_a_configuration_is_read_as_it_was_written(tmp_path: Path) -> None:
    config = AgentConfig(
        link=(Address("192.0.2.1", 5871),),
        api=(Address("192.0.2.1", 5870),),
        hypervisor=daemon.LibvirtConfig(
            uri="qemu:///system", accelerator="tcg", accelerator_reason="no KVM", sockets="/run/x", logs="/var/log/x"
        ),
        network=daemon.OvnConfig(switch="unix:/run/openvswitch/db.sock"),
        pools={"local": DirectoryConfig(folder="/var/lib/pileus/volumes")},
    )
    (tmp_path / "agent.json").write_bytes(msgspec.json.encode(config))
    assert daemon.read_config(tmp_path) == config
