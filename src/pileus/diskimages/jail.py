"""A program behind walls: for qemu-img, which has to read what strangers send.

What is feared of a hostile image, and what stands against it. The first answer to each is in `headers.py`, which
refuses what refers to anything outside the file before any program opens it; what follows holds if that, or qemu-img,
is wrong.

* It makes the program read the host: backing files, data files, extents and `json:` names that lead to `/etc/shadow` or
  to another tenant's disk, or code that an overflow brought in. The program has a file system of its own, in which
  there is `/usr`, read-only, and the one folder of its job; by Landlock it may open nothing else either. It is nobody:
  without privileges, and without a way to any.
* It reaches into the network (`nbd:`, `http:`, `ssh:`) and from there the controller's neighbours. The program is in a
  network of its own, which leads nowhere, and may make no sockets.
* It reaches into other processes. The program cannot begin, signal, trace or see any.
* It fills the disk (a few KiB that say they are 60 TiB). A file may grow to what the caller has room for; the virtual
  size is bounded before.
* It eats memory, or runs for ever. Limits on memory and on processor time; the caller has one on time as such.
* It outlives its caller: it dies with it.

Namespaces take root, or a kernel that lets users have them. Landlock takes Linux 5.13. One of both must be there: a
machine that has neither opens nobody's images.

The jail is this very file, run as a program by an interpreter that imports nothing of ours: it makes the walls around
itself, and becomes the program.
"""

import ctypes
import json
import os
import platform
import resource
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn

CANNOT = 78
"""The exit status of a jail without walls, as sysexits.h has it for a machine that is not set up for this."""


class Limits(NamedTuple):
    """What a program in the jail may use."""

    memory_bytes: int
    cpu_s: int
    file_bytes: int
    """How large a file of its own may become; 0 lets it read only."""


def jailed(program: list[str], folder: Path, limits: Limits) -> list[str]:
    """The command that runs a program in the jail, with `folder` as its working folder.

    Names in its arguments are to be relative to that folder, which is given to the user that it runs as, if that is
    another; with `limits.file_bytes` it may write there.
    """
    told = json.dumps({"folder": str(folder), **limits._asdict()})
    return [sys.executable, "-I", "-S", __file__, told, *program]


_NOBODY = 65534

# include/uapi/linux of the kernel: sched.h, mount.h, prctl.h.
_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWIPC, _CLONE_NEWUSER, _CLONE_NEWNET = (
    0x00020000,
    0x04000000,
    0x08000000,
    0x10000000,
    0x40000000,
)
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT = 1, 2, 4, 8, 32
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18
_ST_RELATIME, _MS_RELATIME, _MS_NOATIME, _MS_NODIRATIME = 4096, 1 << 21, 1024, 2048
_MNT_DETACH = 2
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 1, 38, 22, 2
_SIGKILL = 9

_PROGRAMS = ("usr", "lib", "lib32", "lib64", "bin", "sbin", "etc/ld.so.cache")
"""What a program needs to run: no secret is in any of these."""
_ROOT = "/proc"
"""Where the new root is mounted, over something that is on every machine and of no use in the jail."""

# arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h of the kernel.
_DENIED = {
    "x86_64": {
        "socket": 41, "connect": 42, "sendto": 44, "sendmsg": 46, "bind": 49, "socketpair": 53, "fork": 57,
        "vfork": 58, "kill": 62, "ptrace": 101, "pivot_root": 155, "chroot": 161, "mount": 165, "umount2": 166,
        "tkill": 200, "add_key": 248, "request_key": 249, "keyctl": 250, "unshare": 272, "perf_event_open": 298,
        "open_by_handle_at": 304, "setns": 308, "process_vm_readv": 310, "process_vm_writev": 311, "bpf": 321,
        "execveat": 322, "userfaultfd": 323, "pidfd_send_signal": 424, "io_uring_setup": 425, "open_tree": 428,
        "move_mount": 429, "fsopen": 430, "pidfd_open": 434, "clone3": 435, "pidfd_getfd": 438, "mount_setattr": 442,
    },
    "aarch64": {
        "umount2": 39, "mount": 40, "pivot_root": 41, "chroot": 51, "unshare": 97, "ptrace": 117, "kill": 129,
        "tkill": 130, "socket": 198, "socketpair": 199, "bind": 200, "connect": 203, "sendto": 206, "sendmsg": 211,
        "add_key": 217, "request_key": 218, "keyctl": 219, "perf_event_open": 241, "open_by_handle_at": 265,
        "setns": 268, "process_vm_readv": 270, "process_vm_writev": 271, "bpf": 280, "execveat": 281,
        "userfaultfd": 282, "pidfd_send_signal": 424, "io_uring_setup": 425, "open_tree": 428, "move_mount": 429,
        "fsopen": 430, "pidfd_open": 434, "clone3": 435, "pidfd_getfd": 438, "mount_setattr": 442,
    },
}  # fmt: skip
_CLONE = {"x86_64": 56, "aarch64": 220}
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")
    return result


