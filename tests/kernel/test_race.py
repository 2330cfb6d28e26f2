import asyncio

import pytest

from pileus.kernel.errors import Conflict
from pileus.kernel.race import first_of


async def test_when_the_first_has_ended_the_others_are_ended_too() -> None:
    ended: list[str] = []

    async def goes_on() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("the other")

    async def ends() -> None:
        await asyncio.sleep(0)
        ended.append("the first")

    await first_of(goes_on(), ends())
    assert ended == ["the first", "the other"]


async def test_what_the_first_raises_is_raised() -> None:
    async def goes_on() -> None:
        await asyncio.Event().wait()

    async def fails() -> None:
        raise Conflict("enough")

    with pytest.raises(Conflict, match="enough"):
        await first_of(goes_on(), fails())
