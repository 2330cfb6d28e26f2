"""A whole cloud by `pileus up` on the real engines, as those who use it see it: by command, by SSH, by packet.

The tests are one story, told in the order of this file, of one machine and the instances on it.
"""

import hashlib
import json
import re
import shlex
import shutil
import signal
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import cache
import msgspec
import pytest
from cloud_host import OWN_ADDRESS, WORLD, CloudHost, cloud_host, missing, until

from pileus.agent.hypervisor.libvirt.domain import domain_name
from pileus.agent.network.ovn import tap_of
from pileus.kernel.ids import InstanceId, PortId
from pileus.machine import libvirtd

pytestmark = [pytest.mark.lab, pytest.mark.skipif(missing() is not None, reason=f"cloud lab: {missing()}")]

Record = Mapping[str, Any]

GREETING = """#!/bin/sh
echo "$(hostname) was told" > /srv/told
"""


@pytest.fixture(scope="module")
def host(request: pytest.FixtureRequest) -> Iterator[CloudHost]:
    failed = request.session.testsfailed
    with cloud_host() as host:
        yield host
        if request.session.testsfailed > failed:
            kept = Path(tempfile.mkdtemp(prefix="pileus-cloud-"))
            for folder in ("log", "controller"):
                with suppress(OSError):
                    shutil.copytree(host.data / folder, kept / folder)
            print(f"logs and records of the cloud: {kept}")


@pytest.fixture(scope="module")
def said(host: CloudHost) -> str:
    """What the first `up` says."""
    return host.up()


@pytest.fixture(scope="module")
def cloud(host: CloudHost, said: str) -> CloudHost:
    """The machine, with the cloud up."""
    assert said
    return host


class Guest(msgspec.Struct, frozen=True, kw_only=True):
    """An instance, as one who signs in to it by SSH sees it."""

    host: CloudHost
    name: str
    outside: str
    user: str = "root"

    def run(self, command: str, *, accept: tuple[int, ...] = (0,), within_s: float = 60.0) -> str:
        known = self.host.folder / f"known-{self.name}"
        options = (
            "-o",
            "StrictHostKeyChecking=accept-new",
            "-o",
            f"UserKnownHostsFile={known}",
            "-o",
            "LogLevel=ERROR",
        )
        at = ("-i", str(self.host.data / "ssh/id_ed25519"), "-o", "ConnectTimeout=5", f"{self.user}@{self.outside}")
        return self.host.run("ssh", *options, *at, command, accept=accept, within_s=within_s).stdout

    def awake(self, *, within_s: float = 120.0) -> "Guest":
        """The same, once it answers."""

        def answers() -> bool:
            with suppress(AssertionError, subprocess.TimeoutExpired):
                return self.run("echo here", within_s=20) == "here\n"
            return False

        until(answers, f"{self.name} answers at {self.outside}", within_s=within_s)
        return self

    def uptime_s(self) -> float:
        return float(self.run("cat /proc/uptime").split()[0])

    def reaches(self, address: str) -> bool:
        return " 0% packet loss" in self.run(f"ping -c 1 -W 2 {address}", accept=(0, 1))


def hello(cloud: CloudHost) -> Guest:
    return guest(cloud, "hello")


def guest(cloud: CloudHost, name: str) -> Guest:
    return Guest(host=cloud, name=name, outside=cloud.ask(f"instance show {name}")["floating_addresses"][0])


def virsh(cloud: CloudHost, *command: str) -> str:
    return cloud.run("virsh", "--connect", libvirtd.uri(cloud.layout), *command).stdout


def nbctl(cloud: CloudHost, *command: str) -> str:
    engines = json.loads((cloud.layout.machine / "engines.json").read_text())
    program = f"{engines['programs']['folders'][0]}/ovn-nbctl"
    return cloud.run(program, f"--db={engines['northbound']}", "--timeout=20", *command).stdout


def qemu(cloud: CloudHost, name: str) -> int:
    """The process of an instance, by its number inside of the machine."""
    id = InstanceId(cloud.ask(f"instance show {name}")["id"])
    return int((cloud.layout.run / f"libvirt/qemu/{domain_name(id)}.pid").read_text())


def daemons(cloud: CloudHost) -> dict[str, int]:
    """Every daemon that is kept, with its process."""
    files = {each.stem: each.read_text() for each in cloud.layout.run.glob("*.daemon")}
    supervisor = (cloud.layout.run / "supervisor.pid").read_text()
    return {name: int(text.split()[0]) for name, text in {**files, "supervisor": supervisor}.items()}


def kill(cloud: CloudHost, pid: int) -> None:
    cloud.run("kill", "-KILL", str(pid))


