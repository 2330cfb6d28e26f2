"""What makes snapshots and backups when they are due, and deletes those that are no longer to be kept."""

from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from typing import Any

import msgspec
import structlog

from pileus.cloud.backups.model import BACKUPS, Backup, BackupState
from pileus.cloud.backups.operations import BackupCreate, make
from pileus.cloud.backups.operations import delete as delete_backup
from pileus.cloud.projects.model import limits
from pileus.cloud.schedules.model import SCHEDULES, LastRun, Makes, RunResult, Schedule
from pileus.cloud.schedules.operations import surplus
from pileus.cloud.snapshots.model import SNAPSHOTS, SnapshotState
from pileus.cloud.snapshots.operations import SnapshotCreate, delete, take
from pileus.cloud.world import World
from pileus.kernel.clock import Clock
from pileus.kernel.errors import PileusError
from pileus.kernel.ids import BackupId, ScheduleId, SnapshotId, TaskId, UserId
from pileus.operations.caller import Caller, Role
from pileus.operations.plan import Ask, Plan
from pileus.operations.usage import Usage
from pileus.state.records import Record
from pileus.state.state import Change, Origin, State, put
from pileus.workflow.engine import Engine
from pileus.workflow.task import TASKS, UNFINISHED, Task, TaskState

log = structlog.stdlib.get_logger()

_CREATES: Mapping[Makes, str] = {Makes.SNAPSHOTS: "snapshot.create", Makes.BACKUPS: "backup.create"}
_AT_REST = (SnapshotState.AVAILABLE, BackupState.AVAILABLE)

PATIENCE = timedelta(hours=1)
"""How long what was refused is tried again: an instance may be busy, a quota full, for a while only."""


