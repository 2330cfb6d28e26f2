import stat
from pathlib import Path

import pytest

from pileus.machine.daemons import Daemon
from pileus.machine.layout import Layout
from pileus.machine.supervised import Supervised
from pileus.machine.systemd import Systemd, supervisor_unit

# Keeps one file per unit and state, and writes down what it was asked to change.
FAKE = """#!/bin/sh
cd {folder}
case "$1" in
is-active|is-enabled) state=${{1#is-}}; [ -e "$2.$state" ] && echo $state || {{ echo not-$state; exit 3; }} ; exit 0 ;;
esac
echo "$@" >> said
for unit; do :; done
case "$1 $2" in
"enable --now") touch "$unit.active" "$unit.enabled" ;;
"disable --now") rm -f "$unit.active" "$unit.enabled" ;;
stop*) rm -f "$unit.active" ;;
disable*) rm -f "$unit.enabled" ;;
esac
"""


class FakeSystemctl:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.program = folder / "systemctl"
        self.program.write_text(FAKE.format(folder=folder))
        self.program.chmod(stat.S_IRWXU)

    def said(self) -> list[str]:
        try:
            return (self.folder / "said").read_text().splitlines()
        except FileNotFoundError:
            return []

    def is_(self, state: str, unit: str) -> bool:
        return (self.folder / f"{unit}.{state}").exists()


@pytest.fixture
def systemctl(tmp_path: Path) -> FakeSystemctl:
    return FakeSystemctl(tmp_path)


@pytest.fixture
def systemd(layout: Layout, supervised: Supervised, systemctl: FakeSystemctl) -> Systemd:
    return Systemd(layout, supervised, systemctl=str(systemctl.program), units=systemctl.folder)


LIBVIRTD = Daemon(name="libvirtd", command=("libvirtd",), unit="libvirtd.service")


async def test_a_daemon_with_a_unit_is_that_unit(systemd: Systemd, systemctl: FakeSystemctl) -> None:
    await systemd.keep([LIBVIRTD])
    assert systemctl.said() == ["enable --now libvirtd.service"]
    assert [(each.name, each.running) for each in await systemd.status()] == [("libvirtd.service", True)]


async def test_a_unit_that_was_off_is_off_again_in_the_end(systemd: Systemd, systemctl: FakeSystemctl) -> None:
    await systemd.keep([LIBVIRTD])
    await systemd.keep([LIBVIRTD])
    await systemd.drop_all()
    assert not systemctl.is_("active", "libvirtd.service")
    assert not systemctl.is_("enabled", "libvirtd.service")


async def test_a_unit_that_ran_before_us_runs_on_after_us(systemd: Systemd, systemctl: FakeSystemctl) -> None:
    for state in ("active", "enabled"):
        (systemctl.folder / f"libvirtd.service.{state}").touch()
    await systemd.keep([LIBVIRTD])
    await systemd.drop_all()
    assert systemctl.is_("active", "libvirtd.service")
    assert systemctl.is_("enabled", "libvirtd.service")


async def test_a_daemon_without_a_unit_is_looked_after_by_a_supervisor_that_is_one(
    systemd: Systemd, systemctl: FakeSystemctl, layout: Layout
) -> None:
    await systemd.keep([Daemon(name="own", command=("sleep", "1000"))])
    unit = systemctl.folder / f"pileus-{layout.tag}.service"
    assert unit.read_text() == supervisor_unit(layout)
    assert systemctl.said() == ["daemon-reload", f"enable --now {unit.name}"]
    assert [(each.name, each.running) for each in await systemd.status()] == [("own", True)]
    await systemd.drop_all()
    assert not unit.exists()
    assert await systemd.status() == []


def test_the_daemons_outlive_their_supervisor_under_systemd_too(layout: Layout) -> None:
    assert "KillMode=process\n" in supervisor_unit(layout)