def differences(cloud: CloudHost) -> list[str]:
    """Where the machine has something else than the records say."""
    instances = cloud.ask("instance list --all-projects")
    volumes = cloud.ask("volume list --all-projects")
    ports = [each["id"] for each in cloud.ask("port list --all-projects")]
    links = json.loads(cloud.run("ip", "-json", "link").stdout)
    networks = {each["network_id"] for each in cloud.ask("port list --all-projects")}
    compared = {
        "domains": (
            {domain_name(InstanceId(each["id"])) for each in instances},
            set(virsh(cloud, "list", "--all", "--name").split()),
        ),
        "running domains": (
            {domain_name(InstanceId(each["id"])) for each in instances if each["state"] == "running"},
            set(virsh(cloud, "list", "--state-running", "--name").split()),
        ),
        "guests' processes": (
            {domain_name(InstanceId(each["id"])) for each in instances if each["state"] == "running"},
            set(re.findall(r"guest=([\w-]+),", cloud.run("ps", "-eo", "args").stdout)),
        ),
        "volumes": (
            {each["id"] for each in volumes},
            {each.name for each in (cloud.data / "volumes/volumes").iterdir()},
        ),
        "agent's guests": (
            {each["id"] for each in instances},
            {
                each.stem
                for each in (cloud.data / "agent/records/guests").glob("*.json")
                if '"Removed"' not in each.read_text() and '"removed"' not in each.read_text()
            },
        ),
        "taps": (
            {tap_of(PortId(each)) for each in ports},
            {each["ifname"] for each in links if each["ifname"][:2] == "pt"},
        ),
        "logical ports": (
            set(ports),
            set(nbctl(cloud, "--bare", "--columns=name", "find", "logical_switch_port", 'type=""').split()),
        ),
        "metadata namespaces": (
            len(networks),
            len([each for each in cloud.run("ip", "netns", "list").stdout.splitlines() if "pileus-md-" in each]),
        ),
    }
    unsettled = [each["name"] for each in instances if each["state"] not in ("running", "stopped")]
    return [
        *(f"{each} is not settled" for each in unsettled),
        *(f"{what}: wanted {wanted}, found {found}" for what, (wanted, found) in compared.items() if wanted != found),
    ]


def agree(cloud: CloudHost, *, within_s: float = 60.0) -> None:
    """Wait until the machine is as the records say."""
    deadline = time.monotonic() + within_s
    while wrong := _differences_or_why(cloud):
        assert time.monotonic() < deadline, "\n".join(wrong)
        time.sleep(0.2)


def _differences_or_why(cloud: CloudHost) -> list[str]:
    try:
        return differences(cloud)
    except AssertionError as not_yet:
        return [str(not_yet)]


# Up, and the first instance.


def test_up_says_where_the_cloud_is_whom_to_trust_and_how_to_get_in(host: CloudHost, said: str) -> None:
    print(said)
    authority = json.loads((host.data / "cli.json").read_text())["authority"]
    fingerprint = hashlib.sha256(ssl.PEM_cert_to_DER_cert(authority)).hexdigest()
    assert f"API            https://{OWN_ADDRESS}:5870\n" in said
    assert f"CA fingerprint sha256:{fingerprint}\n" in said
    assert re.search(r"Guests run on  (kvm|tcg): \S+", said)
    assert re.search(r"Password       [0-9a-f-]{27} ", said)


def test_the_printed_password_signs_in_by_the_printed_fingerprint(host: CloudHost, said: str) -> None:
    password = re.search(r"Password +(\S+)", said)
    fingerprint = re.search(r"CA fingerprint (\S+)", said)
    assert password
    assert fingerprint
    another = host.folder / "another.json"
    login = (f"https://{OWN_ADDRESS}:5870", "--user", "admin", "--password-stdin", "--fingerprint", fingerprint[1])
    host.run("env", f"PILEUS_CONFIG={another}", "pileus", "login", *login, stdin=password[1])
    assert host.run("env", f"PILEUS_CONFIG={another}", "pileus", "instances", "-o", "name").stdout == "hello\n"


def test_the_printed_commands_reach_the_first_instance(host: CloudHost, said: str) -> None:
    into = re.search(r"Into it +(.*)", said)
    console = re.search(r"Its console +(.*)", said)
    assert into
    assert console
    assert host.run(*shlex.split(into[1]), "-n", "hostname").stdout == "hello\n"
    # Typed word by word as it stands, without anything that the lab has set for its own commands.
    typed = f"(sleep 1; echo 'echo it is $(hostname)'; until grep -q 'it is hello' {host.folder}/seen; do :; done; "
    typed += f"printf '\\035') | {console[1]} > {host.folder}/seen"
    host.run("env", "--unset=PILEUS_CONFIG", "sh", "-c", f": > {host.folder}/seen; {typed}")


