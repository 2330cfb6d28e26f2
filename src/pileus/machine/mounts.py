"""Namespaces and mounts of this process, by the system calls themselves: unshare(2), mount(2), umount2(2)."""

import ctypes
import os
from pathlib import Path

_CLONE_NEWNS = 0x00020000
_CLONE_NEWCGROUP = 0x02000000
_MS_BIND = 4096
_MS_MOVE = 8192
_MS_REC = 16384
_MS_SLAVE = 1 << 19
_MS_SHARED = 1 << 20
_MNT_DETACH = 2

_SHARED = "shared:"

_libc = ctypes.CDLL(None, use_errno=True)


def share() -> bool:
    """Have what this machine mounts later appear in `own_mounts` of others too; whether that had to be asked for.

    systemd does the same when a machine starts; without it mounts are private, as mount_namespaces(7) tells.
    """
    if _SHARED in _propagation_of_root():
        return False
    _mount(None, Path("/"), None, _MS_REC | _MS_SHARED, "")
    return True


def own_mounts() -> None:
    """See mounts of our own from here on. What the machine mounts later appears here, never the other way round.

    The latter if its mounts are shared.
    """
    _check(_libc.unshare(_CLONE_NEWNS), "unshare")
    _mount(None, Path("/"), None, _MS_REC | _MS_SLAVE, "")


def own_cgroup_root() -> None:
    """See the control group that we are in as the root of all."""
    _check(_libc.unshare(_CLONE_NEWCGROUP), "unshare")


def mount(kind: str, target: Path, options: str = "") -> None:
    """Mount a file system that is on no disk."""
    _mount("pileus", target, kind, 0, options)


def bind(source: Path, target: Path) -> None:
    """Have a file or folder, with all that is mounted below it, in the place of another as well."""
    _mount(str(source), target, None, _MS_BIND | _MS_REC, "")


def move(source: Path, target: Path) -> None:
    """Take a mount from one place to another."""
    _mount(str(source), target, None, _MS_MOVE, "")


def unmount(target: Path) -> None:
    """Take a mount away, now or when nobody uses it any more."""
    _check(_libc.umount2(os.fsencode(target), _MNT_DETACH), f"umount {target}")


def _propagation_of_root() -> str:
    """The optional fields of the mount at /, as in proc_pid_mountinfo(5); of several the last is the one on top."""
    mounts = (line.split() for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines())
    *_, root = (fields for fields in mounts if fields[4] == "/")
    return " ".join(root[6 : root.index("-")])


def _mount(source: str | None, target: Path, kind: str | None, flags: int, options: str) -> None:
    arguments = (
        None if source is None else os.fsencode(source),
        os.fsencode(target),
        None if kind is None else kind.encode(),
        ctypes.c_ulong(flags),
        options.encode() or None,
    )
    _check(_libc.mount(*arguments), f"mount {target}")


def _check(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
