import os
import signal
from pathlib import Path

import pytest

from pileus.machine.daemons import Daemon, DaemonFailed, DaemonStatus, answers, until
from pileus.machine.layout import Layout
from pileus.machine.processes import identify, processes_below, read_pidfile, write_pidfile
from pileus.machine.supervised import Supervised
from pileus.machine.supervisor import Files

LISTENS = """
import socket, sys, time
listening = socket.socket(socket.AF_UNIX)
try: __import__("os").unlink(sys.argv[1])
except FileNotFoundError: pass
listening.bind(sys.argv[1])
listening.listen()
while True: time.sleep(60)
"""


def sleeper(name: str, layout: Layout) -> Daemon:
    # tail waits for ever, names the data folder on its command line, and is found on every Debian.
    return Daemon(name=name, command=("tail", "-f", str(layout.machine / "nothing"), "/dev/null"))


async def pid_of(supervised: Supervised, name: str) -> int | None:
    return next((each.pid for each in await supervised.status() if each.name == name), None)


async def came_back(supervised: Supervised, name: str, *, otherwise_than: int | None) -> bool:
    async def back() -> bool:
        return await pid_of(supervised, name) not in {None, otherwise_than}

    return await until(back, within_s=60)


async def test_a_daemon_that_is_killed_comes_back(supervised: Supervised, layout: Layout) -> None:
    await supervised.keep([sleeper("one", layout)])
    before = await pid_of(supervised, "one")
    assert before
    os.kill(before, signal.SIGKILL)
    assert await came_back(supervised, "one", otherwise_than=before)


async def test_keeping_twice_is_keeping_once(supervised: Supervised, layout: Layout) -> None:
    await supervised.keep([sleeper("one", layout)])
    before = await supervised.status()
    await supervised.keep([sleeper("one", layout)])
    assert await supervised.status() == before


async def test_a_daemon_whose_command_changed_is_started_anew(supervised: Supervised, layout: Layout) -> None:
    await supervised.keep([sleeper("one", layout)])
    before = await pid_of(supervised, "one")
    await supervised.keep([Daemon(name="one", command=("sleep", "1000"))])
    assert await pid_of(supervised, "one") not in {None, before}


async def test_a_new_supervisor_adopts_what_runs_and_starts_what_died(supervised: Supervised, layout: Layout) -> None:
    await supervised.keep([sleeper("stays", layout), sleeper("dies", layout)])
    stays, dies = [each.pid for each in await supervised.status()]
    supervisor = read_pidfile(Files(layout).pidfile)
    assert supervisor
    assert dies
    os.kill(supervisor.pid, signal.SIGKILL)

    async def gone() -> bool:
        return not supervisor.lives()

    assert await until(gone, within_s=60)
    os.kill(dies, signal.SIGKILL)
    await supervised.have_supervisor()
    assert await came_back(supervised, "dies", otherwise_than=dies)
    assert await pid_of(supervised, "stays") == stays
    assert stays
    os.kill(stays, signal.SIGKILL)
    assert await came_back(supervised, "stays", otherwise_than=stays)


async def test_a_daemon_is_kept_once_it_answers(supervised: Supervised, layout: Layout) -> None:
    socket = str(layout.run / "s")
    await supervised.keep([Daemon(name="one", command=("python3", "-c", LISTENS, socket), ready=f"unix:{socket}")])
    assert await answers(f"unix:{socket}")


async def test_a_daemon_that_died_often_is_still_kept_only_once_it_answers(
    supervised: Supervised, layout: Layout
) -> None:
    socket = layout.run / "s"
    daemon = Daemon(name="one", command=("python3", "-c", LISTENS, str(socket)), ready=f"unix:{socket}")
    for _ in range(3):
        await supervised.keep([daemon])
        killed = await pid_of(supervised, "one")
        assert killed
        os.kill(killed, signal.SIGKILL)
        assert await came_back(supervised, "one", otherwise_than=killed)
    await supervised.keep([daemon])
    assert await answers(f"unix:{socket}")


async def test_a_daemon_that_ends_at_once_is_refused_with_its_last_words(
    supervised: Supervised,
) -> None:
    with pytest.raises(DaemonFailed) as refusal:
        await supervised.keep([Daemon(name="one", command=("ls", "/no/such/file"), ready="unix:/no/such/socket")])
    assert "/no/such/file" in refusal.value.internal


async def test_a_program_that_is_not_there_is_refused(supervised: Supervised) -> None:
    with pytest.raises(DaemonFailed):
        await supervised.keep([Daemon(name="one", command=("/no/such/program",))])


async def test_a_daemon_that_is_dropped_stays_away(supervised: Supervised, layout: Layout) -> None:
    await supervised.keep([sleeper("stays", layout), sleeper("goes", layout)])
    goes = await pid_of(supervised, "goes")
    await supervised.drop(["goes"])
    assert [each.name for each in await supervised.status()] == ["stays"]
    assert goes
    assert identify(goes) is None


async def test_dropping_all_leaves_no_process(supervised: Supervised, layout: Layout) -> None:
    await supervised.keep([sleeper("one", layout), sleeper("two", layout)])
    assert len(processes_below(layout.data)) == 3
    await supervised.drop_all()
    assert processes_below(layout.data) == []
    assert await supervised.status() == []


async def test_dropping_all_works_without_a_supervisor(supervised: Supervised, layout: Layout) -> None:
    await supervised.keep([sleeper("one", layout)])
    supervisor = read_pidfile(Files(layout).pidfile)
    assert supervisor
    os.kill(supervisor.pid, signal.SIGKILL)
    await supervised.drop_all()
    assert processes_below(layout.data) == []


async def test_status_without_daemons_starts_no_supervisor(supervised: Supervised, layout: Layout) -> None:
    assert await supervised.status() == list[DaemonStatus]()
    assert processes_below(layout.data) == []


def test_a_pid_that_now_belongs_to_another_process_is_nobody(tmp_path: Path) -> None:
    me = identify(os.getpid())
    assert me
    write_pidfile(tmp_path / "me", me)
    assert read_pidfile(tmp_path / "me") == me
    (tmp_path / "other").write_text(f"{me.pid} {me.started_ticks - 1} {me.boot}")
    assert read_pidfile(tmp_path / "other") is None
    (tmp_path / "earlier").write_text(f"{me.pid} {me.started_ticks} another-boot")
    assert read_pidfile(tmp_path / "earlier") is None
    (tmp_path / "torn").write_text(f"{me.pid}")
    assert read_pidfile(tmp_path / "torn") is None
