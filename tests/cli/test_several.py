"""Verbs with several instances, against a real controller with simulated hosts."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from pileus.cloud.instances.model import INSTANCES
from pileus.kernel.errors import Conflict
from pileus.kernel.ids import new_id
from pileus.testing.cloud import KEEPING

from .conftest import CommandLine, Said, command_line

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pileus(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[CommandLine]:
    """One whose cloud keeps what is deleted."""
    async with command_line(tmp_path_factory.mktemp("cloud"), KEEPING) as pileus:
        yield pileus


async def some(pileus: CommandLine, *names: str) -> list[str]:
    """The ids of instances that run, each under its name."""
    line = ("--image", "mini", "--vcpus", "1", "--memory-mib", "64", "-q")
    return [(await pileus.ok("instance", "create", name, *line)).out.strip() for name in names]


def state(pileus: CommandLine, id: str) -> str:
    return pileus.cloud.state[INSTANCES].get(id).state


def results(said: Said) -> list[list[str]]:
    """What a table of results says, without ids."""
    return [line.split()[:2] for line in said.out.splitlines()[1:]]


async def test_every_verb_of_a_batch_takes_several_names_and_waits_for_all(pileus: CommandLine) -> None:
    ids = await some(pileus, "life-1", "life-2")
    for verb, becomes in (
        ("pause", "paused"),
        ("resume", "running"),
        ("suspend", "suspended"),
        ("start", "running"),
        ("reboot", "running"),
        ("reset", "running"),
        ("stop", "stopped"),
        ("delete", "deleted"),
        ("undelete", "stopped"),
    ):
        said = await pileus.ok("instance", verb, "life-1", ids[1], "life-1")
        assert said.out.splitlines()[0].split() == ["NAME", "RESULT", "ID"]
        assert results(said) == [["life-1", "done"], ["life-2", "done"]]
        assert [state(pileus, id) for id in ids] == [becomes, becomes]
        assert said.err.count(": done after") == 2
    assert (await pileus.ok("instance", "purge", *ids, "-q")).out.split() == ids
    assert (await pileus("instance", "show", ids[0])).status == 4


async def test_one_that_is_refused_keeps_no_other_from_it_and_decides_the_status(pileus: CommandLine) -> None:
    await some(pileus, "one", "two")
    await pileus.ok("instance", "change", "one", "--protected")
    said = await pileus("instance", "delete", "one", "two")
    assert said.status == 5
    assert results(said) == [["one", "refused"], ["two", "done"]]
    assert "error: one: instance one is protected" in said.err
    said = await pileus("instance", "purge", "one", "two", "-o", "json")
    assert said.status == 5
    first, second = said.json
    assert (first["result"], first["problem"]["status"]) == ("refused", 409)
    assert (second["result"], "problem" in second) == ("done", False)
    await pileus.ok("instance", "change", "one", "--no-protected")
    await pileus.ok("instance", "purge", "one")


async def test_a_task_that_fails_is_told_beside_those_that_do_not(pileus: CommandLine) -> None:
    ids = await some(pileus, "well", "ill")
    await pileus.ok("instance", "stop", "well", "ill")
    host = pileus.cloud.state[INSTANCES].get(ids[1]).host_id
    [its] = [each for each in pileus.cloud.fleet.hosts if each.id == host]
    its.faults.fail("hypervisor.start", Conflict("the guest does not want to"), times=1)
    said = await pileus("instance", "start", "ill", "well")
    its.faults.mend()
    assert said.status == 6
    assert sorted(row[1] for row in results(said)) == ["done", "undone"]
    assert "the guest does not want to" in said.err
    assert "look: pileus task show " in said.err
    await pileus.ok("instance", "purge", *ids)


async def test_with_a_wrong_name_nothing_is_done_and_all_wrong_names_are_told(pileus: CommandLine) -> None:
    [right] = await some(pileus, "right")
    nobody = new_id()
    before = pileus.cloud.state.sequence
    said = await pileus("instance", "stop", "right", "wrong", nobody, "false")
    assert said.status == 4
    assert all(f"  {name}: " in said.err for name in ("wrong", nobody, "false"))
    assert "  right: " not in said.err
    assert pileus.cloud.state.sequence == before
    twins = await some(pileus, "double", "double")
    said = await pileus("instance", "stop", "right", "wrong", "double")
    assert said.status == 5
    assert all(f"  {each}: " in said.err for each in ("wrong", "double", *twins))
    assert state(pileus, right) == "running"
    await pileus.ok("instance", "purge", right, *twins)


async def test_a_dry_run_shows_the_plan_of_each_and_does_nothing(pileus: CommandLine) -> None:
    ids = await some(pileus, "plan-1", "plan-2")
    before = pileus.cloud.state.sequence
    said = await pileus.ok("instance", "stop", "plan-1", "plan-2", "--dry-run")
    assert [line for line in said.out.splitlines() if line.startswith("would ")] == [
        "would stop instance plan-1",
        "would stop instance plan-2",
    ]
    said = await pileus("instance", "start", "plan-1", "plan-2", "--dry-run", "-o", "json")
    assert (said.status, [each["result"] for each in said.json]) == (5, ["refused", "refused"])
    said = await pileus.ok("instance", "purge", "plan-1", "plan-2", "--dry-run", "-o", "json")
    assert [each["plan"]["workflow"] for each in said.json] == ["instance.delete"] * 2
    assert pileus.cloud.state.sequence == before
    await pileus.ok("instance", "purge", *ids)


async def test_without_waiting_the_tasks_are_named(pileus: CommandLine) -> None:
    ids = await some(pileus, "later-1", "later-2")
    said = await pileus.ok("instance", "stop", "later-1", "later-2", "--no-wait")
    assert said.out.splitlines()[0].split() == ["NAME", "RESULT", "TASK"]
    assert results(said) == [["later-1", "begun"], ["later-2", "begun"]]
    for line in said.out.splitlines()[1:]:
        await pileus.ok("task", "show", line.split()[2], "--wait")
    await pileus.ok("instance", "purge", *ids)


async def test_what_one_instance_may_be_told_is_not_told_to_several(pileus: CommandLine) -> None:
    ids = await some(pileus, "boot-1", "boot-2")
    said = await pileus("instance", "start", *ids, "--boot-from", "cdrom")
    assert said.status == 2
    assert "--boot-from: of one instance only" in said.err
    await pileus.ok("instance", "purge", *ids)


async def test_a_batch_waits_and_fails_with_the_worst_of_it(pileus: CommandLine) -> None:
    created = ("create-many", "many", "--image", "mini", "--vcpus", "1", "--memory-mib", "64", "--count", "2")
    said = await pileus.ok("instance", *created, "--labels", "tier=many")
    assert results(said) == [["many-1", "done"], ["many-2", "done"]]
    await pileus.ok("instance", "stop", "many-1")
    said = await pileus("instance", "batch", "--action", "stop", "--labels", "tier=many")
    assert said.status == 5
    assert results(said) == [["many-1", "refused"], ["many-2", "done"]]
    said = await pileus.ok("instance", "batch", "--action", "purge", "--labels", "tier=many", "--dry-run")
    assert said.out.count("would delete instance many-") == 2
    await pileus.ok("instance", "batch", "--action", "purge", "--ids", "many-1", "--ids", "many-2")
    assert "no instances" in (await pileus.ok("instance", "batch", "--action", "stop", "--labels", "tier=many")).err