def test_a_guest_has_its_name_address_key_and_resolver_from_the_cloud(cloud: CloudHost) -> None:
    record = cloud.ask("instance show hello")
    asked = "wget -q -O- http://169.254.169.254"
    seen = hello(cloud).run(
        "hostname; ip -4 -o address show eth0; cat /etc/resolv.conf /root/.ssh/authorized_keys;"
        f"{asked}/latest/meta-data/instance-id; echo; {asked}/openstack/latest/meta_data.json"
    )
    assert seen.startswith("hello\n")
    assert f"inet {record['addresses'][0]}/22 " in seen
    assert "search internal\nnameserver 169.254.169.254\n" in seen
    assert (cloud.data / "ssh/id_ed25519.pub").read_text() in seen
    assert f"\n{record['id']}\n" in seen
    assert json.loads(seen.splitlines()[-1])["uuid"] == record["id"]


def test_a_guest_reaches_the_world_under_the_machines_address(cloud: CloudHost) -> None:
    assert hello(cloud).run(f"wget -q -O- http://{WORLD}/; echo; wget -q -O- http://any.name.test/").split() == (
        [OWN_ADDRESS, OWN_ADDRESS]
    )


def test_the_clouds_names_are_not_told_to_the_world(cloud: CloudHost) -> None:
    names = ("hello", "hello.internal", "nobody", "nobody.internal")
    seen = {name: hello(cloud).run(f"nslookup {name}", accept=(0, 1)) for name in names}
    assert "10.0.0.2" in seen["hello"]
    assert "10.0.0.2" in seen["hello.internal"]
    assert not any(word in text for text in seen.values() for word in (WORLD, "SERVFAIL", "can't"))
    assert "internal" not in (cloud.folder / "world.log").read_text()


def test_a_second_up_changes_nothing_and_tells_no_secret(cloud: CloudHost, said: str) -> None:
    password = re.search(r"Password +(\S+)", said)
    assert password
    before, process = daemons(cloud), qemu(cloud, "hello")
    began = time.monotonic()
    again = cloud.up()
    print(f"second up: {time.monotonic() - began:.1f} s")
    assert (daemons(cloud), qemu(cloud, "hello")) == (before, process)
    assert "Password" not in again
    assert "this machine now" not in again
    found = cloud.run("grep", "-rlaF", "--exclude-dir=cache", password[1], str(cloud.data), accept=(0, 1)).stdout
    assert found == "", "nobody keeps the password"


def test_machine_and_records_agree(cloud: CloudHost) -> None:
    agree(cloud)


# By command.


@pytest.fixture(scope="module")
def raw_image(cloud: CloudHost) -> Path:
    raw = cloud.folder / "image.raw"
    cloud.run("qemu-img", "convert", "-O", "raw", str(cache.mini().path), str(raw))
    return raw


def test_an_image_is_uploaded_only_as_what_it_should_be(cloud: CloudHost, raw_image: Path) -> None:
    with raw_image.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    upload = f"image upload raw-one --file {raw_image} --default-user root"
    cloud.refused(upload, "--sha256", "0" * 64, status=2)
    assert cloud.ask("image list --name raw-one") == []
    made = cloud.ask(upload, "--sha256", sha256)
    assert (made["state"], made["format"], made["sha256"]) == ("active", "raw", sha256)


def test_a_dry_run_says_what_would_be_done_where_and_how_it_is_taken_back(cloud: CloudHost) -> None:
    plan = cloud.cli("instance create web --image raw-one --flavor tiny --dry-run")
    for line in (
        "would create instance web on ",
        "+ instance web",
        "+ volume web",
        "+ port web",
        "why",
        "undo   delete",
    ):
        assert line in plan
    assert cloud.cli("instances -o name") == "hello\n"


def test_what_fits_nowhere_is_refused_with_why_and_what_would_fit(cloud: CloudHost) -> None:
    said = cloud.refused("instance create giant --image raw-one --vcpus 999 --memory-mib 1024", status=3)
    [machine] = cloud.ask("host list")
    assert f"{machine['name']}: too small: " in said
    assert "it would fit: ask for " in said
    assert cloud.ask("instance list --name giant") == []


