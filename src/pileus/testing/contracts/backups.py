"""What every place for backups owes an agent. A driver's own tests subclass this and bring the fixture."""

import asyncio

import pytest

from pileus.agent.backup.port import BackupPlace
from pileus.kernel.errors import NotFound


class BackupPlaceContract:
    """The promise. A subclass brings the fixture `place`, with nothing in it."""

    async def test_what_is_put_is_there_as_it_was_put_last(self, place: BackupPlace) -> None:
        assert not await place.has("a/b/one")
        for content in (b"first", b"", b"last" * 1000):
            await place.put("a/b/one", content)
            assert await place.get("a/b/one") == content
        assert await place.has("a/b/one")

    async def test_names_are_found_below_a_name(self, place: BackupPlace) -> None:
        for name in ("a/b/one", "a/b/two", "a/c/three", "ab/four"):
            await place.put(name, b"")
        assert sorted(await place.names("a")) == ["a/b/one", "a/b/two", "a/c/three"]
        assert sorted(await place.names("a/b")) == ["a/b/one", "a/b/two"]
        assert len(await place.names("")) == 4
        assert await place.names("nowhere") == []

    async def test_removing_twice_is_removing_once(self, place: BackupPlace) -> None:
        await place.put("a/one", b"1")
        await place.put("a/two", b"2")
        for _ in range(2):
            await place.remove("a/one")
        assert await place.names("a") == ["a/two"]
        with pytest.raises(NotFound):
            await place.get("a/one")
        await place.remove("never/there")

    async def test_many_hold_together_and_one_alone(self, place: BackupPlace) -> None:
        async with place.holding("p", alone=False) as first, place.holding("p", alone=False) as second:
            assert (first, second) == (True, True)
            async with place.holding("p", alone=True) as alone:
                assert not alone
        async with place.holding("p", alone=True) as alone, place.holding("q", alone=True) as elsewhere:
            assert (alone, elsewhere) == (True, True)
            async with place.holding("p", alone=True) as another:
                assert not another

    async def test_who_holds_with_others_waits_for_whoever_is_alone(self, place: BackupPlace) -> None:
        order: list[str] = []

        async def hold() -> None:
            async with place.holding("p", alone=False):
                order.append("with others")

        async with asyncio.TaskGroup() as tasks, place.holding("p", alone=True):
            tasks.create_task(hold())
            await place.put("a", b"")
            await asyncio.sleep(0)
            order.append("alone")
        assert order == ["alone", "with others"]
        assert await place.names("p") == []
