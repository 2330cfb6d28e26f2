"""Daemons on a machine with systemd: the distribution's units where there are such, and one unit for our supervisor."""

import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from pileus.kernel.files import write_atomically
from pileus.kernel.programs import run
from pileus.machine.daemons import Daemon, DaemonStatus
from pileus.machine.layout import Layout
from pileus.machine.processes import python_environment
from pileus.machine.supervised import Supervised


class _Unit(msgspec.Struct, frozen=True):
    """A unit of the distribution's that we use, and how it was before."""

    name: str
    was_enabled: bool
    was_active: bool


class Systemd:
    """The port `Daemons` by systemd.

    A daemon that names a unit of the distribution's is that unit, enabled and started. All others are looked after by
    our own supervisor, which systemd starts at boot and whenever it dies; they are not touched when it does.
    """

    def __init__(
        self,
        layout: Layout,
        supervised: Supervised,
        *,
        systemctl: str = "systemctl",
        units: Path = Path("/etc/systemd/system"),
    ) -> None:
        self._layout = layout
        self._supervised = supervised
        self._systemctl = systemctl
        self._unit = units / f"pileus-{layout.tag}.service"
        self._used = layout.machine / "units.json"

    async def keep(self, daemons: Sequence[Daemon]) -> None:
        for name in dict.fromkeys(each.unit for each in daemons if each.unit is not None):
            await self._use(name)
        ours = [each for each in daemons if each.unit is None]
        if ours:
            await self._have_supervisor()
            await self._supervised.keep(ours)

    async def drop(self, names: Sequence[str]) -> None:
        await self._supervised.drop(names)

    async def drop_all(self) -> None:
        if self._unit.exists():
            await run(self._systemctl, "disable", "--now", self._unit.name)
            self._unit.unlink()
            await run(self._systemctl, "daemon-reload")
        await self._supervised.drop_all()
        for unit in reversed(self._read_used()):
            if not unit.was_active:
                await run(self._systemctl, "stop", unit.name, timeout_s=90)
            if not unit.was_enabled:
                await run(self._systemctl, "disable", unit.name)
        self._used.unlink(missing_ok=True)

    async def status(self) -> list[DaemonStatus]:
        units = [
            DaemonStatus(name=each.name, running=await self._is("active", each.name)) for each in self._read_used()
        ]
        return [*units, *await self._supervised.status()]

    async def _use(self, name: str) -> None:
        used = self._read_used()
        if all(each.name != name for each in used):
            unit = _Unit(name, was_enabled=await self._is("enabled", name), was_active=await self._is("active", name))
            # Written down before it is changed.
            write_atomically(self._used, msgspec.json.encode([*used, unit]), mode=0o644)
        await run(self._systemctl, "enable", "--now", name, timeout_s=90)

    async def _is(self, what: str, unit: str) -> bool:
        return (await run(self._systemctl, f"is-{what}", unit, accept=range(16))).strip() == what

    def _read_used(self) -> list[_Unit]:
        try:
            return msgspec.json.decode(self._used.read_bytes(), type=list[_Unit])
        except FileNotFoundError:
            return []

    async def _have_supervisor(self) -> None:
        content = supervisor_unit(self._layout).encode()
        if not self._unit.exists() or self._unit.read_bytes() != content:
            write_atomically(self._unit, content, mode=0o644)
            await run(self._systemctl, "daemon-reload")
        await run(self._systemctl, "enable", "--now", self._unit.name)


def supervisor_unit(layout: Layout) -> str:
    """The unit of our supervisor; `KillMode=process`, because the daemons outlive it."""
    environment = "".join(f'Environment="{name}={value}"\n' for name, value in python_environment().items())
    return (
        "[Unit]\n"
        f"Description=Pileus daemons of {layout.data}\n"
        "After=network-online.target\n"
        "Wants=network-online.target\n"
        "[Service]\n"
        f"{environment}"
        f'ExecStart="{sys.executable}" -m pileus.machine.supervisor "{layout.data}"\n'
        "KillMode=process\n"
        "Restart=always\n"
        "RestartSec=1\n"
        "[Install]\n"
        "WantedBy=multi-user.target\n"
    )
