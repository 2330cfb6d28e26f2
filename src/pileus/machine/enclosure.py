"""Become a program that sees folders of ours in the place of the machine's: `python -m pileus.machine.enclosure`.

The arguments are an `Enclosure` as JSON, then the program and its own. In a mount namespace of its own, folders are
mounted over those that the program has compiled in; nothing of that is seen outside, and nothing is left when its last
process ends. Mounts that the machine makes later do appear inside. The program and its children are put into a control
group of ours, which is the root of all that they see, so that two such programs on one machine never meet.
"""

import ctypes
import os
import stat
import sys
from pathlib import Path

import msgspec

_CLONE_NEWNS = 0x00020000
_CLONE_NEWCGROUP = 0x02000000
_MS_BIND = 4096
_MS_MOVE = 8192
_MS_REC = 16384
_MS_SLAVE = 1 << 19
_MNT_DETACH = 2

_CGROUPS = Path("/sys/fs/cgroup")
_DEVICES = Path("/dev")
_RUN = Path("/run")


class Enclosure(msgspec.Struct, frozen=True, kw_only=True):
    """What a program finds changed."""

    binds: dict[str, str]
    """The folder to see, by the folder in whose place it is seen."""
    cgroup: str
    """The name of the control group, in every hierarchy."""
    without_kvm: bool
    """Give it a /dev without kvm, in which block devices that appear later do not appear either."""


def argv(enclosure: Enclosure, *command: str) -> tuple[str, ...]:
    """The command that becomes another command, enclosed."""
    return (sys.executable, "-m", __name__, msgspec.json.encode(enclosure).decode(), *command)


def enter(enclosure: Enclosure, scratch: Path) -> None:
    """Enclose this very process.

    Args:
        enclosure: what is to be changed.
        scratch: an empty folder; it is only used in between.
    """
    _unshare(_CLONE_NEWNS)
    _mount(None, Path("/"), None, _MS_REC | _MS_SLAVE)
    _enter_cgroup(enclosure.cgroup)
    if enclosure.without_kvm:
        _replace(_DEVICES, scratch, without="kvm")
    if not all(Path(target).is_dir() for target in enclosure.binds if target.startswith(f"{_RUN}/")):
        # What is missing must not be made on the machine: it is made in a /run that only we see.
        _replace(_RUN, scratch)
    for target, source in enclosure.binds.items():
        Path(target).mkdir(parents=True, exist_ok=True)
        _mount(source, Path(target), None, _MS_BIND | _MS_REC)


def _enter_cgroup(name: str) -> None:
    """Go into a control group, make it the root of all that is seen, and mount all hierarchies anew."""
    hierarchies = hierarchies_of(Path("/proc/self/cgroup").read_text(encoding="ascii"))
    _mount("cgroup", _CGROUPS, "tmpfs", 0, "mode=755")
    mounts = [_mount_hierarchy(each) for each in hierarchies]
    for each in mounts:
        ours = each / name
        ours.mkdir(exist_ok=True)
        for inherited in ("cpuset.cpus", "cpuset.mems"):
            # A new cpuset of version 1 is empty, and takes no process until it has processors and memory.
            if (each / inherited).exists() and not (ours / inherited).read_text(encoding="ascii").strip():
                (ours / inherited).write_text((each / inherited).read_text(encoding="ascii"), encoding="ascii")
        (ours / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
    _unshare(_CLONE_NEWCGROUP)
    for each in mounts:
        _umount(each)
    for each in hierarchies:
        _mount_hierarchy(each)


def hierarchies_of(proc_cgroup: str) -> list[str]:
    """The hierarchies in a /proc/PID/cgroup, as mount options; the unified one is '', and counts if it is alone."""
    options = [line.split(":")[1] for line in proc_cgroup.splitlines()]
    old = [f"none,{each}" if each.startswith("name=") else each for each in options if each]
    return old or [""]


def _mount_hierarchy(options: str) -> Path:
    where = _CGROUPS / options.removeprefix("none,name=") if options else _CGROUPS
    where.mkdir(exist_ok=True)
    _mount("cgroup", where, "cgroup" if options else "cgroup2", 0, options)
    return where


def _replace(folder: Path, scratch: Path, *, without: str = "") -> None:
    """Put a folder in the place of another that has the same entries but one; folders in it are the same folders."""
    _mount("pileus", scratch, "tmpfs", 0, "mode=755")
    for entry in folder.iterdir():
        copy = scratch / entry.name
        found = entry.lstat()
        if entry.name == without:
            continue
        if stat.S_ISLNK(found.st_mode):
            copy.symlink_to(entry.readlink())
        elif stat.S_ISDIR(found.st_mode):
            copy.mkdir()
            _mount(str(entry), copy, None, _MS_BIND | _MS_REC)
        elif stat.S_ISBLK(found.st_mode) or stat.S_ISCHR(found.st_mode):
            os.mknod(copy, found.st_mode, found.st_rdev)
            copy.chmod(stat.S_IMODE(found.st_mode))
            os.chown(copy, found.st_uid, found.st_gid)
        else:
            copy.touch()
            _mount(str(entry), copy, None, _MS_BIND)
    _mount(str(scratch), folder, None, _MS_MOVE)


_libc = ctypes.CDLL(None, use_errno=True)


def _unshare(what: int) -> None:
    _check(_libc.unshare(what), "unshare")


def _mount(source: str | None, target: Path, kind: str | None, flags: int, options: str = "") -> None:
    arguments = (
        None if source is None else os.fsencode(source),
        os.fsencode(target),
        None if kind is None else kind.encode(),
        ctypes.c_ulong(flags),
        options.encode() or None,
    )
    _check(_libc.mount(*arguments), f"mount {target}")


def _umount(target: Path) -> None:
    _check(_libc.umount2(os.fsencode(target), _MNT_DETACH), f"umount {target}")


def _check(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def main() -> None:
    """Enclose this process, then become the program named on the command line."""
    enclosure = msgspec.json.decode(sys.argv[1], type=Enclosure)
    enter(enclosure, Path("/mnt"))
    os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606 - the program's name comes from us, and there is no shell


if __name__ == "__main__":
    main()
