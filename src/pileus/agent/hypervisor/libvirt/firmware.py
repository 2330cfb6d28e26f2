"""What this machine can give to guests besides a BIOS, as traits of the host."""

import json
import shutil
from pathlib import Path

from pileus.link.templates import TPM, UEFI

_DESCRIPTIONS = Path("/usr/share/qemu/firmware")
"""Of firmware images, by which libvirt chooses: https://gitlab.com/qemu-project/qemu/-/blob/master/docs/interop/firmware.json"""
_TPM_PROGRAMS = ("swtpm", "swtpm_setup", "swtpm_ioctl")


def traits(descriptions: Path = _DESCRIPTIONS) -> frozenset[str]:
    """`uefi`, if there is firmware with and without Secure Boot; `tpm`, if there is an emulator of one."""
    found: set[str] = set()
    enrolled = {_has_keys(each) for each in descriptions.glob("*x86_64*.json")}
    if {True, False} <= enrolled:
        found.add(UEFI)
    if all(shutil.which(each) for each in _TPM_PROGRAMS):
        found.add(TPM)
    return frozenset(found)


def _has_keys(description: Path) -> bool | None:
    """Whether a firmware comes with Microsoft's keys; None for what cannot be read."""
    try:
        features = json.loads(description.read_bytes())["features"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return "enrolled-keys" in features
