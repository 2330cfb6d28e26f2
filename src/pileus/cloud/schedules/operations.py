"""What one may do with schedules."""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from pydantic import Field, StringConstraints

from pileus.cloud.backups.model import BACKUPS, BEING_MADE, Backup, BackupState
from pileus.cloud.instances.model import INSTANCES
from pileus.cloud.schedules.model import SCHEDULES, Makes, Schedule, Weekday, ended
from pileus.cloud.schedules.retention import kept
from pileus.cloud.snapshots.model import SNAPSHOTS, Snapshot, SnapshotState
from pileus.cloud.storagepools.model import Purpose, named
from pileus.cloud.storagepools.operations import PoolName
from pileus.cloud.volumes.model import VOLUMES
from pileus.kernel.errors import Conflict, Forbidden, Invalid, NotFound
from pileus.kernel.ids import InstanceId, VolumeId
from pileus.operations.declare import Noun
from pileus.operations.plan import Ask, Plan, Reason
from pileus.operations.wire import Id, Name, Wire, ref
from pileus.state.state import State, put

EveryHours = Annotated[int, Field(ge=1, le=168)]
TimeOfDay = Annotated[str, StringConstraints(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$")]
Last = Annotated[int, Field(ge=1, le=100)]
Periods = Annotated[int, Field(ge=0, le=100)]

_TIMES = ("every_hours", "time_utc", "weekday")
_PARTS = (SnapshotState.CREATING, SnapshotState.DELETING, *BEING_MADE, BackupState.DELETING)
_NOUNS: Mapping[Makes, str] = {Makes.SNAPSHOTS: "snapshot", Makes.BACKUPS: "backup"}


class ScheduleCreate(Wire):
    name: Name
    instance_id: Annotated[Id, ref("instance")] | None = None
    """Of all its volumes, at one moment."""
    volume_id: Annotated[Id, ref("volume")] | None = None
    """Of this volume alone."""
    makes: Makes = Makes.SNAPSHOTS
    storage_pool: PoolName | None = None
    """Where backups go: one for backups, and another than it is in; without one, the only one that there is."""
    memory: bool = False
    """Also of what the instance has in memory; it stands still while that is saved."""
    every_hours: EveryHours | None = None
    """So many hours apart, counted from now."""
    time_utc: TimeOfDay | None = None
    """Each day at this time, in UTC: `02:30`."""
    weekday: Weekday | None = None
    """At that time on this day of the week only."""
    keep_last: Last
    """Keep so many of the newest snapshots or backups."""
    keep_daily: Periods = 0
    """Keep also the newest one of each of so many days that have one."""
    keep_weekly: Periods = 0
    """Keep also the newest one of each of so many weeks, from Monday, that have one."""
    keep_monthly: Periods = 0
    """Keep also the newest one of each of so many months that have one."""
    enabled: bool = True


class ScheduleChange(Wire):
    name: Name | None = None
    memory: bool | None = None
    every_hours: EveryHours | None = None
    """So many hours apart, counted from now; instead of a time of day."""
    time_utc: TimeOfDay | None = None
    """Each day at this time, in UTC; instead of what was."""
    weekday: Weekday | None = None
    """At that time on this day of the week only."""
    keep_last: Last | None = None
    keep_daily: Periods | None = None
    keep_weekly: Periods | None = None
    keep_monthly: Periods | None = None
    enabled: bool | None = None
    """What was missed while a schedule is not enabled is not made up for."""


schedules = Noun(
    SCHEDULES,
    plural="schedules",
    columns=("name", "makes", "enabled", "instance_id", "volume_id", "next_run_at"),
    about="Schedules: snapshots and backups that are made again and again, and kept for as long as they are wanted.",
)
schedules.list(filters=("name", "makes", "instance_id", "volume_id", "enabled"), sorts=("name", "next_run_at"))
schedules.show()


@schedules.post()
def create(ask: Ask, wish: ScheduleCreate) -> Plan:
    """Have snapshots or backups made of an instance or a volume, and those deleted that are no longer to be kept."""
    _must_be_allowed(ask, wish.makes)
    _must_take_backups(ask, wish.storage_pool)
    wrong = _wrong_subject(wish) | _wrong_times(wish.every_hours, wish.time_utc, wish.weekday)
    if wrong:
        raise Invalid("a schedule is of one instance or volume, and has hours between or a time of day", fields=wrong)
    project = ask.caller.project_id
    schedule = Schedule(
        id=ask.new_id(),
        created_at=ask.now,
        project_id=project,
        name=wish.name,
        instance_id=_instance(ask, wish),
        volume_id=_volume(ask, wish),
        makes=wish.makes,
        storage_pool=wish.storage_pool,
        memory=wish.memory,
        enabled=wish.enabled,
        every_hours=wish.every_hours,
        time_utc=wish.time_utc,
        weekday=wish.weekday,
        since=ask.now,
        keep_last=wish.keep_last,
        keep_daily=wish.keep_daily,
        keep_weekly=wish.keep_weekly,
        keep_monthly=wish.keep_monthly,
    )
    if wish.enabled:
        schedule = msgspec.structs.replace(schedule, next_run_at=schedule.due_after(ask.now))
    return Plan(
        summary=f"create schedule {wish.name}", changes=(put(schedule),), answers=schedule, undo="delete the schedule"
    )


@schedules.patch()
def change(ask: Ask, schedule: Schedule, wish: ScheduleChange) -> Plan:
    """Change when snapshots or backups are made and how long they are kept; what is kept no longer is deleted soon."""
    _must_be_allowed(ask, schedule.makes)
    wanted: dict[str, Any] = wish.model_dump(exclude_none=True)
    wrong: dict[str, str] = {}
    if wish.memory:
        wrong |= _wrong_memory(schedule.instance_id, schedule.makes)
    anew = not wanted.keys().isdisjoint(_TIMES)
    if anew:
        wrong |= _wrong_times(wish.every_hours, wish.time_utc, wish.weekday)
        wanted |= {"every_hours": wish.every_hours, "time_utc": wish.time_utc, "weekday": wish.weekday}
        wanted["since"] = ask.now
    if wrong:
        raise Invalid("some fields are wrong", fields=wrong)
    changed = msgspec.structs.replace(schedule, **wanted)
    if not changed.enabled:
        changed = msgspec.structs.replace(changed, next_run_at=None)
    elif anew or not schedule.enabled:
        changed = msgspec.structs.replace(changed, next_run_at=changed.due_after(ask.now))
    before = {each.id for each in surplus(ask.state, schedule)}
    leaving = [each for each in surplus(ask.state, changed) if each.id not in before]
    return Plan(
        summary=f"change schedule {schedule.name}",
        changes=(put(changed),),
        answers=changed,
        because=[Reason(about=f"{_one_of(schedule)} {each.name}", says="is kept no longer") for each in leaving],
        undo="change it back" + (f"; the {schedule.makes} that are deleted meanwhile stay gone" if leaving else ""),
    )


@schedules.delete()
def delete(ask: Ask, schedule: Schedule) -> Plan:
    """Delete a schedule. The snapshots and backups that it made stay."""
    return Plan(summary=f"delete schedule {schedule.name}", changes=ended(ask.state, schedule), undo="create it again")


def surplus(state: State, schedule: Schedule) -> list[Snapshot | Backup]:
    """What a schedule made and its retention does not keep, the oldest first."""
    made: list[Snapshot | Backup] = [*state[SNAPSHOTS].by("schedule", schedule.id)]
    made += state[BACKUPS].by("schedule", schedule.id)
    own = [each for each in made if each.state not in _PARTS]
    wanted = kept((each.created_at for each in own), schedule.retention)
    return sorted((each for each in own if each.created_at not in wanted), key=lambda each: each.created_at)


def _must_be_allowed(ask: Ask, makes: Makes) -> None:
    """A schedule is no way to what its maker may not do."""
    for verb in ("create", "delete"):
        operation = f"{_NOUNS[makes]}.{verb}"
        if not ask.caller.may(operation):
            raise Forbidden(f"a schedule makes and deletes {makes}: this takes the permission {operation} as well")


def _must_take_backups(ask: Ask, name: str | None) -> None:
    pool = None if name is None else named(ask.state, name)
    if name is not None and pool is None:
        raise NotFound(f"there is no storage pool {name}", fields={"storage_pool": "not found"})
    if pool is not None and Purpose.BACKUPS not in pool.purposes:
        raise Conflict(f"storage pool {name} is not for backups", fields={"storage_pool": "is not for backups"})


def _one_of(schedule: Schedule) -> str:
    return _NOUNS[schedule.makes]


def _wrong_subject(wish: ScheduleCreate) -> dict[str, str]:
    if wish.instance_id is None and wish.volume_id is None:
        return {"instance_id": "name an instance, or a volume", "volume_id": "name a volume, or an instance"}
    if wish.instance_id is not None and wish.volume_id is not None:
        return {"volume_id": "name either an instance or a volume"}
    wrong = _wrong_memory(wish.instance_id, wish.makes) if wish.memory else {}
    if wish.storage_pool is not None and wish.makes is not Makes.BACKUPS:
        wrong["storage_pool"] = "goes with backups: snapshots stay where the volumes are"
    return wrong


def _wrong_memory(instance_id: str | None, makes: Makes) -> dict[str, str]:
    if instance_id is None:
        return {"memory": "a volume has none"}
    return {"memory": "is not backed up"} if makes is Makes.BACKUPS else {}


def _wrong_times(every_hours: int | None, time_utc: str | None, weekday: Weekday | None) -> dict[str, str]:
    wrong: dict[str, str] = {}
    if every_hours is not None and time_utc is not None:
        wrong["every_hours"] = "give either hours or a time of day"
    if every_hours is None and time_utc is None:
        wrong["time_utc"] = "give a time of day, or hours"
        if weekday is None:
            wrong["every_hours"] = "give hours, or a time of day"
    if weekday is not None and time_utc is None:
        wrong["weekday"] = "goes with a time of day"
    return wrong


def _instance(ask: Ask, wish: ScheduleCreate) -> InstanceId | None:
    if wish.instance_id is None:
        return None
    return InstanceId(ask.see(INSTANCES, wish.instance_id, "instance_id", of=ask.caller.project_id).id)


def _volume(ask: Ask, wish: ScheduleCreate) -> VolumeId | None:
    if wish.volume_id is None:
        return None
    return VolumeId(ask.see(VOLUMES, wish.volume_id, "volume_id", of=ask.caller.project_id).id)