@pytest.fixture(scope="module")
def web(cloud: CloudHost) -> Guest:
    """A second instance, made of another image, by commands alone, with the wishes of its owner."""
    user_data = cloud.folder / "greeting"
    user_data.write_text(GREETING)
    cloud.cli(f"keypair create mine --public-key @{cloud.data}/ssh/id_ed25519.pub")
    cloud.cli("flavor create nano --vcpus 1 --memory-mib 192 --disk-gib 1")
    cloud.cli("security-group create from-outside")
    cloud.cli("security-rule create --group from-outside --protocol tcp --port-min 22 --port-max 22")
    cloud.cli(
        "instance create web --image raw-one --flavor nano --keypair mine --labels tier=front"
        f" --security-group default --security-group from-outside --user-data @{user_data}"
    )
    cloud.cli("floating-ip create --instance web")
    return guest(cloud, "web").awake()


def test_an_instance_does_what_its_user_data_say(web: Guest) -> None:
    until(lambda: web.run("cat /srv/told", accept=(0, 1)) == "web was told\n", "user data has run")


def test_records_are_printed_as_one_likes(cloud: CloudHost, web: Guest) -> None:
    assert cloud.cli("instance list --name web -o name") == "web\n"
    [row] = [line for line in cloud.cli("instances").splitlines() if line.startswith("web ")]
    assert row.split()[1] == "running"
    assert row.split()[-1] == web.outside
    assert cloud.ask("instance list --label tier=front")[0] == cloud.ask("instance show web")
    assert "state: running" in cloud.cli("instance show web -o yaml")
    assert cloud.refused("instance show nothing", status=4).startswith("error: ")
    cloud.refused("instance create web", status=2)


def test_a_stopped_instance_keeps_its_address_and_its_disk(cloud: CloudHost, web: Guest) -> None:
    before = cloud.ask("instance show web")
    web.run("echo kept > /srv/kept; sync")
    assert cloud.ask("instance stop web")["state"] == "stopped"
    cloud.refused("instance stop web", status=5)
    agree(cloud)
    cloud.cli("instance start web")
    assert web.awake().run("cat /srv/kept /srv/told") == "kept\nweb was told\n"
    after = cloud.ask("instance show web")
    assert [after[each] for each in ("addresses", "floating_addresses")] == [
        before[each] for each in ("addresses", "floating_addresses")
    ]


def test_a_rebooted_instance_begins_anew_in_the_same_process(cloud: CloudHost, web: Guest) -> None:
    process, boot = qemu(cloud, "web"), web.run("cat /proc/sys/kernel/random/boot_id")
    cloud.cli("instance reboot web")
    until(lambda: web.awake().run("cat /proc/sys/kernel/random/boot_id") != boot, "it has booted again")
    assert web.run("cat /srv/kept") == "kept\n"
    assert qemu(cloud, "web") == process


def test_the_console_types_and_shows(cloud: CloudHost, web: Guest) -> None:
    seen = cloud.folder / "console"
    console = cloud.start("pileus", "instance", "console", "web", log=seen)
    assert console.stdin
    console.stdin.write("\necho $((6 * 7)) on $(hostname)\n")
    console.stdin.flush()
    until(lambda: "42 on web" in seen.read_text(errors="replace"), "the guest answers on its console")
    console.stdin.write("\x1d")
    console.stdin.close()
    assert console.wait(timeout=20) == 0


def test_a_deleted_instance_leaves_nothing(cloud: CloudHost) -> None:
    cloud.cli("instance create brief --image mini --flavor nano")
    process = qemu(cloud, "brief")
    cloud.cli("instance delete brief")
    assert cloud.run("kill", "-0", str(process), accept=(0, 1)).returncode == 1
    assert differences(cloud) == []
    assert cloud.ask("instance list --name brief") == []


def test_events_tasks_and_audit_tell_all_of_it(cloud: CloudHost) -> None:
    seen = cloud.folder / "events"
    [last] = cloud.ask("event list --limit 1000")[-1:]
    follower = cloud.start("pileus", "events", "--follow", "--after", str(last["sequence"]), "-o", "json", log=seen)
    cloud.cli("instance create watched --image mini --flavor nano")
    cloud.cli("instance delete watched")
    until(lambda: '"instance.delete: ' in seen.read_text(), "the deletion is told")
    follower.send_signal(signal.SIGINT)
    for told in (
        '"instance.create"',
        '"instance.create: make_disks"',
        '"instance.create: finish"',
        '"instance.delete"',
    ):
        assert told in seen.read_text()
    deed = next(
        each for each in cloud.ask("event list --kind instance --limit 1000") if each["operation"] == "instance.create"
    )
    me = cloud.ask("user list --name admin")[0]
    assert deed["actor"] == f"user:{me['id']}"
    [task, *_] = [each for each in cloud.ask("task list") if each["workflow"] == "instance.create"]
    shown = cloud.cli(f"task show {task['id']}")
    for word in ("make_disks", "connect", "start_guest", "done after"):
        assert word in shown
