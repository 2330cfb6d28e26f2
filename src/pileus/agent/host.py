"""What a host is and how much of it is in use: from /proc, or made up for a simulated one."""

import asyncio
import os
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, Protocol

import msgspec
import structlog

from pileus.kernel.errors import PileusError
from pileus.kernel.programs import run
from pileus.kernel.units import MIB
from pileus.link.guests import GuestSpec
from pileus.link.hosts import Load

_GUESTS_PER_CPU: Final = 4
"""How many vCPUs of simulated guests keep a simulated CPU busy."""

log = structlog.stdlib.get_logger()


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """The size of a host, and where it is."""

    name: str
    vcpus: int
    memory_mib: int
    disk_mib: int
    addresses: tuple[str, ...] = ()


class Host(Protocol):
    """The machine that an agent runs on."""

    @property
    def boot(self) -> str:
        """The name of this boot; the next one has another."""
        ...

    async def machine(self) -> Machine: ...

    async def load(self) -> Load:
        """What is in use; for the CPU, since the call before."""
        ...


class LinuxHost:
    """This very machine. `data` is where volumes are, whose file system's size and use are the disk's.

    `run` tells apart what one boot of the machine cannot: that the host was taken down with its guests, and up again.
    """

    def __init__(self, data: Path, *, name: str = "", run: str = "", proc: Path = Path("/proc")) -> None:
        self._data = data
        self._run = run
        self._name = name or socket.gethostname()
        self._proc = proc
        self._cpu_before = self._cpu()
        self._cpu_load = 0.0

    @property
    def boot(self) -> str:
        return (self._proc / "sys/kernel/random/boot_id").read_text().strip() + self._run

    async def machine(self) -> Machine:
        disk = os.statvfs(self._data)
        return Machine(
            name=self._name,
            vcpus=len(os.sched_getaffinity(0)),
            memory_mib=self._memory()["MemTotal"] // 1024,
            disk_mib=disk.f_blocks * disk.f_frsize // MIB,
            addresses=await _addresses(),
        )

    async def load(self) -> Load:
        disk, memory = await asyncio.to_thread(os.statvfs, self._data), self._memory()
        return Load(
            cpu=self._measure_cpu(),
            memory=_part(memory["MemTotal"] - memory["MemAvailable"], memory["MemTotal"]),
            disk=_part(disk.f_blocks - disk.f_bavail, disk.f_blocks),
        )

    def _measure_cpu(self) -> float:
        now = self._cpu()
        busy, total = now[0] - self._cpu_before[0], now[1] - self._cpu_before[1]
        # The kernel counts in ticks: too soon after the last look there is nothing to divide by.
        if total > 0:
            self._cpu_before, self._cpu_load = now, _part(busy, total)
        return self._cpu_load

    def _cpu(self) -> tuple[int, int]:
        """Busy and all ticks of all CPUs since boot (proc_stat(5): user nice system idle iowait irq softirq steal)."""
        with (self._proc / "stat").open() as file:
            ticks = [int(each) for each in file.readline().split()[1:9]]
        return sum(ticks) - ticks[3] - ticks[4], sum(ticks)

    def _memory(self) -> dict[str, int]:
        """The first lines of meminfo, in KiB; among them MemTotal and MemAvailable."""
        with (self._proc / "meminfo").open() as file:
            words = [file.readline().split() for _ in range(3)]
        return {name.rstrip(":"): int(amount) for name, amount, *_ in words}


class SimulatedHost:
    """A machine that is not there. Its load is what its guests would make."""

    def __init__(
        self,
        machine: Machine,
        *,
        boot: str = "simulated",
        guests: Callable[[], Iterable[GuestSpec]] = tuple,
    ) -> None:
        """A machine of this size on which `guests` run now."""
        self.boot = boot
        self._machine = machine
        self._guests = guests

    async def machine(self) -> Machine:
        return self._machine

    async def load(self) -> Load:
        guests = list(self._guests())
        return Load(
            cpu=_part(sum(guest.vcpus for guest in guests), self._machine.vcpus * _GUESTS_PER_CPU),
            memory=_part(sum(guest.memory_mib for guest in guests), self._machine.memory_mib),
            disk=0.0,
        )


class _Address(msgspec.Struct):
    local: str = ""
    """Missing of an address of another scope than was asked for: of that iproute2 leaves an empty object."""


class _Interface(msgspec.Struct):
    addr_info: list[_Address] = []


async def _addresses() -> tuple[str, ...]:
    try:
        said = await run("ip", "-json", "address", "show", "scope", "global", timeout_s=5)
        interfaces = msgspec.json.decode(said, type=list[_Interface])
    except (PileusError, msgspec.DecodeError) as why:
        log.warning("the host's addresses are not known", why=str(why))
        return ()
    return tuple(address.local for interface in interfaces for address in interface.addr_info if address.local)


def _part(some: int, all: int) -> float:
    return min(1.0, max(0.0, some / all)) if all else 0.0
