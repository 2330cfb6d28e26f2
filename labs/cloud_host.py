"""A machine for one lab, on which `pileus up` brings a whole cloud: processes, networks and mounts of its own.

It is in namespaces whose first process ends with the test, also if the test is killed, and takes every daemon and every
guest with it. Beyond its uplink there is a world that tells who asks; see `internet`.
"""

import ctypes
import http.client
import json
import os
import shlex
import shutil
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cache
from libvirt_host import has_ended, remove_cgroup
from patience import until

from pileus.machine import libvirtd
from pileus.machine.layout import Layout
from pileus.machine.packages import NEEDED

OWN_ADDRESS, WORLD = "192.0.2.1", "192.0.2.9"
"""The machine's address on its uplink, and the one that everything in the world has."""

_MACHINE = """
mount -t sysfs sys /sys
mkdir -p /run/netns
mount -t tmpfs run /run/netns
echo 'nameserver {world}' > {folder}/resolv.conf
mount --bind {folder}/resolv.conf /etc/resolv.conf
ip link set lo up
ip netns add world
ip link add uplink type veth peer name machine netns world
ip address add {own}/24 dev uplink
ip link set uplink addrgenmode none
ip link set uplink up
ip route add default via {world}
ip -n world link set lo up
ip -n world address add {world}/24 dev machine
ip -n world link set machine up
ethtool -K uplink tx off >/dev/null
touch {folder}/ready
while :; do sleep 1000; done
"""
_PROGRAMS = ("ip", "nft", "libvirtd", "nsenter", "qemu-system-x86_64", "setpriv", "ssh", "unshare", "virsh")
_ANSWER_S, _PROGRAM_S, _UP_S = 60.0, 300.0, 900.0
_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"


