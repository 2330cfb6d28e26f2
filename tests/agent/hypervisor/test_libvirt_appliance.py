"""What the appliance is given, and what it may say."""

import re
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree as ET

import pileus.guestimage
from pileus.agent.hypervisor.libvirt.appliance import DONE, REFUSALS, appliance_xml
from pileus.agent.hypervisor.libvirt.domain import Ground, domain_name
from pileus.agent.storage.port import DiskSource
from pileus.kernel.ids import InstanceId

INIT = Path(pileus.guestimage.__file__).parent / "within" / "init"
ID = InstanceId("0199aa00-0000-7000-8000-000000000001")
GROUND = Ground(accelerator="tcg", sockets=Path("/run/instances"), logs=Path("/log"), appliance=Path("/appliance"))


def test_its_script_can_be_parsed() -> None:
    shell = shutil.which("sh")
    assert shell
    subprocess.run([shell, "-n", str(INIT)], check=True, timeout=60)


def test_whatever_it_answers_its_host_has_words_for() -> None:
    script = "".join(line for line in INIT.read_text().splitlines(keepends=True) if not line.startswith("#"))
    answers = {*re.findall(r"\b(?:answer |said=)([a-z][\w-]*)", script)}
    (kinds,) = re.findall(r"for each in ([\w ]+); do\n        case", script)
    assert answers | set(kinds.split()) == {DONE, *REFUSALS}


def test_it_has_two_disks_a_little_memory_and_no_way_out() -> None:
    disk = DiskSource(kind="file", path="/volumes/root/layer.qcow2", format="qcow2")
    xml = ET.fromstring(appliance_xml(ID, disk, Path("/appliance/exchange.raw"), Path("/appliance"), GROUND))
    assert xml.findtext("name") != domain_name(ID)
    assert [each.tag for each in xml.iterfind("devices/*")] == ["disk", "disk", "controller", "memballoon"]
    sources = [each.get("file") for each in xml.iterfind("devices/disk/source")]
    assert sources == ["/volumes/root/layer.qcow2", "/appliance/exchange.raw"]
    assert [each.get("type") for each in xml.iterfind("devices/disk/driver")] == ["qcow2", "raw"]
    assert xml.findtext("memory") == "192"
    assert {xml.findtext(event) for event in ("on_poweroff", "on_reboot", "on_crash")} == {"destroy"}
