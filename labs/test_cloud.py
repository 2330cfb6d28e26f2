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
from cloud_host import OWN_ADDRESS, WORLD, CloudHost, cloud_host, missing
from patience import BOOTS_WITHIN_S, WITHIN_S, read, until

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
def host() -> Iterator[CloudHost]:
    with cloud_host() as host:
        yield host


@pytest.fixture(autouse=True)
def kept(request: pytest.FixtureRequest, host: CloudHost) -> Iterator[None]:
    """Keeps the logs and the records of a cloud in which something was not as it should be."""
    failed = request.session.testsfailed
    yield
    if request.session.testsfailed > failed and host.data.exists():
        kept = Path(tempfile.mkdtemp(prefix="pileus-cloud-"))
        for folder in ("log", "controller"):
            with suppress(OSError, shutil.Error):
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


@pytest.fixture(scope="module")
def hello(cloud: CloudHost) -> "Guest":
    """The first instance."""
    return guest(cloud, "hello")


class Guest(msgspec.Struct, frozen=True, kw_only=True):
    """An instance, as one who signs in to it by SSH sees it."""

    host: CloudHost
    name: str
    outside: str
    user: str = "root"

    def run(
        self, command: str, *, accept: tuple[int, ...] = (0,), connects_within_s: int = 60, within_s: float = WITHIN_S
    ) -> str:
        known = self.host.folder / f"known-{self.name}"
        options = (
            "-o",
            "StrictHostKeyChecking=accept-new",
            "-o",
            f"UserKnownHostsFile={known}",
            "-o",
            "LogLevel=ERROR",
        )
        # A guest that is reset in the middle says nothing any more.
        patience = ("-o", f"ConnectTimeout={connects_within_s}", "-o", "ServerAliveInterval=20")
        at = ("-i", str(self.host.data / "ssh/id_ed25519"), f"{self.user}@{self.outside}")
        return self.host.run("ssh", *options, *patience, *at, command, accept=accept, within_s=within_s).stdout

    def awake(self, *, within_s: float = BOOTS_WITHIN_S) -> "Guest":
        """The same, once it answers."""

        def answers() -> bool:
            with suppress(AssertionError, subprocess.TimeoutExpired):
                return self.run("echo here", connects_within_s=10, within_s=60) == "here\n"
            return False

        until(answers, f"{self.name} answers at {self.outside}", within_s=within_s)
        return self

    def uptime_s(self) -> float:
        return float(self.run("cat /proc/uptime").split()[0])

    def boot(self) -> str:
        """What tells this boot of it from every other; nothing while it does not answer."""
        return self.run("cat /proc/sys/kernel/random/boot_id", accept=(0, 255))

    def reaches(self, address: str) -> bool:
        """Whether it does now; what it is to reach it may reach a moment later."""
        return " 0% packet loss" in self.run(f"ping -c 1 -W 2 {address}", accept=(0, 1))

    def comes_to_reach(self, address: str) -> None:
        until(lambda: self.reaches(address), f"{self.name} reaches {address}")


def instance(cloud: CloudHost, name: str) -> Record:
    return next(each for each in cloud.records("instances") if each["name"] == name)


def guest(cloud: CloudHost, name: str, *, user: str = "root") -> Guest:
    return Guest(host=cloud, name=name, outside=instance(cloud, name)["floating_addresses"][0], user=user)


def virsh(cloud: CloudHost, *command: str) -> str:
    return cloud.run("virsh", "--connect", libvirtd.uri(cloud.layout), *command).stdout


def nbctl(cloud: CloudHost, *command: str) -> str:
    engines = json.loads((cloud.layout.machine / "engines.json").read_text())
    program = f"{engines['programs']['folders'][0]}/ovn-nbctl"
    return cloud.run(program, f"--db={engines['northbound']}", "--timeout=20", *command).stdout


def qemu(cloud: CloudHost, name: str) -> int:
    """The process of an instance, by its number inside of the machine."""
    id = InstanceId(instance(cloud, name)["id"])
    return int((cloud.layout.run / f"libvirt/qemu/{domain_name(id)}.pid").read_text())


