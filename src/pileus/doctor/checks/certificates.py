"""How long the cloud's certificates hold. They are renewed by themselves when a third of their life is left."""

from datetime import timedelta

from pileus.doctor.facts import Certificate, Facts
from pileus.doctor.findings import Finding, broken, ok, warning

LEAF_OVERDUE = timedelta(days=28)
"""Renewed with 30 days left, looked at every hour: with less than this, renewing has failed for two days."""
AUTHORITY_OVERDUE = timedelta(days=180)


def remaining(facts: Facts) -> list[Finding]:
    """Whether all hold, and are renewed in time."""
    return [_judged(each, facts) for each in facts.certificates]


def _judged(certificate: Certificate, facts: Facts) -> Finding:
    left = certificate.ends_at - facts.at
    name = f"certificate of the {certificate.of}"
    if certificate.begins_at > facts.at:
        return broken(
            f"the {name} does not hold before {certificate.begins_at:%F %T} UTC",
            why="this machine's clock is wrong, or was when the certificate was made",
            mend="date --utc",
        )
    if left <= timedelta():
        why = f"since {certificate.ends_at:%F %T} UTC nobody accepts it"
        return broken(f"the {name} is over", why=why, mend=_mend(certificate, facts))
    if left < (AUTHORITY_OVERDUE if certificate.of == "authority" else LEAF_OVERDUE):
        why = "it should have been renewed by now" if certificate.of != "authority" else "all others end with it"
        return warning(f"the {name} holds for {left.days} days more", why=why, mend=_mend(certificate, facts))
    return ok(name, f"holds for {left.days} days")


def _mend(certificate: Certificate, facts: Facts) -> str:
    # The controller makes its own when it starts; an agent's is made anew by `up` if it is over.
    names = {"server": "controller", "agent": "agent"}
    if certificate.of not in names:
        return "a new authority means that every host joins anew: see docs/doctor.md"
    name = names[certificate.of]
    pid = facts.supervision.pid(name) if facts.supervision is not None else None
    return facts.commands.up if pid is None else f"kill {pid} && {facts.commands.up}"
