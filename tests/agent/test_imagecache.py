"""Which copies of images a host lets go of, and which it keeps."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pileus.agent.imagecache import AT_MOST, JUST_USED, KEPT_FREE, UNUSED, to_let_go
from pileus.agent.storage.port import CachedImage, PoolUse
from pileus.kernel.errors import Unavailable
from pileus.kernel.ids import ImageId, new_id
from pileus.kernel.units import GIB

from .conftest import HostBench, a_volume, an_image

NOW = datetime(2026, 1, 31, tzinfo=UTC)


def an_image_of(gib: int, *, unused: timedelta, offered: bool = False) -> CachedImage:
    return CachedImage(allocated_bytes=gib * GIB, used_at=NOW - unused, offered=offered)


def a_pool(total_gib: int, free_gib: int) -> PoolUse:
    return PoolUse(total_bytes=total_gib * GIB, free_bytes=free_gib * GIB, promised_bytes=0)


@st.composite
def caches(draw: st.DrawFn) -> dict[ImageId, CachedImage]:
    return {
        ImageId(new_id()): an_image_of(
            draw(st.integers(0, 50)), unused=timedelta(hours=draw(st.integers(0, 400))), offered=draw(st.booleans())
        )
        for _ in range(draw(st.integers(0, 12)))
    }


@given(caches(), st.integers(0, 100))
def test_what_goes_is_used_least_recently_and_no_more_than_has_to(
    cached: dict[ImageId, CachedImage], free_gib: int
) -> None:
    gone = to_let_go(cached, a_pool(100, free_gib), NOW)
    kept = {id: image for id, image in cached.items() if id not in gone}
    assert all(NOW - cached[id].used_at >= JUST_USED and not cached[id].offered for id in gone)
    may_go = [image for image in kept.values() if NOW - image.used_at >= JUST_USED and not image.offered]
    assert all(NOW - image.used_at <= UNUSED for image in may_go)
    taken = sum(image.allocated_bytes for image in kept.values())
    free = free_gib * GIB + sum(cached[id].allocated_bytes for id in gone)
    if may_go:
        assert taken <= AT_MOST * 100 * GIB
        assert free >= KEPT_FREE * 100 * GIB
        assert not gone or max(cached[id].used_at for id in gone) <= min(image.used_at for image in may_go)


def test_a_pool_with_room_keeps_what_is_used_now_and_then() -> None:
    day = an_image_of(5, unused=timedelta(days=1))
    week = an_image_of(5, unused=timedelta(days=8))
    cached = {ImageId(new_id()): day, ImageId(new_id()): week}
    assert [cached[id] for id in to_let_go(cached, a_pool(100, 80), NOW)] == [week]


@pytest.mark.parametrize(("at_most", "kept"), [(0.0, 0), (0.05, 1), (0.2, 3)])
def test_how_much_copies_may_take_is_the_operators_to_say(at_most: float, kept: int) -> None:
    cached = {ImageId(new_id()): an_image_of(5, unused=timedelta(days=day)) for day in (1, 2, 3)}
    gone = to_let_go(cached, a_pool(100, 80), NOW, at_most=at_most)
    assert set(cached) - set(gone) == set([*cached][:kept]), "the last used stay"


async def test_an_agent_lets_go_of_what_was_not_used_for_long_and_fetches_it_again(bench: HostBench) -> None:
    agent, image = bench.agent(), an_image()
    await agent.ensure_volume(a_volume(image=image), bench.tell)
    bench.storage.used[image.id] = bench.clock.now()
    await agent.reconcile()
    assert image.id in bench.storage.images
    bench.storage.used[image.id] = bench.clock.now() - UNUSED - JUST_USED
    bench.faults.fail("storage.remove_image", Unavailable("away"))
    await agent.reconcile()
    assert image.id in bench.storage.images, "it is looked at again in the next round"
    await agent.reconcile()
    assert image.id not in bench.storage.images
    await agent.ensure_volume(a_volume(image=image), bench.tell)
    assert bench.fetched == 2
