"""A host for one lab: our libvirtd among processes, networks and control groups of its own.

It is in namespaces whose first process ends with the test, also if the test is killed, and takes every daemon and every
guest with it.
"""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from patience import WITHIN_S, read, until

from pileus.agent.hypervisor.libvirt.domain import Ground, domain_name
from pileus.kernel.ids import InstanceId
from pileus.machine import libvirtd
from pileus.machine.daemons import Daemon
from pileus.machine.enclosure import Kvm
from pileus.machine.layout import Layout

_TELLS_ITS_NAMESPACES = "ip link set lo up; touch $1/ready; while :; do sleep 1000; done"
_PROGRAMS = ("ip", "libvirtd", "nsenter", "qemu-img", "qemu-system-x86_64", "setpriv", "unshare", "virsh", "virtlogd")


def missing() -> str | None:
    """What this machine lacks to run the lab, or None."""
    if os.geteuid() != 0:
        return "needs root, to make namespaces and tap devices"
    absent = [each for each in _PROGRAMS if shutil.which(each, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]
    if absent:
        return f"not installed: {', '.join(absent)}"
    return None if Path("/dev/net/tun").exists() else "there is no /dev/net/tun"


class LibvirtHost:
    """A host on which virtlogd and libvirtd run."""

    def __init__(self, layout: Layout, namespaces: int) -> None:
        self.uri = libvirtd.uri(layout)
        self.disks = layout.data / "disks"
        self.ground = Ground(
            accelerator="tcg",
            sockets=layout.run / "instances",
            logs=layout.log / "instances",
            appliance=layout.data / "appliance",
        )
        self._layout = layout
        self.namespaces = namespaces
        self._processes: list[subprocess.Popen[bytes]] = []
        libvirtd.configure(layout, libvirtd.guest_user(layout))
        self.disks.mkdir()
        virtlogd, self._libvirtd = libvirtd.daemons(layout, kvm=Kvm.HIDDEN)
        self._start(virtlogd)
        self._process = self._start(self._libvirtd)

    def tell_what_died(self) -> None:
        """Print the end of libvirtd's log, if it ended although nobody killed it."""
        if (status := self._process.poll()) is not None:
            log = (self._layout.log / "libvirtd.log").read_text(errors="replace")
            print(f"libvirtd ended with status {status}; it said last:\n{log[-4000:]}")

    def end(self) -> None:
        """Forget the daemons, which ended with their namespaces."""
        for process in self._processes:
            process.kill()  # nsenter stops itself with a daemon that was stopped
            process.wait()

    def run(self, *command: str) -> str:
        """What a program says that is run among the host's processes and networks."""
        return subprocess.run(
            self._inside(*command), check=True, capture_output=True, text=True, timeout=WITHIN_S
        ).stdout

    def virsh(self, *command: str) -> str:
        """What virsh says, as an operator would ask it."""
        return self.run("virsh", "--connect", self.uri, *command)

    def make_tap(self, name: str) -> None:
        """Have a tap device, as the network driver makes them."""
        self.run("ip", "tuntap", "add", name, "mode", "tap")
        self.run("ip", "link", "set", name, "up")

    def kill_libvirtd(self) -> None:
        """End libvirtd as by a crash, and wait until it is gone."""
        self.kill(self._layout.run / "libvirt/libvirtd.pid")
        self._process.wait(timeout=WITHIN_S)

    def restart_libvirtd(self) -> None:
        """Start it again after it was killed."""
        self._process = self._start(self._libvirtd)

    def qemu(self, domain: str) -> Path:
        """The pid file of a running guest."""
        return self._layout.run / f"libvirt/qemu/{domain}.pid"

    def runs(self, domain: str) -> bool:
        """Whether the process lives that a guest's pid file names."""
        with suppress(subprocess.CalledProcessError):
            return bool(pid := read(self.qemu(domain)).strip()) and self.run("kill", "-0", pid) == ""
        return False

    def nvram(self, id: InstanceId) -> Path:
        """Where a guest's firmware keeps its variables."""
        return self._layout.libvirt / f"lib/qemu/nvram/{domain_name(id)}_VARS.fd"

    def tpm(self, id: InstanceId) -> Path:
        """Where a guest's TPM keeps its state."""
        return self._layout.libvirt / f"lib/swtpm/{id}"

    def kill(self, pidfile: Path, signal_name: str = "KILL") -> None:
        """Send a signal to the process of a pid file."""
        self.run("kill", f"-{signal_name}", until(lambda: read(pidfile).strip(), f"{pidfile} names a process"))

    def _inside(self, *command: str) -> tuple[str, ...]:
        return ("nsenter", f"--target={self.namespaces}", "--mount", "--net", "--pid", "--", *command)

    def _start(self, daemon: Daemon) -> subprocess.Popen[bytes]:
        environment = {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin", **daemon.environment}
        with (self._layout.log / f"{daemon.name}.log").open("ab") as log:
            process = subprocess.Popen(
                self._inside(*daemon.command), env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        assert daemon.ready is not None
        address = daemon.ready.removeprefix("unix:")
        self._processes.append(process)
        until(lambda: process.poll() is None and _accepts(address), f"{daemon.name} accepts connections")
        return process


@contextmanager
def libvirt_host() -> Generator[LibvirtHost]:
    """A private libvirtd that is gone, with all its guests, when the block ends."""
    # Not pytest's own folder: a socket's path is short, and QEMU's user passes through.
    layout = Layout.of(Path(tempfile.mkdtemp(prefix="pl")))
    layout.data.chmod(0o711)
    layout.make()
    command = ("setpriv", "--pdeathsig=KILL", "unshare", "--mount-proc", "--net", "--pid", "--fork", "--kill-child")
    first = subprocess.Popen((*command, "sh", "-c", _TELLS_ITS_NAMESPACES, "host", str(layout.run)))
    hosts: list[LibvirtHost] = []
    try:
        until((layout.run / "ready").exists, "the namespaces are made")
        children = Path(f"/proc/{first.pid}/task/{first.pid}/children")
        hosts.append(LibvirtHost(layout, int(children.read_text(encoding="ascii").split()[0])))
        yield hosts[0]
    finally:
        for host in hosts:
            host.tell_what_died()
        first.kill()
        first.wait()
        for host in hosts:
            host.end()
            until(lambda host=host: has_ended(host.namespaces), "all that ran on the host has ended")
        remove_cgroup(libvirtd.cgroup(layout))
        shutil.rmtree(layout.data)


def _accepts(address: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(address) == 0


def has_ended(process: int) -> bool:
    """Whether a process has ended; if it was the first of its namespaces, all the others there have ended before it."""
    status = read(Path(f"/proc/{process}/status"))
    return not status or "\nState:\tZ" in status


def remove_cgroup(name: str) -> None:
    """Remove a control group from every hierarchy, as soon as its last process is gone."""
    for top in Path("/sys/fs/cgroup").glob(f"*/{name}"):
        for group in sorted((top, *(each for each in top.rglob("*") if each.is_dir())), reverse=True):
            until(lambda group=group: _removed(group), f"control group {group} is empty")


def _removed(group: Path) -> bool:
    with suppress(OSError):
        group.rmdir()
    return not group.exists()
