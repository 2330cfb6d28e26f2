"""The machine, and the daemons that are kept on it."""

import os
import sys
from pathlib import Path

from pileus.agent.hypervisor.libvirt import binding
from pileus.doctor.facts import KeptDaemon, Machine, Supervision
from pileus.doctor.gather.site import Site
from pileus.kernel.errors import Unavailable
from pileus.kernel.programs import ProgramFailed, run
from pileus.machine import kvm, packages
from pileus.machine.daemons import DaemonStatus, answers
from pileus.machine.processes import identify
from pileus.machine.supervisor import Files

_CPU = Path("/proc/cpuinfo")
_UPTIME = Path("/proc/uptime")
_TUN = Path("/dev/net/tun")
_DEBIANS_PYTHON = Path("/usr/bin/python3")
_TAIL_BYTES = 4000
_WORDS = 300


async def machine(site: Site) -> Machine:
    """Packages, virtualization, the kernel's part of the network."""
    at = site.addresses
    failure = ""
    try:
        binding.load()
    except Unavailable as missing:
        failure = missing.detail
    return Machine(
        missing_packages=tuple(each.name for each in await packages.missing()),
        binding=failure,
        binding_mend=_binding_mend(),
        has_kvm=kvm.open_to_root(),
        kvm_module=await _kvm_module(),
        has_tun=_is_there(_TUN),
        accelerator=at.accelerator.accelerator.value if at is not None else "",
        accelerator_reason=at.accelerator.reason if at is not None else "",
        datapath=at.datapath.value if at is not None else "",
        datapath_reason=at.datapath_reason if at is not None else "",
        kernel_can_switch=await _has_module("openvswitch"),
    )


def _binding_mend() -> str:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    if _DEBIANS_PYTHON.resolve().name == version:
        return "apt-get install --no-install-recommends python3-libvirt"
    return f"{sys.executable} -m pip install libvirt-python"


async def _kvm_module() -> str:
    """The module that brings /dev/kvm on this processor, if it can run guests and the kernel has the module."""
    flags = _words(_CPU)
    module = "kvm_intel" if "vmx" in flags else "kvm_amd" if "svm" in flags else ""
    return module if module and await _has_module(module) else ""


async def _has_module(name: str) -> bool:
    """Whether the kernel has this module, loaded, built in, or to be loaded."""
    if _is_there(Path("/sys/module", name)):
        return True
    try:
        await run("modprobe", "--dry-run", name)
    except ProgramFailed:  # there is none, or nothing that loads modules
        return False
    return True


def _is_there(path: Path) -> bool:
    return path.exists()


def _words(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split()


async def supervision(site: Site) -> Supervision:
    """The daemons, without starting anything."""
    files = Files(site.places.layout)
    answering = await answers(f"unix:{files.socket}")
    return Supervision(
        answers=answering,
        daemons=tuple([_kept(each, files) for each in await site.engines.status()]),
    )


def _kept(status: DaemonStatus, files: Files) -> KeptDaemon:
    return KeptDaemon(
        status=status,
        last_words=_last_line(files.log_of(status.name)) if _ails(status) else "",
        lives_s=_lives_s(status.pid),
    )


def _lives_s(pid: int | None) -> float:
    process = identify(pid) if pid is not None else None
    if process is None:
        return 0.0
    up_s = float(_UPTIME.read_text(encoding="ascii").split()[0])
    return max(0.0, up_s - process.started_ticks / os.sysconf("SC_CLK_TCK"))


def _ails(status: DaemonStatus) -> bool:
    return not status.running or status.restarts > 0


def _last_line(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1][:_WORDS] if lines else ""
