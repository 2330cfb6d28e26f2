"""The command line as a process of its own."""

import asyncio
import signal
import sys

import pytest

from pileus.kernel.errors import Unavailable

from .conftest import CommandLine

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def started(pileus: CommandLine, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "pileus",
        *arguments,
        env={**pileus.environ, "PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(filter(None, sys.path))},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        # Whoever runs tests in the background has them ignore it, and all that they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


async def test_a_process_prints_and_ends_with_its_status(pileus: CommandLine) -> None:
    process = await started(pileus, "flavors", "-o", "name")
    out, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert out.split()[0] == b"tiny"
    process = await started(pileus, "flavor", "show", "nothing")
    out, err = await process.communicate()
    assert (process.returncode, out) == (4, b"")
    assert err == b"error: there is no flavor 'nothing'\n"


async def test_ctrl_c_leaves_the_task_alone_and_says_how_to_go_on(pileus: CommandLine) -> None:
    for host in pileus.cloud.fleet.hosts:
        host.faults.fail("hypervisor.start", Unavailable("the hypervisor does not answer"), times=1000)
    try:
        process = await started(pileus, *["instance", "create", "patient", "--image", "mini", "--flavor", "tiny"])
        assert process.stderr is not None
        while b"waits" not in (line := await asyncio.wait_for(process.stderr.readline(), 60)):
            assert line
        process.send_signal(signal.SIGINT)
        _, rest = await asyncio.wait_for(process.communicate(), 60)
    finally:
        for host in pileus.cloud.fleet.hosts:
            host.faults.mend()
    assert process.returncode == 130
    assert b"Traceback" not in rest
    task = rest.decode().split("pileus task show ")[1].split(";")[0]
    assert (await pileus.ok("task", "show", task, "--wait", "-o", "json")).json["state"] == "done"


async def test_a_reader_who_leaves_ends_it_quietly(pileus: CommandLine) -> None:
    process = await started(pileus, "events", "--follow", "--after", "0", "-o", "json")
    assert process.stdout is not None
    await asyncio.wait_for(process.stdout.readline(), 60)
    process.stdout._transport.close()  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    await pileus.ok("network", "create", "something-happens")
    assert await asyncio.wait_for(process.wait(), 60) == 0
    assert process.stderr is not None
    assert await process.stderr.read() == b""
