"""A whole cloud is broken in one way after another: the doctor names each, and what it says to type mends it."""

import json
import re
import subprocess
from collections.abc import Generator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from cloud_host import CloudHost, cloud_host, missing
from patience import WITHIN_S, read, until

from pileus.agent.daemon import IDENTITY
from pileus.installation.places import Places
from pileus.kernel.clock import FrozenClock
from pileus.kernel.ids import HostId, new_id
from pileus.link.certificates import AgentIdentity, AgentKey, Authority
from pileus.machine import libvirtd
from pileus.machine.engines import EngineAddresses, Engines

pytestmark = [pytest.mark.lab, pytest.mark.slow]

Finding = dict[str, str]


@pytest.fixture(scope="module")
def host() -> Generator[CloudHost]:
    if reason := missing():
        pytest.skip(reason)
    with cloud_host() as host:
        host.up()
        yield host


@pytest.fixture
def healthy(host: CloudHost) -> CloudHost:
    """The cloud with nothing wrong; what a test before has left is not this one's."""
    is_healthy(host)
    return host


def findings(host: CloudHost) -> list[Finding]:
    """All that is not well."""
    done = host.run("pileus", "doctor", "--data", str(host.data), "-o", "json", accept=(0, 1, 2))
    found = json.loads(done.stdout)
    worst = {"ok": 0, "warning": 1, "broken": 2}
    assert done.returncode == max(worst[each["severity"]] for each in found)
    return [each for each in found if each["severity"] != "ok"]


def is_healthy(host: CloudHost) -> None:
    """Nothing is wrong, but that daemons which tests have killed have died."""
    last: list[Finding] = []

    def nothing() -> bool:
        last[:] = [each for each in findings(host) if " times since the supervisor began" not in each["what"]]
        return not last

    try:
        until(nothing, "nothing is wrong")
    except AssertionError:
        pytest.fail(f"still wrong: {json.dumps(last, indent=1)}")


def named(host: CloudHost, what: str) -> Finding:
    """The finding that this describes."""

    def look() -> Finding | None:
        return next((each for each in findings(host) if re.search(what, each["what"])), None)

    return until(look, f"the doctor finds: {what}")


def mend(host: CloudHost, finding: Finding) -> None:
    """Type what the finding says, as an administrator does."""
    host.run("sh", "-c", finding["mend"], within_s=900)


def is_found_and_mended(host: CloudHost, what: str) -> None:
    mend(host, named(host, what))
    is_healthy(host)


def at(host: CloudHost) -> EngineAddresses:
    addresses = Engines(host.data, say=lambda _: None).addresses()
    assert addresses is not None
    return addresses


def pid(host: CloudHost, daemon: str) -> str:
    return until(lambda: read(host.layout.run / f"{daemon}.daemon").split(), f"{daemon} is kept")[0]


def control(host: CloudHost, program: str, database: str, *words: str) -> str:
    return host.run(at(host).programs(program), f"--db={database}", "--timeout=60", *words).stdout.strip()


def device(host: CloudHost) -> str:
    """The network device of the instance hello."""
    links: list[dict[str, Any]] = json.loads(host.run("ip", "-json", "link").stdout)
    return next(str(each["ifname"]) for each in links if each.get("ifalias", "").startswith("pileus-port:"))


def instance(host: CloudHost) -> str:
    return str(host.ask("instance list")[0]["id"])


def test_nothing_is_wrong_with_a_healthy_cloud(host: CloudHost) -> None:
    is_healthy(host)

    def says_so() -> bool:
        return "0 broken" in host.run("pileus", "doctor", "--data", str(host.data), accept=(0, 1, 2)).stdout

    until(says_so, "the doctor says so")