def _syscall(what: str, number: int, *arguments: object) -> int:
    return _check(_libc.syscall(number, *arguments), what)


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    encoded = [None if text is None else text.encode() for text in (source, target, kind, data)]
    result = _libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3])
    _check(result, f"mount of {target}")


# Namespaces.


def _enter_namespaces(folder: str, *, writes: bool) -> None:
    """Be alone in a file system with programs and one folder, and in a network that leads nowhere."""
    user, group = os.getuid(), os.getgid()
    spaces = _CLONE_NEWNS | _CLONE_NEWNET | _CLONE_NEWIPC | _CLONE_NEWUTS
    _check(_libc.unshare(spaces if user == 0 else spaces | _CLONE_NEWUSER), "unshare")
    if user != 0:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{_NOBODY} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{_NOBODY} {group} 1")
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    _mount("jail", _ROOT, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=64k,nr_inodes=64,mode=0755")
    for name in _PROGRAMS:
        _bring(f"/{name}", f"{_ROOT}/{name}")
    Path(_ROOT, "job").mkdir()
    _mount(folder, f"{_ROOT}/job", None, _MS_BIND)
    sealed = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC | (0 if writes else _MS_RDONLY)
    _mount("none", f"{_ROOT}/job", None, _MS_REMOUNT | _MS_BIND | sealed | _kept_flags(f"{_ROOT}/job"))
    os.chdir(_ROOT)
    _syscall("pivot_root", _PIVOT_ROOT[platform.machine()], b".", b".")
    _check(_libc.umount2(b".", _MNT_DETACH), "umount2")
    _mount("none", "/", None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV)
    os.chdir("/job")


def _bring(source: str, target: str) -> None:
    """Have something of the machine at the same place below the new root, read-only."""
    found, place = Path(source), Path(target)
    if found.is_symlink():
        place.symlink_to(found.readlink())
    elif found.exists():
        place.parent.mkdir(exist_ok=True)
        place.mkdir() if found.is_dir() else place.touch()
        _mount(source, target, None, _MS_BIND | _MS_REC)
        flags = _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV
        _mount("none", target, None, flags | _kept_flags(target))


def _kept_flags(path: str) -> int:
    """Those of a mount that a user's namespace may not take away."""
    found = os.statvfs(path).f_flag
    kept = found & (_MS_NOSUID | _MS_NODEV | _MS_NOEXEC | _MS_NOATIME | _MS_NODIRATIME)
    return kept | (_MS_RELATIME if found & _ST_RELATIME else 0)


# Landlock, Documentation/userspace-api/landlock.rst of the kernel.

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REMOVE_FILE, _MAKE_REG, _TRUNCATE = 1 << 5, 1 << 8, 1 << 14
_HANDLED_BY_ABI = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
_RULE_PATH_BENEATH = 1


def _restrict_files(*, writes: bool) -> None:
    """Let nothing be opened but programs and the working folder."""
    abi = _syscall("landlock", _LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)
    handled = _HANDLED_BY_ABI[min(abi, max(_HANDLED_BY_ABI))]
    asked = struct.pack("=Q", handled)
    rules = _syscall("landlock", _LANDLOCK_CREATE, asked, ctypes.c_size_t(len(asked)), 0)
    programs = _EXECUTE | _READ_FILE | _READ_DIR
    for name in _PROGRAMS:
        if Path("/", name).is_dir():
            _allow(rules, f"/{name}", programs & handled)
        elif Path("/", name).exists():
            _allow(rules, f"/{name}", _READ_FILE)
    own = _READ_FILE | _READ_DIR
    if writes:
        own |= (_WRITE_FILE | _MAKE_REG | _REMOVE_FILE | _TRUNCATE) & handled
    _allow(rules, ".", own)
    _syscall("landlock", _LANDLOCK_RESTRICT, rules, 0)
    os.close(rules)


def _allow(rules: int, path: str, access: int) -> None:
    opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    rule = struct.pack("=Qi", access, opened)
    _syscall("landlock", _LANDLOCK_ADD, rules, _RULE_PATH_BENEATH, rule, 0)
    os.close(opened)


# System calls, Documentation/userspace-api/seccomp_filter.rst of the kernel.

_LOAD, _JUMP_EQUAL, _JUMP_GREATER_OR_EQUAL, _JUMP_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_EPERM, _ENOSYS = 0x00050000 | 1, 0x00050000 | 38
_AT_NUMBER, _AT_ARCH, _AT_FIRST_ARGUMENT = 0, 4, 16
_X32 = 0x40000000
_CLONE_THREAD = 0x00010000


def _filter() -> bytes:
    """The program that the kernel runs at each system call of the jailed one."""
    machine = platform.machine()
    code: list[tuple[int, int, int, int]] = [
        (_LOAD, 0, 0, _AT_ARCH),
        (_JUMP_EQUAL, 1, 0, _AUDIT_ARCH[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _AT_NUMBER),
        (_JUMP_GREATER_OR_EQUAL, 0, 1, _X32),
        (_RETURN, 0, 0, _KILL),
    ]
    for name, number in _DENIED[machine].items():
        # The C library takes the older call where there is no clone3, whose flags a filter cannot see.
        code += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ENOSYS if name == "clone3" else _EPERM)]
    code += [
        (_JUMP_EQUAL, 0, 3, _CLONE[machine]),
        (_LOAD, 0, 0, _AT_FIRST_ARGUMENT),
        (_JUMP_SET, 1, 0, _CLONE_THREAD),
        (_RETURN, 0, 0, _EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("=HBBI", *each) for each in code)


def _restrict_calls() -> None:
    code = _filter()
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer))
    _check(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, program, 0, 0), "seccomp")


