from pathlib import Path

import msgspec
import pytest

from pileus.kernel.errors import Unavailable
from pileus.machine.ovnprefix import OvnPrograms, version


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("ovs-vswitchd (Open vSwitch) 3.5.0\n", (3, 5)),
        ("ovn-controller 25.03.0\nOpen vSwitch Library 3.5.0\n", (25, 3)),
        ("", (0, 0)),
    ],
)
def test_a_version_is_read_from_what_a_program_says(said: str, meant: tuple[int, int]) -> None:
    assert version(said) == meant


def test_a_program_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    programs = OvnPrograms(folders=(str(tmp_path),), schemas="", ovs="3.5", ovn="25.03", own=True)
    with pytest.raises(Unavailable, match="ovs-vsctl"):
        programs("ovs-vsctl")
    (tmp_path / "ovs-vsctl").touch(mode=0o755)
    assert programs("ovs-vsctl") == str(tmp_path / "ovs-vsctl")


def test_the_programs_of_a_prefix_are_read_as_they_were_written(tmp_path: Path) -> None:
    programs = OvnPrograms(folders=(str(tmp_path),), schemas="/s", ovs="3.5", ovn="25.03", own=True)
    assert msgspec.json.decode(msgspec.json.encode(programs), type=OvnPrograms) == programs
