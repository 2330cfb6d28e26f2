"""The small guest image, built from Debian packages and booted in plain QEMU with user-mode networking.

Four boots: from the metadata service (which at first is not ready), the same disk again with a config drive, a fresh
disk with UEFI and a NoCloud seed, and one whose metadata service comes late. Each test asks one of them one thing.
"""

import asyncio
import base64
import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TextIO

import cache
import pytest
from patience import BOOTS_WITHIN_S, WITHIN_S, until

from pileus.guestimage import BuiltImage, build
from pileus.guestimage.fat import fat16
from pileus.kernel.units import GIB, MIB

FIRMWARE = Path("/usr/share/OVMF/OVMF_CODE.fd")
NEEDED = ("qemu-system-x86_64", "qemu-img", "mke2fs", "apt-get", "dpkg-deb", "ssh", "ssh-keygen")
MISSING = [program for program in NEEDED if shutil.which(program) is None]

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]

Answer = dict[str, Any]

LEARNT = "(ready ip=169.254.77.5|configured) hostname=first source=metadata"
"""What a guest says that has been told who it is: before it lets anybody in, or, if its boot took long, later."""

# QEMU starts one of these per connection of the guest to the metadata address.
RELAY = """
import socket, sys, threading
link = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
def forward():
    while data := sys.stdin.buffer.raw.read(65536):
        link.sendall(data)
threading.Thread(target=forward, daemon=True).start()
while data := link.recv(65536):
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
"""


