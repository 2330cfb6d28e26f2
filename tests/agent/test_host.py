"""What a host is and how much of it is in use."""

from pathlib import Path

import pytest

from pileus.agent.host import LinuxHost

MEMINFO = "MemTotal:       16384000 kB\nMemFree:         1000000 kB\nMemAvailable:    4096000 kB\nBuffers: 1 kB\n"


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    folder = tmp_path / "proc"
    (folder / "sys/kernel/random").mkdir(parents=True)
    (folder / "sys/kernel/random/boot_id").write_text("9a2c\n")
    (folder / "meminfo").write_text(MEMINFO)
    (folder / "stat").write_text("cpu  100 0 100 700 100 0 0 0 0 0\ncpu0 1 1 1 1\n")
    return folder


async def test_the_load_of_the_cpu_is_that_since_the_last_look(proc: Path, tmp_path: Path) -> None:
    host = LinuxHost(tmp_path, proc=proc)
    (proc / "stat").write_text("cpu  160 0 115 725 100 0 0 0 0 0\n")
    assert (await host.load()).cpu == pytest.approx(0.75)
    (proc / "stat").write_text("cpu  160 0 115 800 125 0 0 0 0 0\n")
    assert (await host.load()).cpu == 0.0


async def test_a_look_too_soon_repeats_the_last_load(proc: Path, tmp_path: Path) -> None:
    host = LinuxHost(tmp_path, proc=proc)
    (proc / "stat").write_text("cpu  200 0 100 700 100 0 0 0 0 0\n")
    assert (await host.load()).cpu == (await host.load()).cpu == 1.0


async def test_memory_that_can_be_had_is_not_in_use(proc: Path, tmp_path: Path) -> None:
    assert (await LinuxHost(tmp_path, proc=proc).load()).memory == pytest.approx(0.75)


async def test_this_machine_can_be_measured(tmp_path: Path) -> None:
    host = LinuxHost(tmp_path, name="me")
    machine, load = await host.machine(), await host.load()
    assert machine.name == "me"
    assert machine.vcpus > 0
    assert machine.memory_mib > 0
    assert machine.disk_mib > 0
    assert all(0.0 <= part <= 1.0 for part in (load.cpu, load.memory, load.disk))
    assert host.boot