def runs_anew(cloud: CloudHost, name: str, former: int) -> bool:
    """Whether an instance has another process than it had; between the two its number is nowhere to be read."""
    try:
        return qemu(cloud, name) != former
    except (FileNotFoundError, ValueError):
        return False


def daemons(cloud: CloudHost) -> dict[str, int]:
    """Every daemon that is kept, with its process."""
    files = {each.stem: read(each) for each in cloud.layout.run.glob("*.daemon")}
    supervisor = read(cloud.layout.run / "supervisor.pid")
    return {name: int(text.split()[0]) for name, text in {**files, "supervisor": supervisor}.items() if text}


def its_agent_answers(cloud: CloudHost, name: str) -> None:
    """Wait until the agent in an instance does, which may begin after SSH."""
    domain = domain_name(InstanceId(instance(cloud, name)["id"]))
    ping = ("qemu-agent-command", domain, '{"execute": "guest-ping"}')
    command = ("virsh", "--connect", libvirtd.uri(cloud.layout), *ping)
    until(lambda: '"return"' in cloud.run(*command, accept=(0, 1)).stdout, f"the agent in {name} answers")


def nothing_is_left(cloud: CloudHost) -> None:
    """Wait until the machine is as if there had been no cloud: a process that has ended is reaped a moment later."""
    left: list[str] = []

    def nothing() -> bool:
        left[:] = cloud.leftovers()
        return not left

    with suppress(AssertionError):
        until(nothing, "nothing is left")
    assert left == []


def kill(cloud: CloudHost, pid: int) -> None:
    cloud.run("kill", "-KILL", str(pid))


def differences(cloud: CloudHost) -> list[str]:
    """Where the machine has something else than the records say."""
    instances, volumes, plugs = (cloud.records(each) for each in ("instances", "volumes", "ports"))
    ports = [each["id"] for each in plugs]
    networks = {each["network_id"] for each in plugs}
    links = json.loads(cloud.run("ip", "-json", "link").stdout)
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


def agree(cloud: CloudHost) -> None:
    """Wait until the machine is as the records say."""
    deadline = time.monotonic() + WITHIN_S
    while wrong := _differences_or_why(cloud):
        assert time.monotonic() < deadline, "\n".join(wrong)
        time.sleep(0.2)


def _differences_or_why(cloud: CloudHost) -> list[str]:
    try:
        return differences(cloud)
    except (AssertionError, OSError) as not_yet:
        return [repr(not_yet)]


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
    # More than once: a shell that is only just starting does not hear what was typed before.
    typed = f"(until grep -q 'it is hello' {host.folder}/seen; do echo 'echo it is $(hostname)'; sleep 2; done; "
    typed += f"printf '\\035') | {console[1]} > {host.folder}/seen"
    host.run("env", "--unset=PILEUS_CONFIG", "sh", "-c", f": > {host.folder}/seen; {typed}")


def test_a_guest_has_its_name_address_key_and_resolver_from_the_cloud(cloud: CloudHost, hello: Guest) -> None:
    record = cloud.ask("instance show hello")
    asked = "wget -q -O- http://169.254.169.254"
    seen = hello.run(
        "hostname; ip -4 -o address show eth0; cat /etc/resolv.conf /root/.ssh/authorized_keys;"
        f"{asked}/latest/meta-data/instance-id; echo; {asked}/openstack/latest/meta_data.json"
    )
    assert seen.startswith("hello\n")
    assert f"inet {record['addresses'][0]}/22 " in seen
    assert "search internal\nnameserver 169.254.169.254\n" in seen
    assert (cloud.data / "ssh/id_ed25519.pub").read_text() in seen
    assert f"\n{record['id']}\n" in seen
    assert json.loads(seen.splitlines()[-1])["uuid"] == record["id"]


def test_a_guest_reaches_the_world_under_the_machines_address(cloud: CloudHost, hello: Guest) -> None:
    asked = f"wget -q -O- http://{WORLD}/; echo; wget -q -O- http://any.name.test/"
    until(lambda: hello.run(asked, accept=(0, 1)).split() == [OWN_ADDRESS, OWN_ADDRESS], "the world answers it by name")


