"""Room on disks, and the database."""

import shlex
from datetime import timedelta

from pileus.cloud.storagepools.model import WARN_AT
from pileus.doctor.facts import Facts, FileSystem
from pileus.doctor.findings import Finding, broken, ok, warning
from pileus.kernel.units import GIB, size_text

BREAK_AT = 0.95
EVENT_LOG_IS_LARGE_BYTES = 10 * GIB
BACKUP_IS_OLD = timedelta(days=7)


def space(facts: Facts) -> list[Finding]:
    """Whether there is room."""
    return [
        _filled(
            each, each.used_bytes / (each.used_bytes + each.free_bytes), "bytes", f"{size_text(each.free_bytes)} free"
        )
        for each in facts.file_systems
        if each.used_bytes + each.free_bytes
    ]


def inodes(facts: Facts) -> list[Finding]:
    """Whether there is room for more files."""
    return [
        _filled(each, each.used_inodes / (each.used_inodes + each.free_inodes), "inodes", f"{each.free_inodes} free")
        for each in facts.file_systems
        if each.used_inodes + each.free_inodes
    ]


def _filled(system: FileSystem, part: float, unit: str, left: str) -> Finding:
    if part < WARN_AT:
        return ok(f"{unit} of {system.of}", f"{part:.0%} used, {left}")
    folder = shlex.quote(str(system.path))
    show = f"du -xh{'' if unit == 'bytes' else ' --inodes'} --max-depth=3 {folder} | sort -h | tail -n 20"
    says = f"{part:.0%} of the {unit} of {system.of} are used, {left}"
    if part < BREAK_AT:
        return warning(says, why=f"{system.path} fills up", mend=show)
    return broken(says, why="guests stop at their next write, and the controller cannot log", mend=show)


def promises(facts: Facts) -> list[Finding]:
    """Whether disks that were promised can also be filled."""
    found: list[Finding] = []
    for system in facts.file_systems:
        if not system.grows_bytes or system.grows_bytes <= WARN_AT * system.free_bytes:
            continue
        says = (
            f"disks of {system.of} may still grow by {size_text(system.grows_bytes)}, "
            f"and {size_text(system.free_bytes)} are free"
        )
        mend = f"df -h {shlex.quote(str(system.path))}; {facts.commands.cloud('volume list --all-projects')}"
        if system.grows_bytes > system.free_bytes:
            found.append(broken(says, why="guests that fill their disks will fail to write", mend=mend))
        else:
            found.append(warning(says, why="no more than 80 % of what is free should be promised", mend=mend))
    return found


def database(facts: Facts) -> list[Finding]:
    """Whether the database is whole."""
    seen = facts.database
    if seen is None:
        return []
    if not seen.damage:
        return [ok("database", "is whole")]
    restore = facts.commands.of_controller(f"restore {shlex.quote(str(seen.backup)) if seen.backup else 'BACKUP'}")
    return [
        broken(
            f"the database is damaged: {seen.damage}",
            why="records and events are lost; what there is of guests, disks and networks is not touched by that",
            mend=f"{facts.commands.down} && {restore} && {facts.commands.up}",
        )
    ]


def backup(facts: Facts) -> list[Finding]:
    """Whether there is a backup of late."""
    seen = facts.database
    if seen is None or seen.begun_at is None:
        return []
    mend = facts.commands.of_controller(f"save /root/pileus-{facts.at:%Y%m%d-%H%M}.db")
    why = "if the disk is lost, all that was changed since is lost with it"
    if seen.backup_at is None:
        if facts.at - seen.begun_at <= BACKUP_IS_OLD:
            return [ok("backup", "none yet; the cloud is young")]
        return [warning("there is no backup of the records, as far as is known", why=why, mend=mend)]
    if facts.at - seen.backup_at > BACKUP_IS_OLD:
        return [warning(f"the last backup is of {seen.backup_at:%F %T} UTC", why=why, mend=mend)]
    return [ok("backup", f"made {seen.backup_at:%F %T} UTC")]


def event_log(facts: Facts) -> list[Finding]:
    """Whether the event log has outgrown its use."""
    seen = facts.database
    if seen is None:
        return []
    if seen.size_bytes <= EVENT_LOG_IS_LARGE_BYTES:
        return [ok("event log", f"{seen.events} events; the database has {size_text(seen.size_bytes)}")]
    return [
        warning(
            f"the database has {size_text(seen.size_bytes)}, {seen.events} events among it",
            why="backups and searching the log take long",
            mend=f'set a smaller "events_kept_days" in {seen.path.with_name("controller.json")}; then the controller '
            f"anew: kill {facts.supervision.pid('controller') if facts.supervision else 'PID'}",
        )
    ]