@pytest.mark.parametrize(
    ("command", "what"),
    [
        ("sysctl -qw net.ipv4.ip_forward=0 || echo 0 >/proc/sys/net/ipv4/ip_forward", "ip_forward is 0"),
        ("nft delete table ip pileus", "does not translate addresses"),
        ("ip address flush dev br-ex", "br-ex has not the address"),
        ("chmod 644 {data}/controller/authority/authority.pem", "authority.pem is open to others"),
        ("chmod 755 {data}/controller/authority", "authority is open to others"),
        ("chmod 644 {data}/cli.json", "cli.json is open to others"),
        ("chown nobody {data}/cli.json", "cli.json belongs to user"),
        (
            'umask 077; echo \'{{"password": "once", "token": "told"}}\' >{data}/first.json',
            "first password is still on disk",
        ),
        (
            "nft add table ip other; "
            "nft add chain ip other onward '{{ type filter hook forward priority 0; policy drop; }}'",
            "firewall drops what is forwarded",
        ),
    ],
)
def test_what_is_broken_on_the_machine_is_named_and_mended(healthy: CloudHost, command: str, what: str) -> None:
    healthy.run("sh", "-c", command.format(data=healthy.data))
    is_found_and_mended(healthy, what)


def test_a_dead_supervisor_is_missed(healthy: CloudHost) -> None:
    supervisor = (healthy.layout.run / "supervisor.pid").read_text(encoding="ascii").split()[0]
    healthy.run("kill", "-9", supervisor)
    healthy.run("kill", "-9", pid(healthy, "ovn-northd"))
    named(healthy, "ovn-northd does not run")
    is_found_and_mended(healthy, "the supervisor does not answer")


@pytest.mark.parametrize(
    ("daemon", "what"),
    [
        ("libvirtd", "libvirtd runs and does not answer"),
        ("ovn-sb", "ovn-sb runs and does not answer"),
        ("controller", "the controller does not answer"),
        ("agent", "the agent of this host is not connected"),
    ],
)
def test_a_daemon_that_hangs_is_named_and_replaced(healthy: CloudHost, daemon: str, what: str) -> None:
    hangs = pid(healthy, daemon)
    healthy.run("kill", "-STOP", hangs)
    is_found_and_mended(healthy, what)
    assert pid(healthy, daemon) != hangs


def test_a_daemon_that_dies_over_and_over_is_named(healthy: CloudHost) -> None:
    for _ in range(3):
        killed = pid(healthy, "ovn-northd")
        healthy.run("kill", "-9", killed)
        until(lambda killed=killed: pid(healthy, "ovn-northd") != killed, "it is started again")
    assert "ovn-northd.log" in named(healthy, r"ovn-northd died \d times")["mend"]
    is_healthy(healthy)


def test_the_records_are_compared_while_the_controller_is_away(healthy: CloudHost) -> None:
    stranger = healthy.data / "volumes/volumes" / new_id()
    stranger.mkdir()
    (stranger / "disk.raw").touch()
    healthy.run("kill", "-STOP", pid(healthy, "controller"))
    mend(healthy, named(healthy, stranger.name))
    assert not stranger.exists()
    is_found_and_mended(healthy, "the controller does not answer")


def test_a_port_without_a_guard_is_a_hole(healthy: CloudHost) -> None:
    if at(healthy).datapath != "netdev":
        pytest.skip("the kernel switches frames here: ports need no guards")
    healthy.run("nft", "delete", "chain", "netdev", "pileus", device(healthy))
    is_found_and_mended(healthy, "has no guard")


def test_a_guest_that_no_record_knows_is_named(healthy: CloudHost) -> None:
    id, uri = new_id(), at(healthy).libvirt_uri
    domain = ET.fromstring(healthy.run("virsh", "-c", uri, "dumpxml", "--inactive", instance(healthy)).stdout)
    for name, text in (("name", f"pileus-{id[-12:]}"), ("uuid", id)):
        found = domain.find(name)
        assert found is not None
        found.text = text
    definition = healthy.folder / "stranger.xml"
    ET.ElementTree(domain).write(definition)
    healthy.run("virsh", "-c", uri, "define", str(definition))
    is_found_and_mended(healthy, f"no record knows: {id}")


def test_a_process_that_libvirt_has_lost_is_named(healthy: CloudHost) -> None:
    words = ("qemu-system-x86_64", "-accel", "tcg", "-S", "-nodefaults", "-display", "none", "-m", "16")
    lost = healthy.start(*words, "-uuid", new_id(), log=healthy.folder / "lost.log")
    # Entering a namespace of processes takes a child.
    children = Path(f"/proc/{lost.pid}/task/{lost.pid}/children")
    child = until(lambda: children.read_text(encoding="ascii").strip(), "QEMU is started")
    group = libvirtd.cgroup(healthy.layout)
    for hierarchy in Path("/sys/fs/cgroup").glob(f"*/{group}/cgroup.procs"):
        hierarchy.write_text(child)
    is_found_and_mended(healthy, "which libvirt says does not run")
    lost.wait(timeout=WITHIN_S)


