"""What the guest makes of meta-data and user-data: its awk programs, run by the awk of this machine."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

import pileus.guestimage

SCRIPTS = Path(pileus.guestimage.__file__).parent / "guest/usr/lib/pileus"
AWK = shutil.which("awk")

pytestmark = pytest.mark.skipif(AWK is None, reason="awk is not installed")


def scalars(program: str, text: str) -> list[tuple[str, str]]:
    assert AWK
    command = [AWK, "-f", str(SCRIPTS / program)]
    said = subprocess.run(command, input=text, capture_output=True, text=True, check=True, timeout=60).stdout
    return [(path, value) for path, _, value in (line.partition("\t") for line in said.splitlines())]


@pytest.mark.parametrize("indent", [None, 2])
def test_every_scalar_of_a_json_document_has_its_path(indent: int | None) -> None:
    document = {
        "uuid": "83679162-1378-4288-a2d4-70e13ec132aa",
        "public_keys": {"mine": "ssh-ed25519 AAAA me@there\n", "other": "ssh-rsa BBBB"},
        "files": [{"path": "/etc/a"}, {"path": 'with "quotes" and \\ and }'}],
        "empty": {},
        "none": [],
        "launch_index": 0,
        "flag": True,
        "hostname": "web, one",
    }
    assert scalars("json.awk", json.dumps(document, indent=indent)) == [
        ("uuid", "83679162-1378-4288-a2d4-70e13ec132aa"),
        ("public_keys/mine", "ssh-ed25519 AAAA me@there "),
        ("public_keys/other", "ssh-rsa BBBB"),
        ("files/0/path", "/etc/a"),
        ("files/1/path", 'with "quotes" and \\ and }'),
        ("launch_index", "0"),
        ("flag", "true"),
        ("hostname", "web, one"),
    ]


def test_a_broken_json_document_ends() -> None:
    assert AWK
    for text in ("", "{", '{"a"', '{"a": [1, ', '{"a": "b', "[[[[", '{"a" "b"}', "]"):
        subprocess.run(
            [AWK, "-f", str(SCRIPTS / "json.awk")], input=text.encode(), capture_output=True, timeout=60, check=False
        )


def test_a_simple_cloud_config_is_understood() -> None:
    text = """#cloud-config
# a comment
hostname: web   # of the shop
password: 'it''s: #secret'
ssh_authorized_keys:
  - ssh-ed25519 AAAA me@there
  - "ssh-rsa BBBB other"
chpasswd: {expire: false}
packages: [git, 'curl']
"""
    assert scalars("yaml.awk", text) == [
        ("hostname", "web"),
        ("password", "it's: #secret"),
        ("ssh_authorized_keys", ""),
        ("ssh_authorized_keys", "ssh-ed25519 AAAA me@there"),
        ("ssh_authorized_keys", "ssh-rsa BBBB other"),
        ("chpasswd", "{expire: false}"),
        ("packages", "git"),
        ("packages", "curl"),
    ]


def test_meta_data_of_nocloud_is_understood() -> None:
    text = "instance-id: iid-local01\r\nlocal-hostname: cloudimg\r\npublic-keys:\r\n- ssh-rsa AAAA\r\n"
    assert scalars("yaml.awk", text) == [
        ("instance-id", "iid-local01"),
        ("local-hostname", "cloudimg"),
        ("public-keys", ""),
        ("public-keys", "ssh-rsa AAAA"),
    ]
