"""Become a program that sees folders of ours in the place of the machine's: `python -m pileus.machine.enclosure`.

The arguments are an `Enclosure` as JSON, then the program and its own. In a mount namespace of its own, folders are
mounted over those that the program has compiled in; nothing of that is seen outside, and nothing is left when its last
process ends. Mounts that the machine makes later do appear inside. The program and its children are put into a control
group of ours, which is the root of all that they see, so that two such programs on one machine never meet.
"""

import grp
import os
import stat
import sys
from enum import StrEnum
from pathlib import Path

import msgspec

from pileus.machine import cgroups, mounts

_DEVICES = Path("/dev")
_RUN = Path("/run")
_KVM = "kvm"
_KVM_GROUP = "kvm"


class Kvm(StrEnum):
    """What an enclosed program finds at /dev/kvm.

    But for `AS_IT_IS` it has a /dev of its own, in which devices that appear later do not appear.
    """

    AS_IT_IS = "as-it-is"
    GIVEN = "given"
    """Open to the group of guests, which it is not on a machine where no udev sees to that."""
    HIDDEN = "hidden"


class Enclosure(msgspec.Struct, frozen=True, kw_only=True):
    """What a program finds changed."""

    binds: dict[str, str]
    """The folder to see, by the folder in whose place it is seen."""
    scratch: str
    """An empty folder, used for a moment."""
    cgroup: str
    """The name of the control group, in every hierarchy."""
    kvm: Kvm


def argv(enclosure: Enclosure, *command: str) -> tuple[str, ...]:
    """The command that becomes another command, enclosed."""
    return (sys.executable, "-m", __name__, msgspec.json.encode(enclosure).decode(), *command)


def enter(enclosure: Enclosure) -> None:
    """Enclose this very process."""
    scratch = Path(enclosure.scratch)
    mounts.own_mounts()
    cgroups.enter(enclosure.cgroup)
    if enclosure.kvm is not Kvm.AS_IT_IS:
        _replace(_DEVICES, scratch, without=_KVM)
    if enclosure.kvm is Kvm.GIVEN:
        _make_kvm(_DEVICES / _KVM)
    if not all(Path(target).is_dir() for target in enclosure.binds if target.startswith(f"{_RUN}/")):
        # What is missing must not be made on the machine: it is made in a /run that only we see.
        _replace(_RUN, scratch)
    for target, source in enclosure.binds.items():
        Path(target).mkdir(parents=True, exist_ok=True)
        mounts.bind(Path(source), Path(target))


def _replace(folder: Path, scratch: Path, *, without: str = "") -> None:
    """Put a folder in the place of another that has the same entries but one; folders in it are the same folders."""
    mounts.mount("tmpfs", scratch, "mode=755")
    for entry in folder.iterdir():
        if entry.name != without:
            _copy(entry, scratch / entry.name)
    mounts.move(scratch, folder)


def _copy(entry: Path, copy: Path) -> None:
    found = entry.lstat()
    if stat.S_ISLNK(found.st_mode):
        copy.symlink_to(entry.readlink())
    elif stat.S_ISDIR(found.st_mode):
        copy.mkdir()
        mounts.bind(entry, copy)
    elif stat.S_ISBLK(found.st_mode) or stat.S_ISCHR(found.st_mode):
        os.mknod(copy, found.st_mode, found.st_rdev)
        copy.chmod(stat.S_IMODE(found.st_mode))
        os.chown(copy, found.st_uid, found.st_gid)
    else:
        copy.touch()
        mounts.bind(entry, copy)


def _make_kvm(path: Path) -> None:
    """The device by its number, which is fixed: 10, 232 in the kernel's list of devices."""
    os.mknod(path, stat.S_IFCHR, os.makedev(10, 232))
    path.chmod(0o660)
    os.chown(path, 0, grp.getgrnam(_KVM_GROUP).gr_gid)


def main() -> None:
    """Enclose this process, then become the program named on the command line."""
    enter(msgspec.json.decode(sys.argv[1], type=Enclosure))
    os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606 - the program's name comes from us, and there is no shell


if __name__ == "__main__":
    main()
