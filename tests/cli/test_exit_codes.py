"""Each exit status, from a real controller with simulated hosts."""

import asyncio

import msgspec
import pytest

from pileus.cli.problems import EXIT_CODES, exit_code
from pileus.kernel.errors import Conflict, PileusError, Stale, TooLarge, TooMany
from pileus.kernel.errors import error_class as class_of_code
from pileus.testing.links import until
from pileus.workflow.task import TASKS, TaskState

from .conftest import CommandLine

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_0_what_was_asked_for_is_done(pileus: CommandLine) -> None:
    said = await pileus("flavor", "list", "-o", "name")
    assert said.status == 0
    assert said.out.split() == ["tiny", "small", "medium", "large", "xlarge"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("nonsense", "nonsense"),
        ("instance frobnicate", "frobnicate"),
        ("instance create", "NAME"),
        ("instance list --nonsense", "--nonsense"),
        ("instance list -o xml", "xml"),
        ("flavor create x --vcpus many --memory-mib 1 --disk-gib 1", "many"),
    ],
)
async def test_2_for_a_command_that_is_wrong(pileus: CommandLine, line: str, said: str) -> None:
    answer = await pileus(*line.split())
    assert answer.status == 2
    assert answer.err.startswith("error: ")
    assert said in answer.err
    assert answer.out == ""


async def test_2_for_a_request_that_is_wrong_with_every_wrong_field_by_its_option(pileus: CommandLine) -> None:
    said = await pileus("flavor", "create", "x", "--vcpus", "0", "--memory-mib", "1", "--disk-gib", "1")
    assert said.status == 2
    assert "  --vcpus: " in said.err
    assert "  --memory-mib: " in said.err
    assert "--disk-gib" not in said.err
    assert "  request: " in said.err


async def test_3_for_nobody(pileus: CommandLine, tmp_path_factory: pytest.TempPathFactory) -> None:
    stranger = pileus.as_another(tmp_path_factory.mktemp("stranger"), token="pileus_wrong")
    assert (await stranger("instance", "list")).status == 3


async def test_3_for_what_fits_nowhere_with_the_reason_of_each_host(pileus: CommandLine) -> None:
    said = await pileus("instance", "create", "huge", "--image", "mini", "--vcpus", "999", "--memory-mib", "64")
    assert said.status == 3
    assert {f"  host-{number}: " in said.err for number in (1, 2, 3)} == {True}
    assert "it would fit" in said.err


async def test_3_for_more_than_the_quota(pileus: CommandLine) -> None:
    await pileus.ok("project", "create", "poor", "--quota", "keypairs=0")
    said = await pileus("keypair", "create", "me", "--public-key", _KEY, "--project", "poor")
    assert said.status == 3
    assert "quota" in said.err


async def test_4_for_what_is_not_there(pileus: CommandLine) -> None:
    assert (await pileus("instance", "show", "nobody")).status == 4
    assert (await pileus("instance", "show", "00000000-0000-7000-8000-000000000000")).status == 4
    said = await pileus("instance", "create", "x", "--image", "nothing", "--flavor", "tiny")
    assert said.status == 4
    assert "  --image: not found" in said.err
    said = await pileus("instance", "create", "x", "--image", "nothing", "--flavor", "none", "--security-group", "no")
    wrong = [line.strip() for line in said.err.splitlines() if line.endswith(": not found")]
    assert wrong == ["--image: not found", "--flavor: not found", "--security-group: not found"]


async def test_5_for_a_state_that_forbids_it(pileus: CommandLine) -> None:
    await pileus.ok("instance", "create", "busy", "--image", "mini", "--flavor", "tiny")
    said = await pileus("instance", "start", "busy")
    assert said.status == 5
    assert "running" in said.err


async def test_5_for_a_name_that_several_have_with_their_ids(pileus: CommandLine) -> None:
    made = [
        (await pileus.ok("instance", "create", "twin", "--image", "mini", "--flavor", "tiny", "-q")).out.strip()
        for _ in range(2)
    ]
    said = await pileus("instance", "show", "twin")
    assert said.status == 5
    assert all(id in said.err for id in made)
    assert (await pileus.ok("instance", "show", made[1], "-o", "json")).json["id"] == made[1]


async def test_6_for_a_task_that_failed_and_was_undone(pileus: CommandLine) -> None:
    for host in pileus.cloud.fleet.hosts:
        host.faults.fail("hypervisor.start", Conflict("the guest does not want to"), times=1)
    try:
        said = await pileus("instance", "create", "unlucky", "--image", "mini", "--flavor", "tiny")
    finally:
        for host in pileus.cloud.fleet.hosts:
            host.faults.mend()
    assert said.status == 6
    assert "the guest does not want to" in said.err
    assert "make_disks: undone" in said.err
    task = said.err.split("pileus task show ")[1].split()[0]
    story = (await pileus.ok("task", "show", task)).out
    assert "instance.create unlucky: undone" in story
    assert "the guest does not want to (in start_guest)" in story
    assert (await pileus("instance", "show", "unlucky")).status == 4


async def _hardly(_: float) -> None:
    await asyncio.sleep(0.01)


async def test_7_for_a_task_of_which_something_is_left(pileus: CommandLine) -> None:
    cloud = pileus.cloud
    cloud.controller.engine.pause = _hardly
    for host in cloud.fleet.hosts:
        host.faults.fail("hypervisor.start", Conflict("the guest does not want to"))
        host.faults.fail("storage.remove", Conflict("the disk does not want to"), times=1000)
    try:
        said = await pileus("instance", "create", "sticky", "--image", "mini", "--flavor", "tiny")
        assert said.status == 7
        assert "the disk does not want to" in said.err
        task = said.err.split("pileus task show ")[1].split()[0]
        assert "stuck  " in (await pileus.ok("task", "show", task)).out
    finally:
        for host in cloud.fleet.hosts:
            host.faults.mend()
    await until(lambda: not cloud.state[TASKS].ids_by("state", TaskState.STUCK))


async def test_8_for_a_controller_that_does_not_answer(
    pileus: CommandLine, tmp_path_factory: pytest.TempPathFactory
) -> None:
    lost = pileus.as_another(tmp_path_factory.mktemp("lost"), url="https://127.0.0.1:9")
    lost.patience_s = 0.3
    said = await lost("instance", "list")
    assert said.status == 8
    assert "does not answer" in said.err


async def test_an_error_in_json_is_the_problem_document(pileus: CommandLine) -> None:
    said = await pileus("instance", "show", "00000000-0000-7000-8000-000000000000", "-o", "json")
    assert said.status == 4
    assert said.out == ""
    problem = msgspec.json.decode(said.err)
    assert problem["type"] == "/problems/not-found"
    assert problem["request"]


async def test_every_error_has_a_documented_status() -> None:
    assert {error: exit_code(error("x")) for error in (PileusError, Stale, TooLarge, TooMany)} == {
        PileusError: 1,
        Stale: 5,
        TooLarge: 2,
        TooMany: 3,
    }
    codes = [exit_code(class_of_code(code)("x")) for code in ("method-not-allowed", "timed-out", "quota-exceeded")]
    assert codes == [3, 8, 3]
    assert set(codes) <= set(EXIT_CODES)


_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPsBsaFKbVpxAVBVr7x5wQDbm3rXyA3Ro0C0E2Uh3h1P me@there"