def test_the_clouds_names_are_not_told_to_the_world(cloud: CloudHost, hello: Guest) -> None:
    names = ("hello", "hello.internal", "nobody", "nobody.internal")

    def is_told_by_the_cloud(name: str) -> bool:
        text = hello.run(f"nslookup {name}", accept=(0, 1))
        assert WORLD not in text
        known = "10.0.0.2" in text if name.startswith("hello") else True
        return known and not any(word in text for word in ("SERVFAIL", "can't"))

    for name in names:
        until(lambda name=name: is_told_by_the_cloud(name), f"the cloud tells of {name}")
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


class RawImage(msgspec.Struct, frozen=True):
    """The small image as a raw file."""

    upload: str
    """The command that uploads it."""
    sha256: str


@pytest.fixture(scope="module")
def raw(cloud: CloudHost) -> RawImage:
    path = cloud.folder / "image.raw"
    cloud.run("qemu-img", "convert", "-O", "raw", str(cache.mini().path), str(path))
    return RawImage(f"image upload raw-one --file {path} --default-user root", sha256_of(path))


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.fixture(scope="module")
def raw_one(cloud: CloudHost, raw: RawImage) -> Record:
    """The record of the image after it was uploaded."""
    return cloud.ask(raw.upload, "--sha256", raw.sha256)


def test_an_image_that_is_not_what_it_should_be_is_refused(cloud: CloudHost, raw: RawImage) -> None:
    cloud.refused(raw.upload, "--sha256", "0" * 64, status=2)
    assert cloud.ask("image list --name raw-one") == []


def test_an_image_is_uploaded_from_a_file(raw: RawImage, raw_one: Record) -> None:
    assert [raw_one[each] for each in ("state", "format", "sha256")] == ["active", "raw", raw.sha256]


def test_an_image_is_brought_to_the_hosts_beforehand_and_comes_back_in_another_format(
    cloud: CloudHost, raw: RawImage, raw_one: Record
) -> None:
    cloud.cli("image prefetch raw-one --pool default")
    told = cloud.ask("image copies raw-one")
    assert [(each["copy"]["image"], each["copy"]["pool"]) for each in told["copies"]] == [(raw_one["id"], "local")]
    assert told["not_known"] == {}
    disk, back = cloud.folder / "raw-one.vmdk", cloud.folder / "raw-one.raw"
    cloud.cli(f"image download raw-one --file {disk} --format vmdk")
    cloud.run("qemu-img", "convert", "-f", "vmdk", "-O", "raw", str(disk), str(back))
    assert sha256_of(back) == raw.sha256
    assert cloud.ask("image-export list") == []


def test_a_disk_of_a_running_guest_moves_to_a_file_system_that_was_mounted_since_the_cloud_is_up(
    cloud: CloudHost,
) -> None:
    disk, place = cloud.folder / "fast.disk", cloud.folder / "fast"
    place.mkdir()
    cloud.run("truncate", "--size=3G", str(disk))
    cloud.run("mkfs.ext4", "-q", str(disk))
    cloud.run("mount", "-o", "loop", str(disk), str(place))
    cloud.cli(f"storage-pool create fast --path {place} --storage-class performance")
    cloud.cli("volume move hello --storage-class performance")
    assert cloud.ask("volume show hello")["storage_pool"] == "fast"
    found = cloud.run("pileus", "doctor", "--data", str(cloud.data), accept=(0, 1, 2)).stdout
    assert "the volume" not in found, "the doctor looks for volumes where they are"
    cloud.cli("volume move hello --storage-pool local")
    assert cloud.ask("instance show hello")["state"] == "running"
    cloud.cli("storage-pool delete fast")
    until(lambda: cloud.run("umount", str(place), accept=(0, 32)).returncode == 0, "nobody uses the disk any more")


def test_a_dry_run_says_what_would_be_done_where_and_how_it_is_taken_back(cloud: CloudHost, raw_one: Record) -> None:
    assert raw_one["name"] == "raw-one"
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
def web(cloud: CloudHost, raw_one: Record) -> Guest:
    """A second instance, made of another image, by commands alone, with the wishes of its owner."""
    assert raw_one["state"] == "active"
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
    process, boot = qemu(cloud, "web"), web.boot()
    cloud.cli("instance reboot web")
    until(lambda: web.boot() not in (boot, ""), "it has booted again")
    assert web.run("cat /srv/kept") == "kept\n"
    assert qemu(cloud, "web") == process


