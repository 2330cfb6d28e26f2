"""A controller loses its database, and makes it again from its host's agent while a real guest runs."""

import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from cloud_host import CloudHost, cloud_host, missing
from patience import read, until

from pileus.agent.hypervisor.libvirt.domain import domain_name
from pileus.kernel.ids import InstanceId

pytestmark = [pytest.mark.lab, pytest.mark.skipif(missing() is not None, reason=f"rebuild lab: {missing()}")]


@pytest.fixture(scope="module")
def cloud() -> Iterator[CloudHost]:
    with cloud_host() as host:
        host.up()
        yield host


def daemon(cloud: CloudHost, name: str) -> int:
    file = "supervisor.pid" if name == "supervisor" else f"{name}.daemon"
    return int(until(lambda: read(cloud.layout.run / file).split(), f"{name} is kept")[0])


def qemu(cloud: CloudHost, id: str) -> int:
    return int((cloud.layout.run / f"libvirt/qemu/{domain_name(InstanceId(id))}.pid").read_text())


def copies(cloud: CloudHost) -> dict[str, int]:
    """The revisions of the records that the host keeps, by id."""
    found = (json.loads(each.read_text()) for each in (cloud.data / "agent/records/copies").glob("*.json"))
    return {each["id"]: each["revision"] for each in found}


def test_a_lost_database_is_made_again_while_the_guest_runs_on(cloud: CloudHost) -> None:
    cloud.cli("instance change hello --labels tier=web --description kept")
    kinds = ("instances", "volumes", "ports", "networks", "subnets", "routers", "security-rules", "floating-ips")
    before = {kind: cloud.records(kind) for kind in kinds}
    hello = before["instances"][0]
    until(lambda: copies(cloud).get(hello["id"]) == hello["revision"], "the host has the newest copy")
    process, rows = qemu(cloud, hello["id"]), ports(cloud)

    supervisor, controller = daemon(cloud, "supervisor"), daemon(cloud, "controller")
    cloud.run("kill", "-STOP", str(supervisor))  # or it would start the controller again
    cloud.run("kill", "-KILL", str(controller))
    lost = cloud.folder / "lost"
    lost.mkdir()
    for file in (cloud.data / "controller").glob("state.db*"):
        shutil.move(file, lost)
    said = cloud.cli(f"rebuild --from-agents --data {cloud.data} --hosts 1")
    print(said)
    assert "rebuilt from 1 hosts" in said
    assert "passwords" in said
    cloud.run("kill", "-CONT", str(supervisor))
    until(lambda: daemon(cloud, "controller") != controller and _connected(cloud), "the host is back")

    for kind in kinds:
        known = lasting(before[kind])
        until(
            lambda kind=kind, known=known: lasting(cloud.records(kind)).items() >= known.items(),
            f"the {kind} are as they were",
        )
    assert qemu(cloud, hello["id"]) == process
    until(lambda: ports(cloud) == rows, "the network is as it was")
    cloud.cli("instance stop hello")
    cloud.cli("instance start hello")
    assert cloud.ask("instance show hello")["state"] == "running"


def lasting(records: list[dict[str, Any]]) -> dict[str, str]:
    """What of records is the same before and after, by id."""
    own = {"revision", "state_reason"}
    kept = ({name: value for name, value in each.items() if name not in own} for each in records)
    return {each["id"]: json.dumps(each, sort_keys=True) for each in kept}


def ports(cloud: CloudHost) -> list[str]:
    engines = json.loads((cloud.layout.machine / "engines.json").read_text())
    program = f"{engines['programs']['folders'][0]}/ovn-nbctl"
    command = (f"--db={engines['northbound']}", "--bare", "--columns=name", "list", "logical_switch_port")
    return sorted(cloud.run(program, *command).stdout.split())


def _connected(cloud: CloudHost) -> bool:
    try:
        return bool(cloud.get("/v1/hosts")["items"][0]["connected"])
    except (AssertionError, OSError):
        return False
