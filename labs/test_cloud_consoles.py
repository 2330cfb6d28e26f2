"""The consoles of a guest of a whole real cloud, as its owner uses them: by command, by viewer, by picture."""

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cloud_host import CloudHost, cloud_host, missing
from patience import BOOTS_WITHIN_S, WITHIN_S, read, until

from pileus.machine import libvirtd

pytestmark = [pytest.mark.lab, pytest.mark.skipif(missing() is not None, reason=f"cloud lab: {missing()}")]

VIEWER = str(Path(__file__).with_name("rfb.py"))


@pytest.fixture(scope="module")
def cloud() -> Iterator[CloudHost]:
    with cloud_host() as host:
        host.up()
        until(lambda: "root@" in host.cli("instance log hello"), "it boots", within_s=BOOTS_WITHIN_S)
        yield host


def seen(cloud: CloudHost, password: str = "") -> tuple[list[str], str]:
    """What a viewer sees that `instance vnc` has brought to the screen, and the password that it printed."""
    said = cloud.folder / "vnc.log"
    vnc = cloud.start("pileus", "instance", "vnc", "hello", log=said)
    until(lambda: "connect a VNC viewer" in read(said), "the way to the screen is told")
    address, printed, *_ = said.read_text().splitlines()
    host, _, port = address.partition(":")
    shown = cloud.run(sys.executable, VIEWER, host, port, password or printed).stdout.split()
    assert vnc.wait(timeout=WITHIN_S) == 0
    return shown, printed


def test_an_ordinary_viewer_sees_the_guest_with_the_password_of_the_moment_only(cloud: CloudHost) -> None:
    (width, height, colours), first = seen(cloud)
    assert (int(width) >= 640, int(height) >= 350, int(colours) > 1) == (True, True, True)
    shown, second = seen(cloud, password=first)
    assert first != second
    assert shown == ["refused"]


def test_the_screen_listens_nowhere_but_for_the_link(cloud: CloudHost) -> None:
    listening = cloud.run("ss", "--listening", "--tcp", "--udp", "--processes", "--no-header").stdout.splitlines()
    assert [each for each in listening if "qemu-system" in each] == []
    assert (
        "<graphics type='vnc'"
        in cloud.run("virsh", "--connect", libvirtd.uri(cloud.layout), "dumpxml", domain(cloud)).stdout
    )


def test_a_picture_of_the_guest_is_had_by_command(cloud: CloudHost) -> None:
    cloud.cli(f"instance screenshot hello --file {cloud.folder}/hello.png")
    picture = (cloud.folder / "hello.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert min(struct.unpack(">II", picture[16:24])) > 300


def test_a_password_is_set_by_the_guest_itself_and_kept_nowhere(cloud: CloudHost) -> None:
    """By its real qemu-guest-agent, and seen on its serial console."""
    answer = json.loads(until(lambda: attempt(cloud), "the guest's agent answers"))
    assert answer["user"] == "root"
    assert set(answer) == {"user", "password"}
    assert "root:$" in guest_says(cloud, "cat /etc/shadow")
    assert "no such user" in cloud.refused("instance reset-password hello --user nobody-here", status=5)
    for log in (
        *(cloud.data / "log").rglob("*"),
        *(cloud.data / "controller").rglob("*"),
        *(cloud.data / "agent").rglob("*"),
    ):
        if log.is_file():
            assert answer["password"].encode() not in log.read_bytes(), log


def attempt(cloud: CloudHost) -> str | None:
    done = cloud.run("pileus", "instance", "reset-password", "hello", "-o", "json", accept=(0, 5, 6, 8))
    return done.stdout if done.returncode == 0 else None


def guest_says(cloud: CloudHost, command: str) -> str:
    """What a command says on the guest's serial console, where somebody is signed in."""
    said = cloud.folder / "console.log"
    console = cloud.start("pileus", "instance", "console", "hello", log=said)
    until(lambda: "Ctrl-] leaves" in read(said), "the console is open")
    assert console.stdin is not None
    console.stdin.write(f"{command}; echo $((6*7))end\r")
    console.stdin.flush()
    until(lambda: "42end" in read(said), f"{command} is done")
    console.stdin.write("\x1d")
    console.stdin.flush()
    assert console.wait(timeout=WITHIN_S) == 0
    return read(said)


def test_the_log_outlives_the_guests_run_and_the_log_of_events_tells_who_was_there(cloud: CloudHost) -> None:
    said = cloud.cli("instance log hello")
    cloud.cli("instance stop hello")
    assert cloud.cli("instance log hello").startswith(said)
    assert len(cloud.cli("instance log hello --tail 2").splitlines()) <= 2
    told = ["instance.console", "instance.console_closed"] * 3
    until(lambda: [each["operation"] for each in cloud.ask("event list --kind console")] == told, "all of it is told")
    assert "no console" in cloud.refused("instance vnc hello", status=5)


def domain(cloud: CloudHost) -> str:
    return cloud.run("virsh", "--connect", libvirtd.uri(cloud.layout), "list", "--name").stdout.strip()
