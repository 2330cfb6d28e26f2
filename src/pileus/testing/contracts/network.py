"""What every network driver owes an agent. A driver's own tests subclass this and bring the fixtures."""

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Final

import pytest

from pileus.agent.network.port import HostNetwork
from pileus.kernel.errors import NotFound
from pileus.kernel.ids import InstanceId, NetworkId, PortId, new_id
from pileus.link.guests import NicSpec

Ask = Callable[[NicSpec, str], Awaitable[tuple[int, bytes]]]
"""Asks http://169.254.169.254 for a path, as the guest behind this interface: status and body."""

LONGEST_DEVICE_NAME: Final = 15
"""Of the kernel: IFNAMSIZ less its final zero."""


class Echo:
    """A metadata service that says who asked for what."""

    async def answer(self, network: NetworkId, address: str, method: str, path: str) -> tuple[int, str, bytes]:
        return HTTPStatus.OK, "text/plain", f"{method} {path} {network} {address}".encode()


class HostNetworkContract:
    """The promise. A subclass brings the fixtures below.

    * `network`: the driver, with nothing plugged.
    * `another`: a function that makes a second driver of the same switch, as a restarted agent does.
    * `nic`: an interface of a network that there is, as the engine's own records have it.
    * `nics`: three of them, of the same network.
    * `ask`: see `Ask`.

    And it says which physical networks the host is on, in `wires`.
    """

    wires: tuple[str, ...]

    async def test_the_physical_networks_of_the_host_are_known(self, network: HostNetwork) -> None:
        assert await network.physical_networks() == self.wires

    async def test_a_plugged_port_has_a_device(self, network: HostNetwork, nic: NicSpec) -> None:
        plug = await network.plug(InstanceId(new_id()), nic)
        assert 0 < len(plug.device) <= LONGEST_DEVICE_NAME
        assert await network.list() == {nic.port: plug}

    async def test_plugging_twice_is_plugging_once(self, network: HostNetwork, nic: NicSpec) -> None:
        instance = InstanceId(new_id())
        assert await network.plug(instance, nic) == await network.plug(instance, nic)
        assert len(await network.list()) == 1

    async def test_every_port_has_a_device_of_its_own(self, network: HostNetwork, nics: list[NicSpec]) -> None:
        instance = InstanceId(new_id())
        devices = [(await network.plug(instance, nic)).device for nic in nics]
        assert len(set(devices)) == len(nics)

    async def test_an_unplugged_port_leaves_nothing(self, network: HostNetwork, nics: list[NicSpec]) -> None:
        instance = InstanceId(new_id())
        for nic in nics:
            await network.plug(instance, nic)
        await network.unplug(nics[0].port)
        assert (await network.list()).keys() == {nic.port for nic in nics[1:]}

    async def test_unplugging_twice_is_unplugging_once(self, network: HostNetwork, nic: NicSpec) -> None:
        await network.plug(InstanceId(new_id()), nic)
        await network.unplug(nic.port)
        await network.unplug(nic.port)
        await network.unplug(PortId(new_id()))
        assert not await network.list()

    async def test_ports_stay_when_the_agent_goes_away(
        self, network: HostNetwork, another: Callable[[], Awaitable[HostNetwork]], nic: NicSpec
    ) -> None:
        plug = await network.plug(InstanceId(new_id()), nic)
        await network.close()
        assert await (await another()).list() == {nic.port: plug}

    async def test_a_guest_is_answered_by_its_network_and_address(
        self, network: HostNetwork, nic: NicSpec, ask: Ask
    ) -> None:
        await network.plug(InstanceId(new_id()), nic)
        await network.serve({nic.network: nic.mtu}, Echo())
        status, body = await ask(nic, "/latest/meta-data/")
        assert status == HTTPStatus.OK
        assert body == f"GET /latest/meta-data/ {nic.network} {nic.addresses[0]}".encode()

    async def test_traffic_is_counted_for_a_port_that_is_plugged_and_for_no_other(
        self, network: HostNetwork, nic: NicSpec
    ) -> None:
        await network.plug(InstanceId(new_id()), nic)
        first = await network.traffic(nic.port)
        assert (await network.traffic(nic.port)).sent_bytes >= first.sent_bytes >= 0
        await network.unplug(nic.port)
        with pytest.raises(NotFound):
            await network.traffic(nic.port)

    async def test_serving_the_same_again_changes_nothing(self, network: HostNetwork, nic: NicSpec, ask: Ask) -> None:
        await network.plug(InstanceId(new_id()), nic)
        for _ in range(2):
            await network.serve({nic.network: nic.mtu}, Echo())
            assert (await ask(nic, "/"))[0] == HTTPStatus.OK

    async def test_a_network_that_is_served_no_more_is_not_answered(
        self, network: HostNetwork, nic: NicSpec, ask: Ask
    ) -> None:
        await network.plug(InstanceId(new_id()), nic)
        await network.serve({nic.network: nic.mtu}, Echo())
        await network.serve({}, Echo())
        with pytest.raises(Exception):  # noqa: B017, PT011 - each network has its own way of not answering
            await ask(nic, "/")
