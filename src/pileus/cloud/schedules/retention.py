"""Which of what a schedule made is kept: the last ones, and the newest of so many days, weeks and months."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from datetime import datetime

import msgspec


class Retention(msgspec.Struct, frozen=True):
    """How many are kept, by each rule; what any rule keeps is kept."""

    last: int
    daily: int = 0
    weekly: int = 0
    monthly: int = 0


def kept(taken: Iterable[datetime], retention: Retention) -> set[datetime]:
    """Which of the snapshots or backups taken at these moments (in UTC) are to be kept.

    Days, weeks (from Monday) and months without one do not count. The newest one of a day is the one that is kept for
    it: so it makes no difference whether one deletes after each of them or all at once.
    """
    newest_first = sorted(taken, reverse=True)
    return {
        *newest_first[: retention.last],
        *_newest_of_each(newest_first, lambda at: at.date(), retention.daily),
        *_newest_of_each(newest_first, lambda at: at.isocalendar()[:2], retention.weekly),
        *_newest_of_each(newest_first, lambda at: (at.year, at.month), retention.monthly),
    }


def _newest_of_each(
    newest_first: Sequence[datetime], period: Callable[[datetime], Hashable], periods: int
) -> list[datetime]:
    newest: dict[Hashable, datetime] = {}
    for at in newest_first:
        newest.setdefault(period(at), at)
    return list(newest.values())[:periods]
