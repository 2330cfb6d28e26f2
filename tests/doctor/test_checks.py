"""Each check by examples: what was seen, and what is said of it."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pileus.doctor.checks import CHECKS, certificates, cloud, daemons, drift, judged, machine, network, secrets, storage
from pileus.doctor.facts import (
    Api,
    Certificate,
    Commands,
    Database,
    Facts,
    FileSystem,
    Found,
    HostSeen,
    InstanceSeen,
    KeptDaemon,
    LogicalPort,
    Machine,
    Network,
    NetworkSeen,
    Ovn,
    Pool,
    PortSeen,
    Process,
    Records,
    SecretFile,
    Secrets,
    Supervision,
    TaskSeen,
    Unseen,
    VolumeSeen,
)
from pileus.doctor.findings import Finding, Severity, broken, exit_status, ok, warning
from pileus.doctor.gather.records import steady
from pileus.kernel.units import GIB
from pileus.machine.daemons import DaemonStatus

NOW = datetime(2026, 11, 21, 3, 0, tzinfo=UTC)
AGO = NOW - timedelta(days=1)
DATA = Path("/srv/cloud one")
HOST, INSTANCE, VOLUME, PORT = "host-1", "instance-1", "volume-1", "port-1"


def daemon(name: str, *, runs: bool = True, restarts: int = 0, lives_s: float = 5.0) -> KeptDaemon:
    status = DaemonStatus(name=name, running=runs, pid=42 if runs else None, restarts=restarts)
    return KeptDaemon(status=status, last_words="" if runs else "out of luck", lives_s=lives_s)


SUPERVISION = Supervision(answers=True, daemons=(daemon("libvirtd"), daemon("controller"), daemon("agent")))
RECORDS = Records(
    source="the controller",
    hosts=(HostSeen(id=HOST, name="one", connected=True, since=AGO),),
    instances=(InstanceSeen(id=INSTANCE, revision=3, name="hello", state="running", host_id=HOST),),
    volumes=(
        VolumeSeen(
            id=VOLUME,
            revision=2,
            name="root",
            state="in-use",
            storage_pool="local",
            instance_id=INSTANCE,
            host_id=HOST,
        ),
    ),
    ports=(PortSeen(id=PORT, revision=1, instance_id=INSTANCE, host_id=HOST),),
    tasks=(),
    known=frozenset({INSTANCE, VOLUME, PORT}),
)
FOUND = Found(
    host=HOST,
    guests={INSTANCE: True},
    told=frozenset({INSTANCE}),
    processes=(Process(pid=7, guest=INSTANCE),),
    devices={"pt1": PORT},
    volumes={VOLUME: DATA / "volumes" / VOLUME},
    pools=(Pool(name="local", folder=DATA),),
)
AWAY = Pool(name="local", folder=Path("/srv/fast disk"), away="it has lost its marker")
HEALTHY = Facts(
    at=NOW,
    commands=Commands(data=DATA, default=False, libvirt_uri="qemu:///system", programs={"ovn-nbctl": "/x/ovn-nbctl"}),
    machine=Machine(has_kvm=True, accelerator="kvm", datapath="system", accelerator_reason="a guest ran"),
    supervision=SUPERVISION,
    api=Api(url="https://127.0.0.1:5870"),
    certificates=(Certificate(of="server", path=DATA / "server.pem", begins_at=AGO, ends_at=NOW + timedelta(days=60)),),
    file_systems=(
        FileSystem(of="pool local", path=DATA, used_bytes=10 * GIB, free_bytes=90 * GIB, used_inodes=1, free_inodes=99),
    ),
    database=Database(path=DATA / "state.db", size_bytes=1, events=5, last_event_at=AGO, begun_at=AGO),
    secrets=Secrets(files=(SecretFile(path=DATA / "cli.json", mode=0o600, owner=0),), owner=0),
    network=Network(
        forwards=True, masquerades=True, external_address="192.0.2.1/24", external_addresses=("192.0.2.1/24",)
    ),
    ovn=Ovn(chassis=HOST, registered=(HOST,), ports=(LogicalPort(name=PORT, up=True),)),
    records=RECORDS,
    found=FOUND,
)


def but(**changed: Any) -> Facts:
    return msgspec.structs.replace(HEALTHY, **changed)


def having(part: str, **changed: Any) -> Facts:
    """Healthy, but for these fields of one part."""
    return but(**{part: msgspec.structs.replace(getattr(HEALTHY, part), **changed)})


def severity(findings: list[Finding]) -> Severity:
    return max((each.severity for each in findings), key=list(Severity).index, default=Severity.OK)


Check = Callable[[Facts], list[Finding]]

EXAMPLES: list[tuple[Check, Facts, Severity, str]] = [
    (machine.packages, having("machine", missing_packages=("nftables",)), Severity.BROKEN, "apt-get install"),
    (machine.binding, having("machine", binding="no", binding_mend="apt-get it"), Severity.BROKEN, "apt-get it"),
    (machine.accelerator, having("machine", has_kvm=False), Severity.BROKEN, "pileus up"),
    (
        machine.accelerator,
        having("machine", has_kvm=False, accelerator="qemu", kvm_module="kvm_amd"),
        Severity.WARNING,
        "modprobe kvm_amd",
    ),
    (machine.accelerator, having("machine", has_kvm=False, accelerator="qemu"), Severity.OK, ""),
    (machine.devices, having("machine", has_tun=False), Severity.BROKEN, "modprobe tun"),
    (
        machine.datapath,
        having("machine", datapath="netdev", kernel_can_switch=True),
        Severity.WARNING,
        "modprobe openvswitch",
    ),
    (machine.unseen, but(unseen=(Unseen(what="x", why="y", denied=True),)), Severity.WARNING, "sudo pileus doctor"),
    (machine.unseen, but(unseen=(Unseen(what="x", why="y", daemon="libvirtd"),)), Severity.OK, ""),
    (machine.unseen, but(unseen=(Unseen(what="x", why="y", daemon="ovn-sb"),)), Severity.WARNING, "pileus doctor"),
    (daemons.installed, but(installed=False), Severity.BROKEN, "pileus up --data '/srv/cloud one'"),
    (daemons.installed, having("supervision", daemons=()), Severity.BROKEN, "pileus up"),
    (daemons.installed, having("supervision", daemons=(daemon("agent"),)), Severity.BROKEN, "pileus up"),
    (daemons.supervisor, having("supervision", answers=False), Severity.BROKEN, "pileus up"),
    (
        daemons.running,
        having("supervision", daemons=(daemon("ovn-nb", runs=False),)),
        Severity.BROKEN,
        "pileus up",
    ),
    (
        daemons.running,
        having("supervision", daemons=(daemon("ovn-nb", restarts=3),)),
        Severity.WARNING,
        "tail -n 50 '/srv/cloud one/log/ovn-nb.log'",
    ),
    (daemons.running, having("supervision", daemons=(daemon("ovn-nb", restarts=2),)), Severity.OK, ""),
    (daemons.running, having("supervision", daemons=(daemon("ovn-nb", restarts=9, lives_s=3600),)), Severity.OK, ""),
    (
        daemons.answering,
        but(unseen=(Unseen(what="guests", why="silence", daemon="libvirtd"),)),
        Severity.BROKEN,
        "kill -9 42",
    ),
    (cloud.api, having("api", failure="refused"), Severity.BROKEN, "kill -9 42"),
    (
        cloud.own_agent,
        having("records", hosts=(HostSeen(id=HOST, name="one", connected=False, since=AGO),)),
        Severity.BROKEN,
        "kill -9 42",
    ),
    (cloud.own_agent, having("records", hosts=()), Severity.BROKEN, "agent.log"),
    (
        cloud.other_hosts,
        having("records", hosts=(HostSeen(id="host-2", name="two", connected=False, since=AGO),)),
        Severity.BROKEN,
        "on two: pileus doctor",
    ),
    (
        cloud.tasks,
        having(
            "records",
            tasks=(TaskSeen(id="t", created_at=NOW, workflow="w", subject_name="hello", state="stuck"),),
        ),
        Severity.BROKEN,
        "task show t",
    ),
    (
        cloud.tasks,
        having(
            "records",
            tasks=(TaskSeen(id="t", created_at=AGO, workflow="w", subject_name="hello", state="running"),),
        ),
        Severity.WARNING,
        "task cancel t",
    ),
    (
        cloud.tasks,
        having(
            "records",
            tasks=(TaskSeen(id="t", created_at=NOW, workflow="w", subject_name="hello", state="running"),),
        ),
        Severity.OK,
        "",
    ),
    (cloud.clock, having("database", last_event_at=NOW + timedelta(minutes=1)), Severity.BROKEN, "date --utc --set"),
    (
        storage.inodes,
        but(file_systems=(FileSystem(of="d", path=DATA, used_bytes=1, free_bytes=9, used_inodes=96, free_inodes=4),)),
        Severity.BROKEN,
        "--inodes",
    ),
    (storage.database, having("database", damage="page 3"), Severity.BROKEN, "restore BACKUP"),
    (
        storage.database,
        having("database", damage="page 3", backup=Path("/b.db")),
        Severity.BROKEN,
        "pileus restore /b.db --data '/srv/cloud one/controller'",
    ),
    (storage.backup, having("database", begun_at=NOW - timedelta(days=8)), Severity.WARNING, "pileus save"),
    (storage.backup, having("database", backup_at=NOW - timedelta(days=8)), Severity.WARNING, "pileus save"),
    (storage.backup, having("database", backup_at=AGO), Severity.OK, ""),
    (storage.event_log, having("database", size_bytes=11 * GIB), Severity.WARNING, "events_kept_days"),
    (
        secrets.permissions,
        having("secrets", files=(SecretFile(path=DATA / "k", mode=0o640, owner=0),)),
        Severity.BROKEN,
        "chmod 600 '/srv/cloud one/k'",
    ),
    (
        secrets.permissions,
        having("secrets", files=(SecretFile(path=DATA / "k", mode=0o711, owner=0, is_folder=True),)),
        Severity.BROKEN,
        "chmod 700",
    ),
    (
        secrets.permissions,
        having("secrets", files=(SecretFile(path=DATA / "k", mode=0o600, owner=9),)),
        Severity.BROKEN,
        "chown 0",
    ),
    (secrets.first_password, having("secrets", first=DATA / "first.json"), Severity.WARNING, "pileus up"),
    (network.forwarding, having("network", forwards=False), Severity.BROKEN, "pileus up"),
    (network.external, having("network", external_addresses=None), Severity.BROKEN, "pileus up"),
    (network.external, having("network", external_addresses=()), Severity.BROKEN, "pileus up"),
    (network.external, having("network", masquerades=False), Severity.BROKEN, "pileus up"),
    (
        network.lines,
        having("records", lines=(NetworkSeen(id="line-1", name="line", kind="external", in_service=False),)),
        Severity.WARNING,
        "network enable line-1",
    ),
    (
        network.firewall,
        having("network", dropping=("ip filter FORWARD",)),
        Severity.WARNING,
        "nft insert rule ip filter FORWARD iifname br-ex accept",
    ),
    (network.guards, having("network", unguarded=("pt1",)), Severity.BROKEN, "nft add table netdev pileus"),
    (network.chassis, having("ovn", registered=()), Severity.BROKEN, "pileus up"),
    (network.ports, having("ovn", ports=(LogicalPort(name=PORT, up=False),)), Severity.BROKEN, "instance stop"),
    (drift.guests, having("found", guests={}), Severity.BROKEN, "instance start"),
    (drift.guests, having("found", guests={INSTANCE: False}), Severity.BROKEN, "instance start"),
    (
        drift.guests,
        having("found", guests={INSTANCE: True, "stranger": True}),
        Severity.BROKEN,
        "virsh -c qemu:///system destroy stranger && virsh -c qemu:///system undefine stranger",
    ),
    (
        drift.guests,
        having("found", guests={INSTANCE: True, "stranger": False}, told=frozenset({"stranger"})),
        Severity.BROKEN,
        "rm '/srv/cloud one/agent/records/guests/stranger.json' && kill -9 42 && virsh",
    ),
    (drift.processes, having("found", guests={INSTANCE: False}), Severity.BROKEN, "kill -9 7"),
    (drift.processes, having("found", guests={}, others=frozenset({INSTANCE})), Severity.OK, ""),
    (drift.devices, having("found", devices={"pt1": PORT, "pt2": "lost"}), Severity.WARNING, "ip link delete pt2"),
    (drift.devices, having("found", devices={}), Severity.BROKEN, "instance start"),
    (drift.volumes, having("found", volumes={}), Severity.BROKEN, "instance delete instance-1"),
    (drift.volumes, having("found", volumes={}, pools=(AWAY,)), Severity.OK, ""),
    (drift.pools, having("found", pools=(AWAY,)), Severity.BROKEN, "mount '/srv/fast disk'"),
    (
        drift.volumes,
        having("found", volumes={VOLUME: DATA, "lost": DATA / "lost"}),
        Severity.WARNING,
        "rm -r '/srv/cloud one/lost'",
    ),
    (drift.logical_ports, having("ovn", ports=()), Severity.BROKEN, "kill 42 && pileus up"),
    (
        drift.logical_ports,
        having("ovn", ports=(LogicalPort(name=PORT, up=True), LogicalPort(name="lost", up=False))),
        Severity.WARNING,
        "/x/ovn-nbctl lsp-del lost",
    ),
]


@pytest.mark.parametrize(("check", "facts", "how", "mend"), EXAMPLES)
def test_what_was_seen_is_judged(check: Check, facts: Facts, how: Severity, mend: str) -> None:
    findings = check(facts)
    assert severity(findings) is how
    assert how is Severity.OK or any(mend in each.mend for each in findings if each.severity is how)
    assert all(each.why and each.mend for each in findings if each.severity is not Severity.OK)


def test_every_check_finds_a_healthy_cloud_well() -> None:
    assert severity(judged(HEALTHY)) is Severity.OK


def test_every_check_has_an_example() -> None:
    shown = {check for check, *_ in EXAMPLES} | {certificates.remaining, storage.space, storage.promises}
    assert set(CHECKS) == shown


@pytest.mark.parametrize("check", CHECKS)
def test_a_check_says_nothing_of_what_was_not_looked_at(check: Check) -> None:
    assert severity(check(Facts(at=NOW, commands=HEALTHY.commands))) is Severity.OK


@pytest.mark.parametrize(
    ("of", "begins", "ends", "how"),
    [
        ("server", -60, 31, Severity.OK),
        ("server", -63, 27, Severity.WARNING),
        ("agent", -91, -1, Severity.BROKEN),
        ("agent", 1, 91, Severity.BROKEN),
        ("authority", -3000, 200, Severity.OK),
        ("authority", -3500, 100, Severity.WARNING),
    ],
)
def test_a_certificate_is_judged_by_the_days_that_it_has_left(of: str, begins: int, ends: int, how: Severity) -> None:
    seen = Certificate(of=of, path=DATA, begins_at=NOW + timedelta(days=begins), ends_at=NOW + timedelta(days=ends))
    assert severity(certificates.remaining(but(certificates=(seen,)))) is how


@pytest.mark.parametrize(
    ("used", "how"), [(79, Severity.OK), (80, Severity.WARNING), (94, Severity.WARNING), (95, Severity.BROKEN)]
)
def test_a_disk_is_judged_by_the_part_that_is_used(used: int, how: Severity) -> None:
    seen = FileSystem(of="pool local", path=DATA, used_bytes=used, free_bytes=100 - used)
    assert severity(storage.space(but(file_systems=(seen,)))) is how


@pytest.mark.parametrize(("grows", "how"), [(80, Severity.OK), (81, Severity.WARNING), (101, Severity.BROKEN)])
def test_promises_are_held_against_what_is_free(grows: int, how: Severity) -> None:
    seen = FileSystem(of="pool local", path=DATA, used_bytes=1, free_bytes=100, grows_bytes=grows)
    assert severity(storage.promises(but(file_systems=(seen,)))) is how


def test_a_cloud_that_is_down_is_told_once_and_not_in_twenty_ways() -> None:
    down = having("supervision", daemons=(), answers=False)
    down = msgspec.structs.replace(down, api=None, network=None, ovn=None, found=None, records=None)
    (finding,) = [each for each in judged(down) if each.severity is not Severity.OK]
    assert finding.what == "the cloud is taken down"


def test_what_changes_while_one_looks_is_no_drift() -> None:
    later = InstanceSeen(id="later", revision=1, name="later", state="building", host_id=HOST)
    gone = InstanceSeen(id="gone", revision=4, name="gone", state="deleting", host_id=HOST)
    (settled,) = RECORDS.instances
    moved = msgspec.structs.replace(settled, revision=4, state="stopped")
    before = msgspec.structs.replace(RECORDS, instances=(settled, gone), known=RECORDS.known | {"gone"})
    after = msgspec.structs.replace(RECORDS, instances=(moved, later), known=RECORDS.known | {"later"})
    seen = steady(before, after)
    assert (seen.instances, seen.volumes, seen.ports) == ((), (), ())
    assert {"gone", "later", INSTANCE} <= seen.known
    found = msgspec.structs.replace(FOUND, guests={INSTANCE: True, "later": True, "gone": True})
    assert severity(drift.guests(but(records=seen, found=found))) is Severity.OK


def test_the_exit_status_is_that_of_the_worst() -> None:
    well, bad = ok("a"), warning("b", why="c", mend="d")
    assert [exit_status(each) for each in ([], [well], [well, bad], [broken("e", why="f", mend="g"), bad])] == [
        0,
        0,
        1,
        2,
    ]
