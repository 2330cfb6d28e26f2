"""The machine: packages, virtualization, the kernel's part."""

import shlex

from pileus.doctor.facts import Facts
from pileus.doctor.findings import Finding, broken, ok, warning


def packages(facts: Facts) -> list[Finding]:
    """Whether the Debian packages are there."""
    if facts.machine is None:
        return []
    missing = facts.machine.missing_packages
    if not missing:
        return [ok("Debian packages", "all that are needed are installed")]
    return [
        broken(
            f"not installed: {', '.join(missing)}",
            why="guests and their networks are made with them",
            mend=f"apt-get install --no-install-recommends {shlex.join(missing)}",
        )
    ]


def binding(facts: Facts) -> list[Finding]:
    """Whether our Python can speak to libvirt."""
    if facts.machine is None:
        return []
    if not facts.machine.binding:
        return [ok("libvirt's binding for Python")]
    return [
        broken(
            "this Python cannot speak to libvirt",
            why=f"the agent can start no guest: {facts.machine.binding}",
            mend=facts.machine.binding_mend,
        )
    ]


def accelerator(facts: Facts) -> list[Finding]:
    """What guests run on, and whether that is still so."""
    seen = facts.machine
    if seen is None:
        return []
    if seen.accelerator == "kvm" and not seen.has_kvm:
        return [
            broken(
                "guests are to run on KVM, and there is no /dev/kvm any more",
                why="no guest can be started",
                mend=f"{f'modprobe {seen.kvm_module} && ' if seen.kvm_module else ''}{facts.commands.up}",
            )
        ]
    if seen.kvm_module and not seen.has_kvm:
        return [
            warning(
                "guests are emulated, though the processor could run them",
                why=f"they are many times slower; the module {seen.kvm_module} is not loaded",
                mend=f"modprobe {seen.kvm_module} && {facts.commands.up}",
            )
        ]
    if not seen.accelerator:
        return []
    kind = "KVM" if seen.accelerator == "kvm" else "emulated (TCG)"
    return [ok(f"guests are {kind}" if kind != "KVM" else "guests run on KVM", seen.accelerator_reason)]


def devices(facts: Facts) -> list[Finding]:
    """Whether guests can have network devices."""
    if facts.machine is None or facts.machine.has_tun:
        return []
    return [broken("there is no /dev/net/tun", why="guests get no network device", mend="modprobe tun")]


def datapath(facts: Facts) -> list[Finding]:
    """Where frames are switched."""
    seen = facts.machine
    if seen is None or not seen.datapath:
        return []
    if seen.datapath == "netdev" and seen.kernel_can_switch:
        return [
            warning(
                "frames are switched in user space, though the kernel could",
                why="networks are slower and cost more of the processor",
                mend=f"modprobe openvswitch && {facts.commands.down} && {facts.commands.up}",
            )
        ]
    return [ok(f"datapath {seen.datapath}", seen.datapath_reason)]


def unseen(facts: Facts) -> list[Finding]:
    """What could not be looked at, but for what a daemon keeps silent about: that is its own finding."""
    kept = {each.status.name for each in facts.supervision.daemons} if facts.supervision is not None else set[str]()
    return [
        warning(
            f"not looked at: {each.what}",
            why=each.why,
            mend=f"sudo {facts.commands.doctor}" if each.denied else facts.commands.doctor,
        )
        for each in facts.unseen
        if each.daemon not in kept
    ]
