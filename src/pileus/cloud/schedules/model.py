"""What a schedule is, and when it is due. No I/O."""

from collections.abc import Collection, Sequence
from datetime import UTC, datetime, time, timedelta
from enum import StrEnum

import msgspec

from pileus.cloud.backups.model import BACKUPS
from pileus.cloud.schedules.retention import Retention
from pileus.cloud.snapshots.model import SNAPSHOTS
from pileus.kernel.ids import BackupId, InstanceId, ProjectId, ScheduleId, SnapshotId, TaskId, VolumeId
from pileus.state.kinds import Kind
from pileus.state.records import Record
from pileus.state.state import Change, State, put, remove

_DAY = timedelta(days=1)


class Weekday(StrEnum):
    MONDAY = "monday"
    TUESDAY = "tuesday"
    WEDNESDAY = "wednesday"
    THURSDAY = "thursday"
    FRIDAY = "friday"
    SATURDAY = "saturday"
    SUNDAY = "sunday"


_WEEK = tuple(Weekday)


class Makes(StrEnum):
    """What a schedule makes."""

    SNAPSHOTS = "snapshots"
    BACKUPS = "backups"


class RunResult(StrEnum):
    RUNNING = "running"
    TAKEN = "taken"
    FAILED = "failed"
    """Its task failed; nothing is left of what it was to make."""
    REFUSED = "refused"
    """No task was begun."""


class LastRun(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a schedule the last time that it was due."""

    due_at: datetime
    at: datetime
    """When it was begun, or first refused: later than it was due if the controller was down."""
    result: RunResult
    detail: str = ""
    """Why it was refused, or failed."""
    skipped: int = 0
    """How often the schedule was due again while this was at work: those times nothing was begun."""
    task_id: TaskId | None = None
    snapshot_id: SnapshotId | None = None
    backup_id: BackupId | None = None


class Schedule(Record, frozen=True, kw_only=True):
    """Snapshots or backups of one instance or one volume, made at these times and kept by this retention."""

    project_id: ProjectId
    name: str
    instance_id: InstanceId | None = None
    """What it takes as a whole; None if it is for a volume."""
    volume_id: VolumeId | None = None
    makes: Makes = Makes.SNAPSHOTS
    storage_pool: str | None = None
    """Where backups go; None for the only storage pool that will do."""
    memory: bool = False
    """Whether also what the instance has in memory is kept."""
    enabled: bool = True
    every_hours: int | None = None
    """Counted from `since`; None if it has a time of day."""
    time_utc: str | None = None
    """A time of day in UTC: `02:30`."""
    weekday: Weekday | None = None
    """The only day for that time; None is every day."""
    since: datetime
    """When these times were set."""
    keep_last: int
    keep_daily: int = 0
    keep_weekly: int = 0
    keep_monthly: int = 0
    next_run_at: datetime | None = None
    """When it is due; in the past while it is late or tried again, None while it is not enabled."""
    last_run: LastRun | None = None

    def due_after(self, moment: datetime) -> datetime:
        """The first time after this moment that it is due."""
        if self.time_utc is None:
            every = timedelta(hours=self.every_hours or 1)
            return self.since + ((moment - self.since) // every + 1) * every
        due = datetime.combine(moment.date(), time.fromisoformat(self.time_utc), UTC)
        while due <= moment or self.weekday not in (None, _WEEK[due.weekday()]):
            due += _DAY
        return due

    @property
    def retention(self) -> Retention:
        return Retention(self.keep_last, self.keep_daily, self.keep_weekly, self.keep_monthly)


SCHEDULES = Kind(
    "schedule",
    Schedule,
    indexes={
        "project": lambda schedule: schedule.project_id,
        "subject": lambda schedule: schedule.instance_id or schedule.volume_id,
    },
    counts=lambda _: {"schedules": 1},
)


def ended(state: State, schedule: Schedule) -> list[Change]:
    """A schedule is gone; the snapshots and backups that it made stay, as if people had made them."""
    return _ended(state, [schedule], ())


def gone_with(state: State, *subjects: str) -> list[Change]:
    """What is to change with instances and volumes that are about to be gone: their schedules go too."""
    return _ended(state, [each for id in subjects for each in state[SCHEDULES].by("subject", id)], subjects)


def _ended(state: State, schedules: Sequence[Schedule], gone: Collection[str]) -> list[Change]:
    ids = [ScheduleId(each.id) for each in schedules]
    snapshots = [each for id in ids for each in state[SNAPSHOTS].by("schedule", id)]
    made = [each for id in ids for each in state[BACKUPS].by("schedule", id)]
    based = [each for id in gone for each in state[BACKUPS].by("based", id)]
    backups = {each.id: each for each in (*made, *based)}.values()
    return [
        *(remove(each) for each in schedules),
        *(put(msgspec.structs.replace(each, schedule_id=None)) for each in snapshots),
        *(put(each.without(gone).made_by(None if each.schedule_id in ids else each.schedule_id)) for each in backups),
    ]
