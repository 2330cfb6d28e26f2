"""Whether guests can run on the processor itself (KVM) or must be emulated (TCG): found out by running one.

That /dev/kvm is there says little. A kernel may offer it for paravirtual guests alone and emulate all others one
instruction at a time, thousands of times slower, or may refuse the model of the processor that guests are given. A tiny
guest is started on the processor's own model; it goes the way of every operating system, from real mode through paging
to long mode, counts to fifty million, and ends the machine by a status that only it could have chosen. A processor
needs some tens of milliseconds for that.
"""

import stat
import tempfile
from enum import StrEnum
from pathlib import Path

import msgspec

from pileus.kernel.errors import TimedOut
from pileus.kernel.files import write_atomically
from pileus.kernel.programs import ProgramFailed, run
from pileus.kernel.units import MIB

EMULATOR = Path("/usr/bin/qemu-system-x86_64")

_DEVICE = Path("/dev/kvm")
_PROBE_WITHIN_S = 5.0
_DEBUG_EXIT_PORT = "0xf4"
_STATUS_OF_OUR_GUEST = (0x2A << 1) | 1
"""What QEMU's isa-debug-exit makes of the guest's 0x2a."""

_GUEST = bytes.fromhex(
    "fa 31c0 8ed8 8ec0 8ed0 bc007c"  # cli; segments 0; stack below us
    "bf0010 b90018 fc f3ab"  # clear three pages for the page tables at 0x1000
    "c70600100720 c70600200730 c70600308700"  # PML4 -> PDPT -> PD -> the first 2 MiB as they are
    "66b800100000 0f22d8"  # cr3 = 0x1000
    "0f20e0 6683c820 0f22e0"  # cr4 |= PAE
    "66b9800000c0 0f32 660d00010000 0f30"  # EFER |= LME
    "0f20c0 660d01000080 0f22c0"  # cr0 |= PG | PE
    "660f0116887c ea617c0800"  # lgdt [0x7c88]; jmp 8:0x7c61
    "31c0 b980f0fa02 01c8 e2fc"  # long mode: add up ecx = 50,000,000 downto 1
    "b02a e6f4 f4 ebfd"  # out 0xf4, 0x2a; halt for ever
    "0f1f440000"  # to the next multiple of 8
    "0000000000000000 00000000009a2000"  # GDT at 0x7c78: nothing; 64-bit code
    "0f00 787c0000"  # its limit and address
)


class Accelerator(StrEnum):
    """What runs a guest's instructions; the values are libvirt's domain types."""

    KVM = "kvm"
    TCG = "qemu"


class Verdict(msgspec.Struct, frozen=True):
    """What guests run on, and why, in words."""

    accelerator: Accelerator
    reason: str


async def accelerator(run_folder: Path, *, emulator: Path = EMULATOR) -> Verdict:
    """Decide once per boot and version of QEMU; the verdict is kept in the run folder, which is emptied at boot."""
    if not open_to_root():
        return Verdict(Accelerator.TCG, "there is no /dev/kvm: no hardware virtualization, or it is switched off")
    known = run_folder / "accelerator.json"
    mark = _mark(emulator)
    verdict = _read_verdict(known, mark)
    if verdict is not None:
        return verdict
    verdict = await probe(emulator)
    write_atomically(known, msgspec.json.encode((mark, verdict)), mode=0o644)
    return verdict


def _mark(emulator: Path) -> str:
    made = emulator.stat()
    return f"{made.st_size} {made.st_mtime_ns}"


def _read_verdict(known: Path, mark: str) -> Verdict | None:
    try:
        for_mark, verdict = msgspec.json.decode(known.read_bytes(), type=tuple[str, Verdict])
    except (FileNotFoundError, msgspec.MsgspecError):
        return None
    return verdict if for_mark == mark else None


async def probe(emulator: Path = EMULATOR, *, accelerator: str = "kvm", model: str = "host") -> Verdict:
    """Run the tiny guest, for five seconds at most."""
    with tempfile.TemporaryDirectory(prefix="pileus-") as folder:
        disk = Path(folder) / "guest.raw"
        disk.write_bytes(boot_disk())
        try:
            await run(
                str(emulator),
                *("-accel", accelerator, "-cpu", model, "-machine", "q35", "-m", "16"),
                *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
                *("-drive", f"if=virtio,format=raw,readonly=on,file={disk}"),
                *("-device", f"isa-debug-exit,iobase={_DEBUG_EXIT_PORT},iosize=1"),
                timeout_s=_PROBE_WITHIN_S,
                accept=(_STATUS_OF_OUR_GUEST,),
            )
        except TimedOut:
            return Verdict(
                Accelerator.TCG,
                f"/dev/kvm is there, but a guest that needs milliseconds had not ended after {_PROBE_WITHIN_S:g} s: "
                "this kernel does not run ordinary guests on the processor",
            )
        except ProgramFailed as failed:
            said = failed.said.splitlines()
            return Verdict(Accelerator.TCG, f"/dev/kvm is there, but QEMU fails with it: {said[0] if said else failed}")
    return Verdict(Accelerator.KVM, "a guest ran on the processor itself")


def boot_disk() -> bytes:
    """The tiny guest as a disk; firmware starts none that are smaller than a track."""
    return (_GUEST.ljust(510, b"\0") + b"\x55\xaa").ljust(MIB, b"\0")


def open_to_root(device: Path = _DEVICE) -> bool:
    """Whether there is a /dev/kvm at all."""
    return device.is_char_device()


def open_to_guests(device: Path = _DEVICE) -> bool:
    """Whether the group that guests run in may use /dev/kvm; where no udev has seen to it, root alone may."""
    return bool(device.stat().st_mode & stat.S_IWGRP)
