from pathlib import Path

import pytest

from pileus.machine.kvm import Accelerator, boot_disk, probe


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """An emulator that ends is waited for, however slow the machine."""
    monkeypatch.setattr("pileus.machine.kvm._PROBE_WITHIN_S", 60.0)


def emulator(tmp_path: Path, script: str) -> Path:
    program = tmp_path / "qemu"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return program


def test_the_tiny_guest_is_a_disk_that_firmware_boots() -> None:
    assert len(boot_disk()) == 1024 * 1024
    assert boot_disk()[510:512] == b"\x55\xaa"
    # The far jump and the descriptor table hold absolute addresses: they hold only as long as nothing moves.
    assert boot_disk()[0x88:0x8E] == bytes.fromhex("0f00787c0000")


async def test_a_guest_that_chose_its_status_ran_on_the_processor(tmp_path: Path) -> None:
    assert (await probe(emulator(tmp_path, "exit 85"))).accelerator is Accelerator.KVM


@pytest.mark.parametrize("script", ["echo 'no such model' >&2; exit 1", "exit 0", "kill -ABRT $$"])
async def test_whatever_else_the_emulator_does_guests_are_emulated(tmp_path: Path, script: str) -> None:
    verdict = await probe(emulator(tmp_path, script))
    assert verdict.accelerator is Accelerator.TCG


async def test_the_reason_has_what_the_emulator_said(tmp_path: Path) -> None:
    assert "no such model" in (await probe(emulator(tmp_path, "echo 'no such model' >&2; exit 1"))).reason
