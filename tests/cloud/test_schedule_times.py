"""When a schedule is due, and which of its snapshots are kept: plain functions of plain data."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pileus.cloud.schedules.model import Schedule, Weekday
from pileus.cloud.schedules.retention import Retention, kept
from pileus.kernel.ids import ProjectId

START = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
"""A Thursday."""
MOMENTS = st.datetimes(datetime(2020, 1, 1), datetime(2035, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - the strategy's own zone
TAKEN = st.lists(MOMENTS, unique=True, max_size=40)
RETENTIONS = st.builds(
    Retention,
    last=st.integers(1, 5),
    daily=st.integers(0, 8),
    weekly=st.integers(0, 5),
    monthly=st.integers(0, 5),
)


def schedule(
    *, every_hours: int | None = None, time_utc: str | None = None, weekday: Weekday | None = None
) -> Schedule:
    return Schedule(
        id="s",
        created_at=START,
        project_id=ProjectId("p"),
        name="s",
        every_hours=every_hours,
        time_utc=time_utc,
        weekday=weekday,
        since=START,
        keep_last=1,
    )


TIMES = st.one_of(
    st.integers(1, 168).map(lambda hours: schedule(every_hours=hours)),
    st.tuples(st.times(), st.one_of(st.none(), st.sampled_from(Weekday))).map(
        lambda when: schedule(time_utc=f"{when[0]:%H:%M}", weekday=when[1])
    ),
)


@given(TIMES, MOMENTS)
def test_a_schedule_is_due_next_behind_the_moment_and_not_once_in_between(times: Schedule, moment: datetime) -> None:
    due = times.due_after(moment)
    assert moment < due
    assert due == times.due_after(due - timedelta(microseconds=1))
    if times.every_hours is None:
        assert f"{due:%H:%M}" == times.time_utc
        assert due - moment <= (timedelta(days=7) if times.weekday else timedelta(days=1))
        assert times.weekday is None or f"{due:%A}".lower() == times.weekday
    else:
        assert due - moment <= timedelta(hours=times.every_hours)
        assert (due - START) % timedelta(hours=times.every_hours) == timedelta(0)


@pytest.mark.parametrize(
    ("times", "due"),
    [
        (schedule(every_hours=6), "2026-01-01 18:00"),
        (schedule(time_utc="12:00"), "2026-01-02 12:00"),
        (schedule(time_utc="12:01"), "2026-01-01 12:01"),
        (schedule(time_utc="12:01", weekday=Weekday.THURSDAY), "2026-01-01 12:01"),
        (schedule(time_utc="11:59", weekday=Weekday.THURSDAY), "2026-01-08 11:59"),
        (schedule(time_utc="00:00", weekday=Weekday.SUNDAY), "2026-01-04 00:00"),
    ],
)
def test_what_is_due_now_is_due_next_another_time(times: Schedule, due: str) -> None:
    assert f"{times.due_after(START):%Y-%m-%d %H:%M}" == due


@given(TAKEN, RETENTIONS)
def test_the_last_ones_are_kept_and_no_more_than_the_rules_say(taken: Sequence[datetime], retention: Retention) -> None:
    found = kept(taken, retention)
    assert set(sorted(taken)[-retention.last :]) <= found <= set(taken)
    assert len(found) <= sum(msgspec.structs.astuple(retention))
    assert kept(found, retention) == found


@given(TAKEN, RETENTIONS, RETENTIONS)
def test_who_keeps_more_keeps_what_was_kept(taken: Sequence[datetime], one: Retention, other: Retention) -> None:
    more = Retention(
        max(one.last, other.last),
        max(one.daily, other.daily),
        max(one.weekly, other.weekly),
        max(one.monthly, other.monthly),
    )
    assert kept(taken, one) <= kept(taken, more)


@given(TAKEN, RETENTIONS)
def test_to_delete_after_every_snapshot_is_to_delete_once_at_the_end(
    taken: Sequence[datetime], retention: Retention
) -> None:
    left: set[datetime] = set()
    for at in sorted(taken):
        left = kept({*left, at}, retention)
    assert left == kept(taken, retention)


def test_a_year_of_nights_leaves_days_weeks_and_months() -> None:
    nights = [datetime(2026, 1, 1, 2, 30, tzinfo=UTC) + timedelta(days=day) for day in range(365)]
    found = kept(nights, Retention(last=2, daily=3, weekly=3, monthly=3))
    assert [f"{at:%m-%d}" for at in sorted(found)] == ["10-31", "11-30", "12-20", "12-27", "12-29", "12-30", "12-31"]