# All together.


def _main(told: str, program: list[str]) -> NoReturn:
    wish = json.loads(told)
    folder, writes = str(wish["folder"]), wish["file_bytes"] > 0
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    is_root = os.getuid() == 0
    if is_root:
        os.chown(folder, _NOBODY, _NOBODY)
    os.chdir(folder)
    no_namespaces = _refusal(lambda: _enter_namespaces(folder, writes=writes))
    if is_root:
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    _check(_libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0), "prctl")
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
    no_landlock = _refusal(lambda: _restrict_files(writes=writes))
    # Without a file system of its own root's nobody would not even find the folder.
    if no_namespaces and (no_landlock or is_root):
        sys.stderr.write(f"this machine has no walls for it: {no_namespaces}; {no_landlock}\n")
        sys.exit(CANNOT)
    for limit, most in (
        (resource.RLIMIT_CPU, wish["cpu_s"]),
        (resource.RLIMIT_FSIZE, wish["file_bytes"]),
        # What is mapped and never touched, such as the stacks of threads, takes address space only.
        (resource.RLIMIT_DATA, wish["memory_bytes"]),
        (resource.RLIMIT_AS, 8 * wish["memory_bytes"]),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (most, most))
    _restrict_calls()
    os.execve(program[0], program, {"PATH": "/usr/bin:/bin", "LC_ALL": "C"})  # noqa: S606 - this is the point


def _refusal(wall: Callable[[], None]) -> str:
    """Make a wall; says why the machine does not let it be made, or nothing."""
    try:
        wall()
    except OSError as refused:
        return str(refused) or type(refused).__name__
    return ""


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2:])
