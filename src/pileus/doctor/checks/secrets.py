"""Whether what must be secret is."""

import shlex
import stat

from pileus.doctor.facts import Facts, SecretFile
from pileus.doctor.findings import Finding, broken, ok, warning


def permissions(facts: Facts) -> list[Finding]:
    """Whether others may read a secret."""
    if facts.secrets is None:
        return []
    found = [_open_to_others(each, facts.secrets.owner) for each in facts.secrets.files]
    return [each for each in found if each is not None] or [
        ok("secrets", f"{len(facts.secrets.files)} files and folders are for their owner alone")
    ]


def _open_to_others(file: SecretFile, owner: int) -> Finding | None:
    path = shlex.quote(str(file.path))
    if file.mode & (stat.S_IRWXG | stat.S_IRWXO):
        return broken(
            f"{file.path} is open to others (mode {file.mode:04o})",
            why="whoever reads it can act as the cloud, as a host or as an administrator",
            mend=f"chmod {700 if file.is_folder else 600} {path}",
        )
    if file.owner != owner:
        return broken(
            f"{file.path} belongs to user {file.owner}, not {owner}",
            why="that user can read and replace it",
            mend=f"chown {owner} {path}",
        )
    return None


def first_password(facts: Facts) -> list[Finding]:
    """Whether the first password is still on disk."""
    if facts.secrets is None or facts.secrets.first is None:
        return []
    return [
        warning(
            f"the administrator's first password is still on disk: {facts.secrets.first}",
            why="`pileus up` removes it once it has told it, and was broken off before that",
            mend=facts.commands.up,
        )
    ]
