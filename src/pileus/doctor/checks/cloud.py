"""The cloud as its API tells it: the controller, hosts, tasks, time."""

from datetime import timedelta

from pileus.doctor.facts import Facts
from pileus.doctor.findings import Finding, broken, ok, warning

TASK_IS_LONG = timedelta(hours=1)
CLOCK_MAY_BE_BEHIND = timedelta(seconds=5)


def api(facts: Facts) -> list[Finding]:
    """Whether the controller answers."""
    if facts.api is None or not facts.is_up:
        return []
    if not facts.api.failure:
        return [ok("controller", f"answers at {facts.api.url}")]
    pid = facts.supervision.pid("controller") if facts.supervision is not None else None
    return [
        broken(
            f"the controller does not answer at {facts.api.url}",
            why=f"nothing can be changed or asked; guests and their traffic go on. {facts.api.failure}",
            # The supervisor starts another one in its place.
            mend=facts.commands.up if pid is None else f"kill -9 {pid} && {facts.commands.up}",
        )
    ]


def own_agent(facts: Facts) -> list[Finding]:
    """Whether the agent of this host is connected to the controller."""
    if facts.records is None or facts.found is None or not _live(facts):
        return []
    own = next((each for each in facts.records.hosts if each.id == facts.found.host), None)
    if own is None:
        return [
            broken(
                "this host is not in the cloud's records",
                why="it gets no instances, and its agent is not let in",
                mend=facts.commands.log("agent"),
            )
        ]
    if own.connected:
        return [ok("agent", "is connected")]
    if facts.supervision is not None and not facts.supervision.runs("agent"):
        return []  # said already, with how to mend it
    pid = facts.supervision.pid("agent") if facts.supervision is not None else None
    return [
        broken(
            "the agent of this host is not connected to the controller",
            why=f"its guests go on, but nothing of them can be changed, since {own.since:%F %T} UTC",
            mend=facts.commands.log("agent") if pid is None else f"kill -9 {pid} && {facts.commands.up}",
        )
    ]


def other_hosts(facts: Facts) -> list[Finding]:
    """Whether all other hosts are there."""
    if facts.records is None or not _live(facts):
        return []
    own = facts.found.host if facts.found is not None else ""
    return [
        broken(
            f"host {host.name} is away since {host.since:%F %T} UTC",
            why="nothing of its guests can be changed",
            mend=f"on {host.name}: pileus doctor",
        )
        for host in facts.records.hosts
        if host.id != own and not host.connected
    ]


def tasks(facts: Facts) -> list[Finding]:
    """Whether tasks are stuck, or take very long."""
    if facts.records is None:
        return []
    found: list[Finding] = []
    for task in facts.records.tasks:
        named = f"the task {task.workflow} of {task.subject_name or task.id}"
        if task.state == "stuck":
            found.append(
                broken(
                    f"{named} is stuck",
                    why=f"it goes neither forwards nor back, and is tried again: {task.stuck_because}",
                    mend=facts.commands.cloud(f"task show {task.id}"),
                )
            )
        elif facts.at - task.created_at > TASK_IS_LONG:
            hours = (facts.at - task.created_at) / timedelta(hours=1)
            found.append(
                warning(
                    f"{named} is {task.state} for {hours:.0f} h",
                    why="whoever waits for it waits",
                    mend=facts.commands.cloud(f"task cancel {task.id}"),
                )
            )
    return found or [ok("tasks", "none is stuck")]


def clock(facts: Facts) -> list[Finding]:
    """Whether this machine's clock is where the cloud has been already."""
    last = facts.database.last_event_at if facts.database is not None else None
    if last is None:
        return []
    behind = last - facts.at
    if behind <= CLOCK_MAY_BE_BEHIND:
        return [ok("clock", "not behind the event log")]
    return [
        broken(
            f"the clock is at least {behind.total_seconds():.0f} s behind",
            why=f"the last event was logged at {last:%F %T} UTC; certificates, tokens and leases go by the clock",
            mend=f"date --utc --set '{last:%F %T}'",
        )
    ]


def _live(facts: Facts) -> bool:
    """Whether the records are the controller's own of this moment; those that it has left tell of no connections."""
    return facts.api is not None and not facts.api.failure