class RunSchedules:
    """Begins the tasks of schedules, by the planners that people's requests go through.

    What was missed while no controller ran is made up for once. All that it knows is in the records.
    """

    def __init__(
        self, state: State, engine: Engine[World], usage: Usage, views: Mapping[type, Any], clock: Clock
    ) -> None:
        self._state = state
        self._engine = engine
        self._usage = usage
        self._views = views
        self._clock = clock

    def once(self) -> None:
        """Whatever is to be done now, for every schedule."""
        for id in list(self._state[SCHEDULES].ids):
            self._see_to(self._noted(self._state[SCHEDULES].get(id)))

    def _see_to(self, schedule: Schedule) -> None:
        due, run = schedule.next_run_at, schedule.last_run
        if not schedule.enabled or due is None:
            return
        if due <= self._clock.now():
            if run is not None and run.result is RunResult.RUNNING:
                self._skip(schedule, run)
            else:
                self._take(schedule)
        elif run is not None and run.result is RunResult.TAKEN:
            self._prune(schedule)

    def _noted(self, schedule: Schedule) -> Schedule:
        """The schedule, with what has become of its last run."""
        run = schedule.last_run
        if run is None or run.result is not RunResult.RUNNING:
            return schedule
        task = self._state[TASKS].find(run.task_id or "")
        if task is not None and task.state in UNFINISHED:
            return schedule
        if task.state is TaskState.DONE if task is not None else self._is_there(run):
            ended = msgspec.structs.replace(run, result=RunResult.TAKEN)
        else:
            ended = msgspec.structs.replace(
                run, result=RunResult.FAILED, snapshot_id=None, backup_id=None, detail=_why(task)
            )
        self._put(msgspec.structs.replace(schedule, last_run=ended), "note the result")
        return self._state[SCHEDULES].get(schedule.id)

    def _is_there(self, run: LastRun) -> bool:
        return (run.snapshot_id or "") in self._state[SNAPSHOTS] or (run.backup_id or "") in self._state[BACKUPS]

    def _skip(self, schedule: Schedule, run: LastRun) -> None:
        after = schedule.due_after(self._clock.now())
        counted = msgspec.structs.replace(run, skipped=run.skipped + 1)
        self._put(msgspec.structs.replace(schedule, last_run=counted, next_run_at=after), "skip")
        log.info("schedule skipped: its last run is at work", schedule=schedule.id, task=run.task_id)

    def _take(self, schedule: Schedule) -> None:
        now = self._clock.now()
        try:
            plan = self._plan(schedule)
            self._usage.check(plan.changes, self._state, limits)
        except PileusError as refused:
            self._refused(schedule, refused)
            return
        assert isinstance(plan.answers, Record)
        run = LastRun(
            due_at=schedule.next_run_at or now,
            at=now,
            result=RunResult.RUNNING,
            snapshot_id=SnapshotId(plan.answers.id) if schedule.makes is Makes.SNAPSHOTS else None,
            backup_id=BackupId(plan.answers.id) if schedule.makes is Makes.BACKUPS else None,
        )
        changed = msgspec.structs.replace(schedule, next_run_at=schedule.due_after(now), last_run=run)
        self._begin(changed, plan, _CREATES[schedule.makes])

    def _plan(self, schedule: Schedule) -> Plan:
        """What a person would be answered who asked for it.

        Raises:
            PileusError: it is refused.
        """
        ask, id = self._ask(schedule), ScheduleId(schedule.id)
        name = f"{schedule.name[:200]}-{self._clock.now():%Y%m%dT%H%M}Z"
        instance, volume = schedule.instance_id, schedule.volume_id
        if schedule.makes is Makes.BACKUPS:
            pool = schedule.storage_pool
            backup = BackupCreate(name=name, instance_id=instance, volume_id=volume, storage_pool=pool)
            return make(ask, backup, schedule_id=id)
        snapshot = SnapshotCreate(name=name, instance_id=instance, volume_id=volume, memory=schedule.memory)
        return take(ask, snapshot, schedule_id=id)

    def _refused(self, schedule: Schedule, refused: PileusError) -> None:
        now = self._clock.now()
        due, run = schedule.next_run_at or now, schedule.last_run
        again = run is not None and run.result is RunResult.REFUSED and run.due_at == due
        first = run.at if run is not None and again else now
        told = LastRun(due_at=due, at=first, result=RunResult.REFUSED, detail=refused.detail)
        after = due if now - first < PATIENCE else schedule.due_after(now)
        changed = msgspec.structs.replace(schedule, last_run=told, next_run_at=after)
        if changed != schedule:
            self._put(changed, _CREATES[schedule.makes])
            log.info("schedule refused", schedule=schedule.id, reason=refused.detail)

    def _prune(self, schedule: Schedule) -> None:
        """Delete the oldest that is not to be kept: one at a time, as its volumes are held meanwhile."""
        leaving = next((each for each in surplus(self._state, schedule) if each.state in _AT_REST), None)
        if leaving is None:
            return
        try:
            plan = (
                delete_backup(self._ask(schedule), leaving)
                if isinstance(leaving, Backup)
                else delete(self._ask(schedule), leaving)
            )
        except PileusError as refused:
            log.info("kept for now", schedule=schedule.id, kept=leaving.id, reason=refused.detail)
            return
        self._begin(schedule, plan, "backup.delete" if isinstance(leaving, Backup) else "snapshot.delete")

    def _ask(self, schedule: Schedule) -> Ask:
        nobody = Caller(user_id=UserId(""), user_name=schedule.name, project_id=schedule.project_id, role=Role.MEMBER)
        return Ask(state=self._state, caller=nobody, now=self._clock.now(), views=self._views)

    def _begin(self, schedule: Schedule, plan: Plan, operation: str) -> None:
        """Commit what a planner decided with its task, and with the run that it is of if it makes something."""
        assert plan.begin is not None
        assert isinstance(plan.answers, Record)
        origin = _origin(schedule, operation)
        task = self._engine.task_for(
            plan.begin, project=schedule.project_id, subject=plan.answers, origin=origin, now=self._clock.now()
        )
        changes: list[Change] = [*plan.changes, put(task)]
        run = schedule.last_run
        if run is not None and run.result is RunResult.RUNNING:
            begun = msgspec.structs.replace(run, task_id=TaskId(task.id))
            changes.append(put(msgspec.structs.replace(schedule, last_run=begun)))
        self._state.apply(changes, msgspec.structs.replace(origin, task=task.id))
        self._state.when_durable(partial(self._engine.launch, TaskId(task.id)))

    def _put(self, schedule: Schedule, deed: str) -> None:
        self._state.apply([put(schedule)], _origin(schedule, deed))


def _origin(schedule: Schedule, operation: str) -> Origin:
    return Origin(actor=f"schedule:{schedule.id}", operation=operation)


def _why(task: Task | None) -> str:
    if task is None or task.cause is None:
        return "its task is no longer known, and nothing is there that it made"
    return task.cause.detail