def test_the_console_types_and_shows(cloud: CloudHost, web: Guest) -> None:
    seen = cloud.folder / "console"
    console = cloud.start("pileus", "instance", "console", "web", log=seen)
    typing = console.stdin
    assert typing

    def answers() -> bool:
        # Its shell may be only just starting, and not hear what was typed before.
        typing.write("\necho $((6 * 7)) on $(hostname)\n")
        typing.flush()
        with suppress(AssertionError):
            return until(lambda: "42 on web" in read(seen), "it is shown", within_s=5)
        return False

    until(answers, "the guest answers on its console")
    typing.write("\x1d")
    typing.close()
    assert console.wait(timeout=WITHIN_S) == 0


def test_a_deleted_instance_leaves_nothing(cloud: CloudHost) -> None:
    cloud.cli("instance create brief --image mini --flavor nano")
    process = qemu(cloud, "brief")
    cloud.cli("instance purge brief")
    until(lambda: cloud.run("kill", "-0", str(process), accept=(0, 1)).returncode == 1, "its process is no more")
    agree(cloud)
    assert cloud.ask("instance list --name brief") == []


def test_events_tasks_and_audit_tell_all_of_it(cloud: CloudHost) -> None:
    seen = cloud.folder / "events"
    [last] = cloud.ask("event list --limit 1000")[-1:]
    follower = cloud.start("pileus", "events", "--follow", "--after", str(last["sequence"]), "-o", "json", log=seen)
    cloud.cli("instance create watched --image mini --flavor nano")
    cloud.cli("instance purge watched")
    until(lambda: '"instance.delete: ' in seen.read_text(), "the deletion is told")
    follower.send_signal(signal.SIGINT)
    for told in (
        '"instance.create"',
        '"instance.create: connect"',
        '"instance.create: finish"',
        '"instance.purge"',
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


# By packet.


class Others(msgspec.Struct, frozen=True):
    """Instances beside those of the default group."""

    stranger: Guest
    """In the same network, and in another group, which lets SSH in."""
    twin: Guest
    """Of another project, whose network has the same addresses."""


@pytest.fixture(scope="module")
def others(cloud: CloudHost, web: Guest) -> Others:
    assert web
    of_other = "--project other"
    cloud.cli("project create other")
    cloud.cli(f"keypair create mine --public-key @{cloud.data}/ssh/id_ed25519.pub {of_other}")
    cloud.cli(f"security-rule create --group default --protocol tcp --port-min 22 --port-max 22 {of_other}")
    sizes = "--image mini --flavor nano --keypair mine"
    cloud.cli(f"instance create stranger {sizes} --security-group from-outside --no-wait")
    cloud.cli(f"instance create twin {sizes} {of_other}")
    until(lambda: instance(cloud, "stranger")["state"] == "running", "the stranger runs")
    outside = [
        cloud.ask("floating-ip create --instance stranger")["address"],
        cloud.ask(f"floating-ip create --instance twin {of_other}")["address"],
    ]
    stranger, twin = (
        Guest(host=cloud, name=name, outside=address)
        for name, address in zip(("stranger", "twin"), outside, strict=True)
    )
    return Others(stranger.awake(), twin.awake())


def test_members_of_one_group_reach_each_other_by_name(cloud: CloudHost, web: Guest, hello: Guest) -> None:
    hello.comes_to_reach("web")
    web.comes_to_reach("hello.internal")


def test_others_reach_them_only_by_a_rule(cloud: CloudHost, web: Guest, others: Others) -> None:
    stranger = instance(cloud, "stranger")["addresses"][0]
    assert instance(cloud, "web")["addresses"][0] in others.stranger.run("nslookup web")
    assert not web.reaches(stranger)
    assert not others.stranger.reaches("web")
    rule = cloud.ask("security-rule create --group from-outside --protocol icmp --remote-group default")["id"]
    web.comes_to_reach(stranger)
    assert not others.stranger.reaches("web")
    cloud.cli(f"security-rule delete {rule}")
    until(lambda: not web.reaches(stranger), "without the rule nothing comes in")


def test_a_floating_ip_moves_from_one_to_the_other(cloud: CloudHost, web: Guest, others: Others) -> None:
    known = {each["address"]: each["id"] for each in cloud.ask("floating-ip list")}
    moving, staying = known[web.outside], known[others.stranger.outside]
    refusal = cloud.refused(f"floating-ip associate {moving} --instance stranger", status=5)
    assert "the port has a floating IP already" in refusal
    cloud.cli(f"floating-ip dissociate {staying}")
    cloud.cli(f"floating-ip associate {moving} --instance stranger")
    moved = Guest(host=cloud, name="moved", outside=web.outside)

    def is_strangers() -> bool:
        # Whoever had it may answer once more, with another key.
        (cloud.folder / "known-moved").unlink(missing_ok=True)
        return moved.run("hostname", accept=(0, 255), connects_within_s=15) == "stranger\n"

    until(is_strangers, "the other answers at the address")
    assert instance(cloud, "web")["floating_addresses"] == []
    cloud.cli(f"floating-ip associate {moving} --instance web")
    cloud.cli(f"floating-ip associate {staying} --instance stranger")
    assert web.awake().run("hostname") == "web\n"
    assert others.stranger.awake().run("hostname") == "stranger\n"


def test_a_projects_network_is_its_own_whatever_its_addresses(cloud: CloudHost, others: Others) -> None:
    twin = cloud.ask("instance show twin --project other")
    mine, web_address = (instance(cloud, each)["addresses"][0] for each in ("hello", "web"))
    assert twin["addresses"] == [mine]
    seen = others.twin.run(
        "hostname; wget -q -O- http://169.254.169.254/latest/meta-data/instance-id; echo; nslookup web", accept=(0, 1)
    )
    assert seen.startswith(f"twin\n{twin['id']}\n")
    assert web_address not in seen
    assert not others.twin.reaches(web_address)
    # What it may not see is not there for its owner either.
    assert {each["name"] for each in cloud.ask("instance list --project other")} == {"twin"}


def test_an_emptied_northbound_database_is_filled_again(cloud: CloudHost, web: Guest, hello: Guest) -> None:
    address = instance(cloud, "web")["addresses"][0]
    known = nbctl(cloud, "--bare", "--columns=name", "list", "logical_switch_port").split()
    log = cloud.folder / "ping"
    inside = cloud.start(
        *("ssh", "-i", str(cloud.data / "ssh/id_ed25519"), "-o", f"UserKnownHostsFile={cloud.folder}/known-hello"),
        *(f"root@{hello.outside}", f"ping -q -i 0.1 -c 100 {address}"),
        log=log,
    )
    outside = cloud.start("ping", "-q", "-i", "0.1", "-c", "100", hello.outside, log=cloud.folder / "ping-outside")
    # All roots but the groups of gateways, which OVN lets nobody remove together with what refers to them.
    tables = ("Logical_Switch", "Logical_Router", "Port_Group", "DHCP_Options", "DNS")
    time_began = time.monotonic()
    nbctl(cloud, *(word for table in tables for word in ("--", "--all", "destroy", table)))
    until(
        lambda: (
            sorted(nbctl(cloud, "--bare", "--columns=name", "list", "logical_switch_port").split()) == sorted(known)
        ),
        "all ports are back",
    )
    print(f"northbound database filled again after {time.monotonic() - time_began:.2f} s")
    assert inside.wait(timeout=WITHIN_S) in (0, 1)
    assert outside.wait(timeout=WITHIN_S) in (0, 1)
    for where, said in (("inside", log), ("from outside", cloud.folder / "ping-outside")):
        [loss] = re.findall(r"(\d+)% packet loss", said.read_text())
        # How many is a question of how busy the machine is; that it goes on is none.
        print(f"ping {where} meanwhile: {loss} % lost, of 100 in 10 s")
    hello.comes_to_reach("web")
    hello.awake()
    agree(cloud)


def test_what_others_had_is_given_back_with_them(cloud: CloudHost, others: Others) -> None:
    assert others
    cloud.cli("instance purge twin --project other")
    cloud.cli("instance purge stranger")
    agree(cloud)
    for project in ("default", "other"):
        for floating in cloud.ask(f"floating-ip list --project {project}"):
            if floating["port_id"] is None:
                cloud.cli(f"floating-ip delete {floating['id']} --project {project}")
    assert len(cloud.ask("floating-ip list --all-projects")) == 2


# Killed.


KEPT = ("controller", "agent", "libvirtd", "ovn-controller", "ovs-vswitchd")


def back(cloud: CloudHost, hello: Guest, name: str, killed: int) -> None:
    """Wait until a daemon that was killed is there again, with everything as it should be."""
    until(lambda: daemons(cloud).get(name, killed) != killed, f"{name} is started again")
    until(lambda: _is_well(cloud, hello), f"all is well after {name} was killed")


def _is_well(cloud: CloudHost, hello: Guest) -> bool:
    """Whether the agent is connected, and a guest is reached from outside and reaches the other one."""
    try:
        well = (
            cloud.get("/v1/hosts")["items"][0]["connected"]
            and hello.run("echo $((1 + 1))", connects_within_s=15) == "2\n"
        )
        return well and hello.reaches("web")
    except (AssertionError, OSError, subprocess.TimeoutExpired):
        return False


@pytest.mark.parametrize("name", KEPT)
def test_a_daemon_that_is_killed_comes_back_and_guests_go_on(
    cloud: CloudHost, hello: Guest, web: Guest, name: str
) -> None:
    before = {each: qemu(cloud, each) for each in ("hello", "web")}
    up_s = web.uptime_s()
    killed = daemons(cloud)[name]
    began = time.monotonic()
    kill(cloud, killed)
    back(cloud, hello, name, killed)
    print(f"{name}: all is well again after {time.monotonic() - began:.1f} s")
    assert {each: qemu(cloud, each) for each in ("hello", "web")} == before
    assert web.uptime_s() > up_s
    agree(cloud)


def test_guests_and_their_traffic_go_on_without_controller_and_agent(
    cloud: CloudHost, web: Guest, hello: Guest
) -> None:
    before, up_s = qemu(cloud, "web"), web.uptime_s()
    running, address = daemons(cloud), instance(cloud, "web")["addresses"][0]
    cloud.run("kill", "-STOP", str(running["supervisor"]))
    try:
        for name in ("controller", "agent"):
            kill(cloud, running[name])
        cloud.refused("instances", status=8)
        # By address: who asks for a name asks for IPv6 as well, and that the agent answers.
        hello.comes_to_reach(address)
        assert web.uptime_s() > up_s
    finally:
        cloud.run("kill", "-CONT", str(running["supervisor"]))
    back(cloud, hello, "controller", running["controller"])
    back(cloud, hello, "agent", running["agent"])
    assert qemu(cloud, "web") == before
    agree(cloud)


def test_a_dead_supervisor_takes_nothing_with_it_and_up_brings_it_back(cloud: CloudHost, hello: Guest) -> None:
    before = daemons(cloud)
    kill(cloud, before["supervisor"])
    until(lambda: _is_well(cloud, hello), "all is well without a supervisor")
    cloud.up()
    after = daemons(cloud)
    assert after.pop("supervisor") != before.pop("supervisor")
    assert after == before


def test_a_guest_whose_process_dies_is_started_again_with_its_disk(cloud: CloudHost, web: Guest) -> None:
    killed = qemu(cloud, "web")
    web.run("echo survives > /srv/survives; sync")
    kill(cloud, killed)
    until(lambda: runs_anew(cloud, "web", killed) and instance(cloud, "web")["state"] == "running", "it runs again")
    assert web.awake().run("cat /srv/survives") == "survives\n"
    agree(cloud)


@pytest.mark.parametrize("name", ["controller", "agent", "libvirtd", "QEMU"])
def test_a_creation_that_is_broken_into_is_done_or_undone(cloud: CloudHost, name: str) -> None:
    before, bystander = daemons(cloud), qemu(cloud, "hello")
    begun = cloud.ask("instance create broken --image raw-one --flavor nano --no-wait")
    id = InstanceId(begun["instance"]["id"])
    process = cloud.layout.run / f"libvirt/qemu/{domain_name(id)}.pid"
    if name in ("controller", "agent"):
        [volume] = [each for each in cloud.records("volumes") if each["instance_id"] == id]
        until((cloud.data / f"volumes/volumes/{volume['id']}").exists, "the disk is there")
        kill(cloud, before[name])
    else:
        running = int(until(lambda: read(process), "its process is there"))
        kill(cloud, running if name == "QEMU" else before[name])

    def ended() -> Record | None:
        with suppress(AssertionError, OSError):
            task: Record = cloud.get(f"/v1/tasks/{begun['task_id']}")
            return task if task["ended_at"] else None
        return None

    task = until(ended, "the task has ended", within_s=300)
    print(f"{name} killed: the creation is {task['state']}; {task['cause']}")
    found = cloud.records("instances", "name=broken")
    assert (task["state"], len(found)) in {("done", 1), ("undone", 0)}
    agree(cloud)
    if found:
        cloud.cli("instance purge broken")
        agree(cloud)
    assert qemu(cloud, "hello") == bystander


# Debian.


@pytest.mark.slow
def test_a_full_debian_is_set_up_by_cloud_init(cloud: CloudHost) -> None:
    image = cache.debian()
    user_data = cloud.folder / "debian-user-data"
    user_data.write_text("#cloud-config\nruncmd:\n  - [sh, -c, 'cloud-init query ds.meta_data.name > /ran']\n")
    cloud.cli(f"image upload debian --file {image.path} --default-user debian --sha256 {image.sha256}")
    cloud.cli(
        "instance create large --image debian --vcpus 1 --memory-mib 640 --disk-gib 4 --keypair mine"
        f" --security-group default --security-group from-outside --user-data @{user_data}"
    )
    cloud.cli("floating-ip create --instance large")
    large = guest(cloud, "large", user="debian").awake(within_s=900)
    began = time.monotonic()
    until(lambda: large.run("cat /ran", accept=(0, 1)) == "large\n", "user data has run", within_s=600)
    print(f"cloud-init ended {time.monotonic() - began:.0f} s after SSH answered")
    seen = large.run("hostname; cloud-id; cat .ssh/authorized_keys; df --output=size -BG / | tail -n 1")
    assert seen.split()[:2] == ["large", "openstack"]
    assert (cloud.data / "ssh/id_ed25519.pub").read_text().split()[1] in seen
    assert seen.split()[-1] == "4G"
    large.comes_to_reach("web")
    its_agent_answers(cloud, "large")
    cloud.cli("instance purge large")


# Down, up again, and away.


def test_controller_and_agent_met_no_error_of_their_own_in_all_this(cloud: CloudHost) -> None:
    for name in ("controller", "agent"):
        log = (cloud.layout.log / f"{name}.log").read_text()
        assert [line for line in log.splitlines() if '"level": "error"' in line or line.startswith("Traceback")] == []


def test_down_stops_all_and_up_brings_all_back(cloud: CloudHost, web: Guest) -> None:
    before = cloud.records("instances")
    web.run("echo through the night > /srv/night; sync")
    cloud.up("--down")
    nothing_is_left(cloud)
    again = cloud.up()
    assert "Password" not in again
    assert web.awake().run("cat /srv/night /srv/told") == "through the night\nweb was told\n"
    agree(cloud)
    kept = ("id", "addresses", "floating_addresses", "state", "host_id")
    after = {each["id"]: each for each in cloud.records("instances")}
    assert [[each[name] for name in kept] for each in before] == [
        [after[each["id"]][name] for name in kept] for each in before
    ]


def test_purge_leaves_nothing(cloud: CloudHost) -> None:
    cloud.up("--purge")
    nothing_is_left(cloud)
    assert not cloud.data.exists()
    assert [*Path("/sys/fs/cgroup").glob(f"*/{libvirtd.cgroup(cloud.layout)}")] == []
