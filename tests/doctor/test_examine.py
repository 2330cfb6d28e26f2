"""The whole examination, of clouds that need no engine."""

from pathlib import Path

from pileus.client.config import Config, save
from pileus.controller.compose import Controller, Settings, running
from pileus.doctor.examine import examine
from pileus.doctor.findings import Finding, Severity
from pileus.installation.backups import back_up
from pileus.kernel.clock import SystemClock
from pileus.kernel.ids import HostId
from pileus.link.certificates import AgentKey, Authority

SETTINGS = Settings(api_host="127.0.0.1", api_port=0, link_host="127.0.0.1", link_port=0)


async def ills(data: Path) -> list[Finding]:
    return [each for each in await examine(data) if each.severity is not Severity.OK]


def simulate_a_host(data: Path) -> None:
    folder = data / "hosts" / "host-1"
    folder.mkdir(parents=True)
    authority, key = Authority.create(SystemClock()), AgentKey()
    (folder / "agent.pem").write_bytes(
        key.with_certificate(authority.certify_host(key.signing_request(), HostId("host-1")))
    )


def write_client(data: Path, controller: Controller) -> None:
    assert controller.first is not None
    pem = controller.authority.pem.decode()
    url = f"https://127.0.0.1:{controller.api_port}"
    save(Config(url=url, authority=pem, token=controller.first.token), {"PILEUS_CONFIG": str(data / "cli.json")})


async def test_a_folder_without_a_cloud_is_said_to_be_one(tmp_path: Path) -> None:
    (finding,) = await examine(tmp_path)
    assert finding.what == f"there is no cloud in {tmp_path}"
    assert f"--data {tmp_path}" in finding.mend


async def test_a_simulated_cloud_is_examined_as_far_as_it_goes(tmp_path: Path) -> None:
    simulate_a_host(tmp_path)
    async with running(tmp_path / "controller", SETTINGS) as controller:
        write_client(tmp_path, controller)
        findings = await examine(tmp_path)
        assert {each.severity for each in findings} <= {Severity.OK, Severity.WARNING}
        assert {"controller", "tasks", "database", "secrets"} <= {each.what for each in findings}


async def test_a_controller_that_is_away_is_named_and_its_records_are_read(tmp_path: Path) -> None:
    simulate_a_host(tmp_path)
    async with running(tmp_path / "controller", SETTINGS) as controller:
        write_client(tmp_path, controller)
    findings = await examine(tmp_path)
    (away,) = [each for each in findings if each.severity is Severity.BROKEN]
    assert "the controller does not answer" in away.what
    assert "up --simulated 1" in away.mend
    assert "tasks" in {each.what for each in findings}


async def test_a_damaged_database_is_found_and_the_backup_named(tmp_path: Path) -> None:
    simulate_a_host(tmp_path)
    controller = tmp_path / "controller"
    async with running(controller, SETTINGS) as running_controller:
        write_client(tmp_path, running_controller)
        await back_up(controller, tmp_path / "good.db")
    with (controller / "state.db").open("r+b") as file:
        file.seek(8192)
        file.write(b"\xff" * 8192)
    (damaged,) = [each for each in await ills(tmp_path) if "damaged" in each.what]
    assert f"restore {tmp_path / 'good.db'}" in damaged.mend