def test_a_device_that_no_record_knows_is_named(healthy: CloudHost) -> None:
    stopped = pid(healthy, "agent")
    healthy.run("kill", "-STOP", stopped)  # it would take the device away by itself
    healthy.run("ip", "tuntap", "add", "dev", "ptstranger", "mode", "tap")
    healthy.run("ip", "link", "set", "ptstranger", "alias", f"pileus-port:{new_id()}")
    mend(healthy, named(healthy, "ptstranger"))
    healthy.run("kill", "-CONT", stopped)
    is_healthy(healthy)


def test_a_port_that_ovn_has_not_connected_is_named(healthy: CloudHost) -> None:
    words = ("remove", "Interface", device(healthy), "external_ids", "iface-id")
    control(healthy, "ovs-vsctl", at(healthy).switch, *words)
    is_found_and_mended(healthy, "of hello is not up")


def test_a_port_in_ovn_that_no_record_knows_is_named(healthy: CloudHost) -> None:
    northbound = at(healthy).northbound
    assert northbound is not None
    switch = control(healthy, "ovn-nbctl", northbound, "--bare", "--columns=_uuid", "list", "Logical_Switch").split()[0]
    stopped = pid(healthy, "controller")
    healthy.run("kill", "-STOP", stopped)  # it would take the port away by itself
    control(healthy, "ovn-nbctl", northbound, "lsp-add", switch, "stranger")
    mend(healthy, named(healthy, "no record knows: stranger"))
    healthy.run("kill", "-CONT", stopped)
    is_healthy(healthy)


def test_a_certificate_that_is_over_is_replaced(healthy: CloudHost) -> None:
    places = Places.of(healthy.data)
    identity, key = AgentIdentity(places.agent / IDENTITY), AgentKey()
    authority = Authority.load_or_create(
        places.controller / "authority", FrozenClock(datetime.now(UTC) - timedelta(days=91))
    )
    identity.install(key, authority.certify_host(key.signing_request(), HostId(healthy.layout.identity())))
    healthy.run("kill", "-9", pid(healthy, "agent"))
    named(healthy, "the agent of this host is not connected")
    is_found_and_mended(healthy, "certificate of the agent is over")


def test_whoever_is_not_root_is_told_what_was_not_looked_at(healthy: CloudHost) -> None:
    nobody = ("setpriv", "--reuid=nobody", "--clear-groups", "pileus", "doctor", "--data", str(healthy.data))
    done = healthy.run(*nobody, accept=(1, 2))
    assert "not looked at: secrets" in done.stdout
    assert "mend   sudo pileus doctor" in done.stdout


def test_a_damaged_database_is_restored_from_the_backup(healthy: CloudHost) -> None:
    controller = healthy.data / "controller"
    healthy.run("pileus", "save", str(healthy.folder / "good.db"), "--data", str(controller))
    healthy.up("--down")
    with (controller / "state.db").open("r+b") as file:
        file.seek(8192)
        file.write(b"\xff" * 8192)
    is_found_and_mended(healthy, "the database is damaged")
    assert healthy.ask("instance list")[0]["name"] == "hello"


def test_a_cloud_that_was_taken_down_is_said_to_be(healthy: CloudHost) -> None:
    healthy.up("--down")
    assert [each["what"] for each in findings(healthy)] == ["the cloud is taken down"]
    is_found_and_mended(healthy, "taken down")


def test_a_disk_that_is_lost_is_named(healthy: CloudHost) -> None:
    (folder,) = (healthy.data / "volumes/volumes").iterdir()
    healthy.run("mv", str(folder), str(healthy.folder / "gone"))
    is_found_and_mended(healthy, "is not on this host's disk")


def test_a_folder_without_a_cloud_is_said_to_be_one(host: CloudHost) -> None:
    done: subprocess.CompletedProcess[str] = host.run(
        "pileus", "doctor", "--data", str(host.folder / "nowhere"), accept=(2,)
    )
    assert "there is no cloud in" in done.stdout