class Guest:
    """A running QEMU."""

    def __init__(
        self, folder: Path, disk: Path, *options: str, memory_mib: int = 128, metadata_port: int | None = None
    ) -> None:
        folder.mkdir()
        self._folder = folder
        # The network holds the metadata address: user-mode networking forwards only addresses inside of its own.
        network = "user,id=n0,net=169.254.0.0/16,dhcpstart=169.254.77.5,hostfwd=tcp:127.0.0.1:0-:22"
        network += ",hostfwd=tcp:127.0.0.1:0-:80"
        if metadata_port:
            relay = folder / "relay.py"
            relay.write_text(RELAY)
            network += f",guestfwd=tcp:169.254.169.254:80-cmd:{sys.executable} {relay} {metadata_port}"
        self._log = (folder / "qemu.log").open("w")
        self.process = subprocess.Popen(
            [
                *("qemu-system-x86_64", "-nodefaults", "-M", "q35", "-cpu", "qemu64", "-accel", "tcg,tb-size=64"),
                *("-m", str(memory_mib), "-smp", "1,maxcpus=2", "-display", "none", "-vga", "std"),
                *("-chardev", f"file,id=serial,path={folder}/serial", "-serial", "chardev:serial"),
                *("-qmp", f"unix:{folder}/qmp,server=on,wait=off"),
                *("-device", "virtio-serial-pci"),
                *("-chardev", f"socket,id=agent,path={folder}/agent,server=on,wait=off"),
                *("-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"),
                *("-blockdev", f"driver=qcow2,node-name=root,file.driver=file,file.filename={disk}"),
                *("-device", "virtio-blk-pci,drive=root,bootindex=1"),
                *("-netdev", network, "-device", "virtio-net-pci,netdev=n0,romfile="),
                *("-device", "pcie-root-port,id=port1,slot=1", "-device", "pcie-root-port,id=port2,slot=2"),
                *options,
            ],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        self._qmp = self._connect("qmp")
        self._qmp.readline()
        self.monitor("qmp_capabilities")

    def _connect(self, name: str) -> TextIO:
        def attempt() -> socket.socket | None:
            assert self.process.poll() is None, (self._folder / "qemu.log").read_text()
            link = socket.socket(socket.AF_UNIX)
            link.settimeout(WITHIN_S)
            try:
                link.connect(str(self._folder / name))
            except OSError:
                link.close()
                return None
            return link

        with until(attempt, f"QEMU opens {name}") as link:
            return link.makefile("rw")

    def monitor(self, command: str, /, **arguments: object) -> Answer:
        """One QMP command's answer."""
        return self._ask(self._qmp, command, arguments)

    def agent(self, command: str, /, **arguments: object) -> Answer:
        """One guest agent command's answer."""
        with closing(self._connect("agent")) as link:
            return self._ask(link, command, arguments)

    @staticmethod
    def _ask(link: TextIO, command: str, arguments: Mapping[str, object]) -> Answer:
        link.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        link.flush()
        while True:
            answer: Answer = json.loads(link.readline())
            assert "error" not in answer, answer
            if "return" in answer:
                return answer["return"]

    def serial(self) -> str:
        """Everything that the guest wrote to its serial console."""
        return (self._folder / "serial").read_text(errors="replace")

    def says(self, pattern: str) -> re.Match[str]:
        """Wait for a line of the guest."""

        def seen() -> re.Match[str] | None:
            assert self.process.poll() is None, "QEMU has ended"
            return re.search(f"pileus-guest: {pattern}", self.serial())

        try:
            return until(seen, pattern, within_s=BOOTS_WITHIN_S)
        except AssertionError:
            print(self.serial())
            raise

    def port(self, guest_port: int) -> int:
        """The port on loopback that leads to one of the guest."""
        table = str(self.monitor("human-monitor-command", **{"command-line": "info usernet"}))
        forwarded = re.search(rf"HOST_FORWARD\] +\d+ +127\.0\.0\.1 +(\d+) +\S+ +{guest_port} ", table)
        assert forwarded, table
        return int(forwarded[1])

    def ssh(self, command: str, *options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                # Of an option given twice ssh takes the first.
                *("ssh", "-F", "none", *options, "-o", "BatchMode=yes", "-o", "ConnectTimeout=120"),
                *("-o", "StrictHostKeyChecking=accept-new", "-o", f"UserKnownHostsFile={self._folder}/known_hosts"),
                *("-p", str(self.port(22))),
                *("-l", "root", "127.0.0.1", command),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=WITHIN_S,
            check=False,
        )

    def tells(self) -> Answer:
        """What its web server says."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port(80)}/", timeout=WITHIN_S) as answer:
            return json.load(answer)

    def press_power_button(self) -> None:
        self.monitor("system_powerdown")
        until(lambda: self.process.poll() is not None, "the guest shuts down")

    def end(self) -> None:
        self._qmp.close()
        self.process.kill()
        self.process.wait()
        self._log.close()


@contextmanager
def running(
    folder: Path, disk: Path, *options: str, memory_mib: int = 128, metadata_port: int | None = None
) -> Generator[Guest]:
    guest = Guest(folder, disk, *options, memory_mib=memory_mib, metadata_port=metadata_port)
    try:
        yield guest
    finally:
        guest.end()


class Metadata:
    """A metadata service that answers 503 to its first requests."""

    def __init__(self, answers: Mapping[str, str], unready: int) -> None:
        service = self
        self.unready = unready

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if service.unready:
                    service.unready -= 1
                    self.send_error(503)
                elif self.path not in answers:
                    self.send_error(404)
                else:
                    body = answers[self.path].encode()
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> "Metadata":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pileus-guest-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def image() -> BuiltImage:
    return cache.mini()


@pytest.fixture(scope="module")
def key(place: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", place / "key"], check=True, timeout=WITHIN_S)
    return place / "key"


@pytest.fixture(scope="module")
def public_key(key: Path) -> str:
    return key.with_suffix(".pub").read_text().strip()


def overlay(image: BuiltImage, disk: Path, size_bytes: int) -> Path:
    backing = ("-b", str(image.path), "-F", "qcow2")
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", *backing, str(disk), str(size_bytes)], check=True, timeout=WITHIN_S
    )
    return disk


@pytest.fixture(scope="module")
def disk(image: BuiltImage, place: Path) -> Path:
    return overlay(image, place / "disk.qcow2", GIB)


@pytest.fixture(scope="module")
def first_boot(place: Path, disk: Path, public_key: str) -> Iterator[Guest]:
    """Told by the metadata service who it is; the service is not ready at first."""
    answers = {
        "/latest/meta-data/instance-id": "i-0001",
        "/latest/meta-data/local-hostname": "first.cloud.test",
        "/latest/meta-data/public-keys/": "0=mine",
        "/latest/meta-data/public-keys/0/openssh-key": public_key,
        "/latest/user-data": "#!/bin/sh\necho the script ran on $(hostname)\n",
    }
    with Metadata(answers, unready=2) as service, running(place / "1", disk, metadata_port=service.port) as guest:
        guest.says("ready")
        guest.says(LEARNT)
        yield guest


@pytest.fixture(scope="module")
def extended(first_boot: Guest) -> Guest:
    """The guest of the first boot, given another network card, disk and CPU while it runs."""
    first_boot.monitor("netdev_add", type="user", id="n1", net="10.9.0.0/24")
    first_boot.monitor("device_add", driver="virtio-net-pci", id="nic1", netdev="n1", bus="port1", romfile="")
    first_boot.monitor(
        "blockdev-add", driver="null-co", **{"node-name": "extra", "size": 64 * MIB, "read-zeroes": True}
    )
    first_boot.monitor("device_add", driver="virtio-blk-pci", id="disk1", drive="extra", bus="port2")
    cpu = {"socket-id": 0, "core-id": 1, "thread-id": 0}
    first_boot.monitor("device_add", driver="qemu64-x86_64-cpu", id="cpu1", **cpu)
    return first_boot


@pytest.fixture(scope="module")
def second_boot(place: Path, disk: Path, first_boot: Guest, public_key: str) -> Iterator[Guest]:
    """The same disk, grown while it was off, and now with a config drive."""
    if first_boot.process.poll() is None:
        first_boot.press_power_button()
    subprocess.run(["qemu-img", "resize", "-q", str(disk), str(3 * GIB)], check=True, timeout=WITHIN_S)
    meta_data = {"uuid": "i-0001", "hostname": "second", "public_keys": {"mine": public_key + "\n"}}
    drive = place / "config-drive"
    files = {
        "openstack/latest/meta_data.json": json.dumps(meta_data).encode(),
        "openstack/latest/user_data": b"#!/bin/sh\necho once more\n",
    }
    drive.write_bytes(fat16(files, label="config-2", size_bytes=4 * MIB))
    with running(place / "2", disk, *raw_disk(drive)) as guest:
        guest.says("ready")
        yield guest


@pytest.fixture(scope="module")
def third_boot(place: Path, image: BuiltImage, public_key: str) -> Iterator[Guest]:
    """A fresh disk, started by UEFI, with a NoCloud seed."""
    if not FIRMWARE.exists():
        pytest.skip(f"{FIRMWARE} is missing (package ovmf)")
    seed = place / "seed"
    user_data = f"#cloud-config\nhostname: third\npassword: 'pass: word'\nssh_authorized_keys:\n  - {public_key}\n"
    files = {"meta-data": b"instance-id: i-0003\nlocal-hostname: other\n", "user-data": user_data.encode()}
    seed.write_bytes(fat16(files, label="cidata", size_bytes=4 * MIB))
    disk = overlay(image, place / "uefi.qcow2", image.virtual_size_bytes)
    firmware = ("-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={FIRMWARE}")
    # UEFI and GRUB together need more memory than the guest itself.
    with running(place / "3", disk, *raw_disk(seed), *firmware, memory_mib=256) as guest:
        guest.says("ready")
        yield guest


@pytest.fixture(scope="module")
def patient_boot(place: Path, image: BuiltImage, public_key: str) -> Iterator[Guest]:
    """A guest whose metadata service, this time OpenStack's, comes long after it."""
    meta_data = {"uuid": "i-0004", "hostname": "fourth", "public_keys": {"mine": public_key}}
    answers = {"/openstack/latest/meta_data.json": json.dumps(meta_data)}
    disk = overlay(image, place / "patient.qcow2", image.virtual_size_bytes)
    with (
        Metadata(answers, unready=sys.maxsize) as service,
        running(place / "4", disk, metadata_port=service.port) as guest,
    ):
        guest.says("ready ip=169.254.77.5 hostname=pileus source=none")
        service.unready = 0
        yield guest


def raw_disk(file: Path) -> tuple[str, ...]:
    node = f"driver=raw,node-name={file.name},read-only=on,file.driver=file,file.filename={file}"
    return ("-blockdev", node, "-device", f"virtio-blk-pci,drive={file.name}")


def test_the_image_is_small(image: BuiltImage) -> None:
    assert image.path.stat().st_size == image.size_bytes
    assert image.size_bytes < 45 * MIB


def test_building_again_changes_nothing(image: BuiltImage) -> None:
    said: list[str] = []
    assert asyncio.run(build(image.path, cache=cache.PACKAGES, say=said.append)) == image
    assert said == []


def test_building_elsewhere_gives_the_same_bytes(image: BuiltImage, place: Path) -> None:
    assert asyncio.run(build(place / "again.qcow2", cache=cache.PACKAGES)).sha256 == image.sha256


def test_a_guest_learns_from_the_metadata_service_who_it_is(first_boot: Guest) -> None:
    assert first_boot.says(r"address eth0 169\.254\.77\.5/16")
    assert first_boot.says(LEARNT)


def test_the_owner_of_the_key_is_let_in(first_boot: Guest, key: Path) -> None:
    answer = first_boot.ssh("hostname; id -u", "-i", str(key))
    assert answer.stdout == "first\n0\n", answer.stderr


def test_without_a_password_nobody_is_asked_for_one(first_boot: Guest) -> None:
    refused = first_boot.ssh("true", "-o", "PreferredAuthentications=password,keyboard-interactive")
    assert "Permission denied (publickey)" in refused.stderr


def test_a_script_in_user_data_runs(first_boot: Guest) -> None:
    first_boot.says("user-data: the script ran on first")
    first_boot.says("user-data ended with status 0")


def test_the_web_server_tells_about_the_guest(first_boot: Guest) -> None:
    told = first_boot.tells()
    assert (told["hostname"], told["instance_id"], told["source"]) == ("first", "i-0001", "metadata")
    assert (told["boots"], told["cpus"], told["addresses"]) == (1, 1, {"eth0": "169.254.77.5"})


def test_the_console_has_a_shell(first_boot: Guest) -> None:
    # It keeps the name that it began with, if it was told its own only later.
    until(lambda: re.search("root@(first|pileus):~#", first_boot.serial()), "a prompt on the serial console")


def test_the_guest_agent_answers_and_executes(first_boot: Guest) -> None:
    assert first_boot.agent("guest-ping") == {}
    started = first_boot.agent("guest-exec", path="/bin/uname", arg=["-n"], **{"capture-output": True})

    def ended() -> Answer | None:
        status = first_boot.agent("guest-exec-status", pid=started["pid"])
        return status if status["exited"] else None

    status = until(ended, "the command ends")
    assert (status["exitcode"], base64.b64decode(status["out-data"])) == (0, b"first\n")


def test_devices_may_be_added_while_the_guest_runs(extended: Guest) -> None:
    extended.says("disk vdb added")
    extended.says("cpu1 online")
    extended.says("address eth1 10.9.0.15/24")
    assert extended.tells()["cpus"] == 2


def test_classless_routes_and_mtu_of_a_lease_are_followed(extended: Guest, key: Path) -> None:
    extended.says("address eth1")
    lease = "interface=eth1 ip=10.9.0.15 mask=24 router=10.9.0.9 mtu=1442"
    routes = "169.254.1.1/32 10.9.0.2 10.77.0.0/16 192.0.2.1 10.78.0.0/16 0.0.0.0 0.0.0.0/0 10.9.0.3"
    put_into_effect = f"{lease} staticroutes='{routes}' /usr/lib/pileus/dhcp renew; ip route show dev eth1; ip link"
    answer = extended.ssh(put_into_effect, "-i", str(key)).stdout
    for route in (
        "default via 10.9.0.3",
        "169.254.1.1 via 10.9.0.2",
        "192.0.2.1 dev eth1 scope link",
        "10.77.0.0/16 via 192.0.2.1",
        "10.78.0.0/16 dev eth1 scope link",
    ):
        assert route in answer
    assert re.search("eth1: .* mtu 1442", answer)
    assert "10.9.0.9" not in answer


def test_the_data_partition_follows_a_disk_that_grows_under_the_running_guest(first_boot: Guest) -> None:
    before = first_boot.tells()["data_mib"]
    first_boot.monitor("block_resize", **{"node-name": "root", "size": 2 * GIB})
    first_boot.says("disk vda has 2048 MiB now")
    until(lambda: first_boot.tells()["data_mib"] > before + 900, "the file system has grown")


def test_the_agent_can_give_root_a_password(first_boot: Guest) -> None:
    password = base64.b64encode(b"a:better one").decode()
    assert first_boot.agent("guest-set-user-password", username="root", password=password, crypted=False) == {}
    refused = first_boot.ssh("true", "-o", "PreferredAuthentications=none")
    assert "Permission denied (publickey,password)" in refused.stderr


def test_the_power_button_shuts_down(first_boot: Guest) -> None:
    first_boot.press_power_button()
    assert "pileus-guest: stopping" in first_boot.serial()


def test_the_same_disk_counts_its_boots_and_has_grown(second_boot: Guest) -> None:
    told = second_boot.tells()
    assert told["boots"] == 2
    assert told["data_mib"] > 2800


def test_a_config_drive_is_preferred_to_the_network(second_boot: Guest, key: Path) -> None:
    assert second_boot.says("ready ip=169.254.77.5 hostname=second source=config-drive")
    assert second_boot.ssh("hostname", "-i", str(key)).stdout == "second\n"


def test_an_instance_keeps_its_identity_over_boots(first_boot: Guest, second_boot: Guest) -> None:
    host_key = r"ssh host key Fingerprint: (\S+)"
    assert second_boot.says(host_key)[1] in first_boot.serial()


def test_user_data_does_not_run_twice(second_boot: Guest) -> None:
    assert "once more" not in second_boot.serial()


def test_a_password_that_was_set_outlives_the_boot(second_boot: Guest) -> None:
    refused = second_boot.ssh("true", "-o", "PreferredAuthentications=none")
    assert "Permission denied (publickey,password)" in refused.stderr


def test_a_seed_of_nocloud_is_followed_and_uefi_boots(third_boot: Guest, key: Path) -> None:
    assert third_boot.says("ready ip=169.254.77.5 hostname=third source=nocloud")
    assert third_boot.ssh("test -d /sys/class/net/eth0 && hostname", "-i", str(key)).stdout == "third\n"


def test_a_password_of_user_data_opens_the_door(third_boot: Guest, place: Path) -> None:
    answer = place / "askpass"
    answer.write_text("#!/bin/sh\necho 'pass: word'\n")
    answer.chmod(0o700)
    options = ("-o", "BatchMode=no", "-o", "PreferredAuthentications=password")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SSH_ASKPASS", str(answer))
        environment.setenv("SSH_ASKPASS_REQUIRE", "force")
        assert third_boot.ssh("hostname", *options).stdout == "third\n"


def test_a_guest_waits_for_its_metadata_as_long_as_it_takes(patient_boot: Guest, key: Path) -> None:
    patient_boot.says("configured hostname=fourth source=metadata")
    assert patient_boot.ssh("hostname", "-i", str(key)).stdout == "fourth\n"
    assert patient_boot.tells()["instance_id"] == "i-0004"
