"""Media on a host: brought once, there for as long as a guest has them, gone an hour later."""

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from pileus.agent.media import KEPT_S, Media
from pileus.agent.pools import Pools
from pileus.agent.records import AgentRecords
from pileus.agent.storage.simulated import SimulatedBackings, SimulatedStorage
from pileus.kernel.clock import FrozenClock
from pileus.kernel.errors import NotFound
from pileus.kernel.ids import ImageId, InstanceId, ProjectId, new_id
from pileus.kernel.units import MIB
from pileus.link.guests import FirstBoot, GuestMedium, GuestSpec, Power
from pileus.link.images import ImageSource, MediumSpec

IMAGE = ImageSource(
    id=ImageId(new_id()), sha256="", size_bytes=MIB, virtual_size_bytes=MIB, format="iso", url="/with?ticket=secret"
)
GUEST = GuestSpec(
    id=InstanceId(new_id()),
    generation=1,
    name="guest",
    project=ProjectId(new_id()),
    vcpus=1,
    memory_mib=64,
    power=Power.RUNNING,
    disks=(),
    nics=(),
    first_boot=FirstBoot(hostname="guest"),
    media=(GuestMedium(image=IMAGE.id, drive=1),),
)


async def nothing(_: ImageSource) -> AsyncIterator[bytes]:
    yield b""


class Host:
    """A pool, and what looks after the media in it."""

    def __init__(self) -> None:
        self.clock = FrozenClock()
        self.pool = SimulatedStorage(fetches=False)
        self.guests: list[GuestSpec] = []
        self.media = self.another_agent()

    def another_agent(self) -> Media:
        pools = Pools({"local": self.pool}, AgentRecords(None).pools, SimulatedBackings())
        return Media(pools, nothing, self.clock, lambda: self.guests)

    async def later(self) -> None:
        self.clock.advance(timedelta(seconds=KEPT_S + 1))
        await self.media.settle()


@pytest.fixture
async def host() -> Host:
    host = Host()
    await host.media.ensure(MediumSpec(image=IMAGE), lambda _: None)
    return host


async def test_a_medium_stays_for_as_long_as_a_guest_has_it(host: Host) -> None:
    host.guests = [GUEST]
    for _ in range(3):
        await host.later()
    assert await host.pool.media() == {IMAGE.id}
    assert set(await host.media.sources(GUEST.media)) == {1}


async def test_a_medium_that_no_guest_has_any_more_goes_after_an_hour(host: Host) -> None:
    host.guests = [GUEST]
    await host.later()
    host.guests = []
    await host.media.settle()
    assert await host.pool.media() == {IMAGE.id}
    await host.later()
    assert await host.pool.media() == frozenset()


async def test_an_agent_that_came_later_counts_the_hour_from_then(host: Host) -> None:
    host.clock.advance(timedelta(seconds=KEPT_S + 1))
    host.media = host.another_agent()
    await host.media.settle()
    assert await host.pool.media() == {IMAGE.id}
    await host.later()
    assert await host.pool.media() == frozenset()


async def test_a_medium_that_is_asked_for_again_is_counted_anew(host: Host) -> None:
    host.clock.advance(timedelta(seconds=KEPT_S - 1))
    await host.media.ensure(MediumSpec(image=IMAGE), lambda _: None)
    host.clock.advance(timedelta(seconds=2))
    await host.media.settle()
    assert await host.pool.media() == {IMAGE.id}


async def test_a_medium_that_is_lost_leaves_the_drive_empty_and_the_guest_going(host: Host) -> None:
    host.pool.images.clear()
    host.pool.offered.clear()
    assert await host.media.sources(GUEST.media) == {}


async def test_a_medium_is_not_brought_to_a_pool_that_there_is_not(host: Host) -> None:
    with pytest.raises(NotFound):
        await host.media.ensure(MediumSpec(image=IMAGE, pool="other"), lambda _: None)
