"""A libvirtd of our own: with its own configuration, guests and sockets, beside whatever the machine has.

libvirtd has its folders compiled in, so it runs in an enclosure where folders of ours are in their place. Guests are
not its children and outlive it; so does virtlogd, which holds their consoles. Both find everything again when they come
back, because an enclosure made anew looks the same.
"""

import pwd
import stat
from collections.abc import Sequence
from pathlib import Path

import msgspec

from pileus.kernel.files import write_atomically
from pileus.machine.daemons import Daemon
from pileus.machine.enclosure import Enclosure, Kvm, argv
from pileus.machine.layout import Layout
from pileus.machine.processes import python_environment

LIBVIRTD = Path("/usr/sbin/libvirtd")
SYSTEM_URI = "qemu:///system"
"""The machine's own libvirtd, which is used where systemd looks after it."""

_VIRTLOGD = Path("/usr/sbin/virtlogd")
_GUEST_USER = "libvirt-qemu"
_APPARMOR = Path("/sys/module/apparmor/parameters/enabled")


class GuestUser(msgspec.Struct, frozen=True):
    """The user that guests run as, and why it is not their own if it is not."""

    name: str
    reason: str = ""


def uri(layout: Layout) -> str:
    """The address of our libvirtd for clients outside its enclosure."""
    return f"qemu+unix:///system?socket={layout.run / 'libvirt' / 'libvirt-sock'}"


def cgroup(layout: Layout) -> str:
    """The control group of our libvirtd and its guests, the same name in every hierarchy."""
    return f"pileus-{layout.tag}"


def guest_user(layout: Layout) -> GuestUser:
    """A user of their own, if there is one and it can reach their disks in the data folder; else root."""
    try:
        pwd.getpwnam(_GUEST_USER)
    except KeyError:
        return GuestUser("root", f"there is no user {_GUEST_USER} on this machine")
    closed = next(
        (each for each in (layout.data, *layout.data.parents) if not each.stat().st_mode & stat.S_IXOTH), None
    )
    if closed is not None:
        return GuestUser("root", f"{closed} cannot be passed through by {_GUEST_USER}")
    return GuestUser(_GUEST_USER)


def configure(layout: Layout, user: GuestUser) -> None:
    """Write the configuration."""
    etc = layout.libvirt / "etc"
    for folder in (etc / "qemu", _scratch(layout), *(Path(source) for source in _binds(layout).values())):
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    _write(
        etc / "libvirtd.conf",
        ("host_uuid", layout.identity()),
        ("unix_sock_group", "root"),
        ("unix_sock_ro_perms", "0700"),
        ("unix_sock_rw_perms", "0700"),
        ("auth_unix_ro", "none"),
        ("auth_unix_rw", "none"),
        ("max_clients", 200),
        ("log_outputs", "3:stderr"),
    )
    _write(etc / "virtlogd.conf", ("log_outputs", "3:stderr"))
    confined = _APPARMOR.exists() and _APPARMOR.read_text(encoding="ascii").startswith("Y")
    _write(
        etc / "qemu.conf",
        *(() if confined else (("security_driver", "none"),)),
        ("stdio_handler", "logd"),
        ("seccomp_sandbox", 1),
        ("vnc_listen", "127.0.0.1"),
        ("user", user.name),
        ("group", user.name),
    )


def daemons(layout: Layout, *, kvm: Kvm) -> Sequence[Daemon]:
    """virtlogd, then libvirtd. Both name the data folder on their command lines, so that they are seen to be ours."""
    enclosure = Enclosure(binds=_binds(layout), scratch=str(_scratch(layout)), cgroup=cgroup(layout), kvm=kvm)
    etc = layout.libvirt / "etc"
    run = layout.run / "libvirt"
    return [
        Daemon(
            name="virtlogd",
            command=argv(
                enclosure, str(_VIRTLOGD), f"--config={etc}/virtlogd.conf", "--pid-file=/run/libvirt/virtlogd.pid"
            ),
            environment=python_environment(),
            ready=f"unix:{run}/virtlogd-sock",
            unit="virtlogd.socket",
        ),
        Daemon(
            name="libvirtd",
            command=argv(
                enclosure, str(LIBVIRTD), f"--config={etc}/libvirtd.conf", "--pid-file=/run/libvirt/libvirtd.pid"
            ),
            environment=python_environment(),
            ready=f"unix:{run}/libvirt-sock",
            unit="libvirtd.service",
        ),
    ]


def _scratch(layout: Layout) -> Path:
    return layout.libvirt / "scratch"


def _binds(layout: Layout) -> dict[str, str]:
    return {
        "/etc/libvirt": str(layout.libvirt / "etc"),
        "/var/lib/libvirt": str(layout.libvirt / "lib"),
        "/var/cache/libvirt": str(layout.cache / "libvirt"),
        "/var/log/libvirt": str(layout.log / "libvirt"),
        "/run/libvirt": str(layout.run / "libvirt"),
    }


def _write(path: Path, *settings: tuple[str, str | int]) -> None:
    lines = (f'{name} = "{value}"' if isinstance(value, str) else f"{name} = {value}" for name, value in settings)
    content = "".join(f"{line}\n" for line in lines).encode()
    if not path.exists() or path.read_bytes() != content:
        write_atomically(path, content, mode=0o644)
