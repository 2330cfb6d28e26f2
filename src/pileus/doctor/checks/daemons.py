"""The daemons: whether they run, how often they died, and who starts them again."""

from pileus.doctor.facts import Facts
from pileus.doctor.findings import Finding, broken, ok, warning

RESTARTS_TOO_MANY = 3
"""A daemon that died so often since the supervisor began has something of its own; once or twice may be us."""
STEADY_S = 3600.0
"""One that has lived so long since is over it."""
_OURS = ("controller", "agent")


def installed(facts: Facts) -> list[Finding]:
    """Whether there is a cloud, and whether it is up."""
    if not facts.installed:
        return [broken(f"there is no cloud in {facts.commands.data}", why="nothing runs here", mend=facts.commands.up)]
    if not facts.is_up:
        return [broken("the cloud is taken down", why="no guest runs, nothing answers", mend=facts.commands.up)]
    if facts.supervision is None:
        return []
    kept = {each.status.name for each in facts.supervision.daemons}
    return [
        broken(
            f"the {name} is not among the daemons",
            why="an earlier `up` did not come to its end",
            mend=facts.commands.up,
        )
        for name in _OURS
        if name not in kept
    ]


def supervisor(facts: Facts) -> list[Finding]:
    """Whether daemons that die are started again."""
    if facts.supervision is None or not facts.is_up:
        return []
    if facts.supervision.answers:
        return [ok("supervisor", f"looks after {len(facts.supervision.daemons)} daemons")]
    return [
        broken(
            "the supervisor does not answer",
            why="no daemon that dies is started again",
            mend=facts.commands.up,
        )
    ]


def running(facts: Facts) -> list[Finding]:
    """Whether each daemon runs, and has run without dying over and over."""
    if facts.supervision is None or not facts.is_up:
        return []
    found: list[Finding] = []
    for daemon in facts.supervision.daemons:
        name, restarts = daemon.status.name, daemon.status.restarts
        said = f"; it said last: {daemon.last_words}" if daemon.last_words else ""
        if not daemon.status.running:
            found.append(broken(f"{name} does not run", why=f"it died {restarts} times{said}", mend=facts.commands.up))
        elif restarts >= RESTARTS_TOO_MANY and daemon.lives_s < STEADY_S:
            found.append(
                warning(
                    f"{name} died {restarts} times since the supervisor began",
                    why=f"it works between two deaths only{said}",
                    mend=facts.commands.log(name),
                )
            )
    return found or [ok("daemons", "all run")]


def answering(facts: Facts) -> list[Finding]:
    """Whether those that run also answer."""
    if facts.supervision is None:
        return []
    pids = {each.status.name: each.status.pid for each in facts.supervision.daemons if each.status.running}
    return [
        broken(
            f"{each.daemon} runs and does not answer",
            why=f"{each.what}: {each.why}",
            # Killed, because what hangs does not end when asked; whoever looks after it starts another one.
            mend=facts.commands.up if pids[each.daemon] is None else f"kill -9 {pids[each.daemon]}",
        )
        for each in facts.unseen
        if each.daemon in pids
    ]
