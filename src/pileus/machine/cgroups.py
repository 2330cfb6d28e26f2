"""The control group that holds one host's libvirtd and all its guests: the same name in every hierarchy.

`python -m pileus.machine.cgroups list|remove NAME` answers where there are folders of it (left). That is a process of
its own because the hierarchies may have to be mounted to be seen, as in a network namespace made by ip-netns(8).
"""

import os
import sys
from pathlib import Path

from pileus.kernel.programs import run
from pileus.machine import mounts
from pileus.machine.processes import python_environment

_ROOT = Path("/sys/fs/cgroup")
_LEAF = "daemons"


def hierarchies_of(proc_cgroup: str) -> list[str]:
    """The hierarchies in a /proc/PID/cgroup, as mount options; the unified one is '', and counts if it is alone."""
    options = [line.split(":")[1] for line in proc_cgroup.splitlines()]
    old = [f"none,{each}" if each.startswith("name=") else each for each in options if each]
    return old or [""]


def enter(name: str) -> None:
    """Go into the group, and see it as the root of all hierarchies; needs mounts of our own."""
    for each in _mount_all():
        ours = each / name
        ours.mkdir(exist_ok=True)
        for inherited in ("cpuset.cpus", "cpuset.mems"):
            # A new cpuset of version 1 is empty, and takes no process until it has processors and memory.
            if (each / inherited).exists() and not (ours / inherited).read_text(encoding="ascii").strip():
                (ours / inherited).write_text((each / inherited).read_text(encoding="ascii"), encoding="ascii")
        (ours / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
    mounts.own_cgroup_root()
    for each in _mount_all():
        if (each / "cgroup.subtree_control").exists():
            # Version 2 has processes in leaves only, and libvirt wants to make groups beside us.
            (each / _LEAF).mkdir(exist_ok=True)
            (each / _LEAF / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")


def processes_in(name: str) -> list[int]:
    """The processes in the group or below it, in any hierarchy."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            groups = (entry / "cgroup").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        if any(f"{line.split(':', 2)[2]}/".startswith(f"/{name}/") for line in groups.splitlines()):
            found.append(int(entry.name))
    return sorted(found)


async def folders(name: str, *, remove: bool) -> list[str]:
    """The group's folders, by hierarchy; those that could not be removed, if they are to be."""
    verb = "remove" if remove else "list"
    environment = (f"{each}={value}" for each, value in python_environment().items())
    return (await run("env", *environment, sys.executable, "-m", __name__, verb, name)).splitlines()


def _mount_all() -> list[Path]:
    hierarchies = hierarchies_of(Path("/proc/self/cgroup").read_text(encoding="ascii"))
    # What stays mounted below is still listed, and libvirt would go by it.
    while os.path.ismount(_ROOT):
        mounts.unmount(_ROOT)
    if hierarchies == [""]:
        mounts.mount("cgroup2", _ROOT)
        return [_ROOT]
    mounts.mount("tmpfs", _ROOT, "mode=755")
    found: list[Path] = []
    for options in hierarchies:
        where = _ROOT / options.removeprefix("none,name=")
        where.mkdir()
        mounts.mount("cgroup", where, options)
        found.append(where)
    return found


def _remove(folder: Path) -> None:
    for each in folder.iterdir():
        if each.is_dir():
            _remove(each)
    folder.rmdir()


def main() -> None:
    """Print the folders of the group named on the command line, after removing them if that is asked for."""
    verb, name = sys.argv[1:]
    mounts.own_mounts()
    for each in _mount_all():
        folder = each / name
        if verb == "remove" and folder.exists():
            _remove(folder)
        if folder.exists():
            sys.stdout.write(f"{folder}\n")


if __name__ == "__main__":
    main()