def missing() -> str | None:
    """What this machine lacks to run the lab, or None."""
    if os.geteuid() != 0:
        return "needs root, to make namespaces and devices"
    absent = [each for each in _PROGRAMS if shutil.which(each, path=_PATH) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (of {', '.join(each.name for each in NEEDED)}, openssh-client)"
    return None if Path("/dev/net/tun").exists() else "there is no /dev/net/tun"


class CloudHost:
    """A machine as its administrator uses it."""

    def __init__(self, folder: Path, namespaces: int) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.layout = Layout.of(self.data)
        self.namespaces = namespaces
        self._started: list[subprocess.Popen[str]] = []
        (folder / "bin").mkdir()
        program = folder / "bin/pileus"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m pileus "$@"\n')
        program.chmod(0o755)
        self._environment = {
            "PATH": f"{folder}/bin:{_PATH}",
            "PYTHONPATH": str(Path(cache.__file__).parents[1] / "src"),
            "HOME": str(folder),
            "PILEUS_CONFIG": str(self.data / "cli.json"),
            "LANG": "C.UTF-8",
        }
        self._before = set[str]()
        self._within = ThreadPoolExecutor(max_workers=1, initializer=self._enter)
        """Its thread is in the machine's network."""

    def run(
        self, *command: str, stdin: str = "", accept: Sequence[int] = (0,), within_s: float = _PROGRAM_S
    ) -> subprocess.CompletedProcess[str]:
        """Run a program on the machine to its end."""
        done = subprocess.run(
            self._inside(*command),
            input=stdin,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=within_s,
            check=False,
        )
        words = f"{shlex.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}"
        assert done.returncode in accept, words
        return done

    def start(self, *command: str, log: Path) -> subprocess.Popen[str]:
        """Start a program on the machine; its input is a pipe."""
        with log.open("w") as output:
            process = subprocess.Popen(
                # A signal to nsenter is for what it runs.
                self._inside("setpriv", "--pdeathsig=INT", *command),
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                text=True,
            )
        self._started.append(process)
        return process

    def up(self, *options: str, accept: Sequence[int] = (0,)) -> str:
        """`pileus up`; what it says."""
        done = self.run("pileus", "up", "--data", str(self.data), *options, accept=accept, within_s=_UP_S)
        return done.stdout + done.stderr

    def cli(self, line: str, *more: str, stdin: str = "", accept: Sequence[int] = (0,)) -> str:
        """A command of `pileus`, as it is typed; what it prints."""
        return self.run("pileus", *shlex.split(line), *more, stdin=stdin, accept=accept).stdout

    def ask(self, line: str, *more: str) -> Any:
        """A command's answer as JSON."""
        return json.loads(self.cli(f"{line} -o json", *more))

    def get(self, path: str) -> Any:
        """What the API answers to the machine's administrator: quicker than a command, where no command is tried."""
        return self._within.submit(self._ask, "GET", path, None).result()

    def post(self, path: str, wish: Mapping[str, object]) -> Any:
        """What the API answers to a wish."""
        return self._within.submit(self._ask, "POST", path, json.dumps(wish)).result()

    def records(self, plural: str, query: str = "all_projects=true") -> Any:
        """All records of a kind, of every project."""
        return self.get(f"/v1/{plural}?{query}&limit=1000")["items"]

    def _ask(self, method: str, path: str, body: str | None) -> Any:
        config = json.loads((self.data / "cli.json").read_text())
        trust = ssl.create_default_context(cadata=config["authority"])
        connection = http.client.HTTPSConnection("127.0.0.1", 5870, timeout=_ANSWER_S, context=trust)
        try:
            headers = {"Authorization": f"Bearer {config['token']}", "Content-Type": "application/json"}
            connection.request(method, path, body=body, headers=headers)
            answer = connection.getresponse()
            said = answer.read()
        except http.client.HTTPException as broken:
            raise ConnectionError("the controller ended while it answered") from broken
        finally:
            connection.close()
        assert answer.status < 300, said
        return json.loads(said)

    def _enter(self) -> None:
        """Have this thread in the machine's network; its sockets stay there."""
        with Path(f"/proc/{self.namespaces}/ns/net").open("rb") as there:
            assert ctypes.CDLL(None).setns(there.fileno(), 0) == 0

    def refused(self, line: str, *more: str, status: int) -> str:
        """What a command says that is refused."""
        return self.run("pileus", *shlex.split(line), *more, accept=(status,)).stderr

    def remember(self) -> None:
        """Take the machine as it is now for untouched."""
        self._before = self._traces()

    def leftovers(self) -> list[str]:
        """What is on the machine that was not there when it was untouched, apart from files."""
        return sorted(self._traces() - self._before)

    def _traces(self) -> set[str]:
        def lines(*command: str) -> set[str]:
            return set(self.run(*command).stdout.splitlines())

        return {
            *(f"process {each}" for each in lines("ps", "-eo", "args") if not each.startswith("ps ")),
            *(f"link {link['ifname']}" for link in json.loads(self.run("ip", "-json", "link").stdout)),
            *(f"address {each}" for each in lines("ip", "-brief", "address")),
            *(f"route {each}" for each in lines("ip", "route", "show", "table", "all")),
            *(f"namespace {each}" for each in lines("ip", "netns", "list")),
            *(f"nftables {each}" for each in lines("nft", "list", "ruleset")),
            *(f"mount {each.split()[4]}" for each in lines("cat", "/proc/self/mountinfo")),
            *(f"run {each}" for each in lines("ls", "/run") if self.layout.tag in each),
            *(f"ip_forward {each}" for each in lines("cat", "/proc/sys/net/ipv4/ip_forward")),
        }

    def _inside(self, *command: str) -> tuple[str, ...]:
        return ("nsenter", f"--target={self.namespaces}", "--mount", "--net", "--pid", "--", *command)

    def end(self) -> None:
        """Forget what was started, which ended with the namespaces."""
        self._within.shutdown()
        for process in self._started:
            process.kill()
            process.communicate()


@contextmanager
def cloud_host() -> Generator[CloudHost]:
    """A machine on which nothing of ours is yet, but for what would have to be fetched."""
    # Not pytest's own folder: a socket's path is short, and QEMU's user passes through.
    folder = Path(tempfile.mkdtemp(prefix="pl"))
    folder.chmod(0o711)
    cache.lend(folder / "data/cache")
    (folder / "data").chmod(0o711)
    script = folder / "machine"
    script.write_text(_MACHINE.format(folder=folder, own=OWN_ADDRESS, world=WORLD))
    command = ("setpriv", "--pdeathsig=KILL", "unshare", "--mount-proc", "--net", "--pid", "--fork", "--kill-child")
    first = subprocess.Popen((*command, "sh", "-e", str(script)), env={"PATH": _PATH})
    hosts: list[CloudHost] = []
    try:
        until((folder / "ready").exists, "the machine is made")
        children = Path(f"/proc/{first.pid}/task/{first.pid}/children")
        host = CloudHost(folder, int(children.read_text(encoding="ascii").split()[0]))
        hosts.append(host)
        world = ("ip", "netns", "exec", "world", sys.executable, str(Path(__file__).with_name("internet.py")), WORLD)
        host.start(*world, log=folder / "world.log")
        until(lambda: "here I am" in (folder / "world.log").read_text(), "the world is there")
        # Of a link that has only just been made the kernel says so a moment later.
        until(lambda: " UP " in host.run("ip", "-brief", "link", "show", "uplink").stdout, "the uplink is up")
        host.remember()
        yield host
    finally:
        first.kill()
        first.wait()
        for host in hosts:
            host.end()
            until(lambda host=host: has_ended(host.namespaces), "all that ran on the machine has ended")
        remove_cgroup(libvirtd.cgroup(Layout.of(folder / "data")))
        shutil.rmtree(folder)
