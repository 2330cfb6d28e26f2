"""What a check finds."""

from collections.abc import Iterable
from enum import StrEnum

import msgspec


class Severity(StrEnum):
    OK = "ok"
    WARNING = "warning"
    """It works, and will not for ever; or it could not be looked at."""
    BROKEN = "broken"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at."""

    severity: Severity
    what: str
    why: str = ""
    """Why it matters; of what is well, what was seen."""
    mend: str = ""
    """The command that mends it, as it is typed; or, where only a person can decide, the one that shows more."""


_EXIT_STATUS = {Severity.OK: 0, Severity.WARNING: 1, Severity.BROKEN: 2}


def ok(what: str, seen: str = "") -> Finding:
    """This is as it ought to be."""
    return Finding(severity=Severity.OK, what=what, why=seen)


def warning(what: str, *, why: str, mend: str) -> Finding:
    """This needs somebody, but not tonight."""
    return Finding(severity=Severity.WARNING, what=what, why=why, mend=mend)


def broken(what: str, *, why: str, mend: str) -> Finding:
    """This does not work now."""
    return Finding(severity=Severity.BROKEN, what=what, why=why, mend=mend)


def exit_status(findings: Iterable[Finding]) -> int:
    """0 if all is well, 1 if there are warnings only, 2 if something is broken."""
    return max((_EXIT_STATUS[each.severity] for each in findings), default=0)
