from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum

import msgspec

from pileus.state.records import Record
from pileus.state.sharing import Shared


class Colour(StrEnum):
    RED = "red"


class Thing(Record, frozen=True, kw_only=True):
    owner: str
    colours: tuple[Colour, ...] = ()
    words: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()
    labels: Mapping[str, str] = {}


def loaded(number: int) -> Thing:
    """As it comes from a store: it shares nothing with any other."""
    thing = Thing(
        id=f"thing {number}",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        owner="somebody",
        colours=(Colour.RED,),
        words=("red",),
        numbers=(number,),
    )
    return msgspec.json.decode(msgspec.json.encode(thing), type=Thing)


def test_loaded_records_share_what_is_equal_and_stay_what_they_were() -> None:
    one, two = loaded(1), loaded(2)
    shared = Shared()
    shared.share(one)
    shared.share(two)
    assert (one, two) == (loaded(1), loaded(2))
    assert one.owner is two.owner
    assert one.created_at is two.created_at
    assert one.words is two.words
    assert one.labels is two.labels


def test_a_text_is_not_taken_for_the_member_of_an_enumeration_that_is_written_so() -> None:
    thing = loaded(1)
    Shared().share(thing)
    assert type(thing.colours[0]) is Colour
    assert type(thing.words[0]) is str
