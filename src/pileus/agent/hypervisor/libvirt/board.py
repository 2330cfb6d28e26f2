"""What is on a guest's board besides disks and network: processor, clock, firmware's helpers, fixed devices."""

from xml.etree import ElementTree as ET

from pileus.agent.hypervisor.libvirt.buses import BALLOON_BUS, CHANNEL_BUS, RNG_BUS, put_on
from pileus.agent.hypervisor.libvirt.elements import add
from pileus.agent.hypervisor.libvirt.screen import add_screen
from pileus.agent.hypervisor.libvirt.templates import Hardware
from pileus.link.guests import Watchdog

_TCG_CACHE_MIB = 64
# It is a device of conventional PCI, which goes beside the root ports: below them it would need a bridge.
_WATCHDOG_SLOT = 0x1E
_SPINS_BEFORE_IT_YIELDS = 8191
# Those that Microsoft's own documentation asks a hypervisor for; only KVM has them.
_ENLIGHTENMENTS = ("relaxed", "vapic", "vpindex", "runtime", "synic", "stimer", "frequencies", "reset", "ipi")


def add_processor(domain: ET.Element, hardware: Hardware, *, kvm: bool) -> None:
    """The processor's model and what it can do."""
    features = add(domain, "features")
    add(features, "acpi")
    add(features, "apic")
    if kvm and hardware.windows:
        hyperv = add(features, "hyperv")
        for each in _ENLIGHTENMENTS:
            add(hyperv, each, state="on")
        add(hyperv, "spinlocks", state="on", retries=str(_SPINS_BEFORE_IT_YIELDS))
    add(features, "vmport", state="off")
    if hardware.secure_boot:
        # The firmware keeps its variables from everyone but itself.
        add(features, "smm", state="on")
    if kvm:
        # Not host-passthrough: a guest on it moves only between processors of one model.
        add(domain, "cpu", mode="host-model", check="partial")
        return
    add(add(features, "tcg"), "tb-cache", text=str(_TCG_CACHE_MIB), unit="MiB")
    # Every feature more is one that has to be emulated: `max` is slower.
    add(add(domain, "cpu", mode="custom", match="exact", check="none"), "model", text="qemu64", fallback="allow")


def add_clock(domain: ET.Element, hardware: Hardware, *, kvm: bool) -> None:
    """The clocks; Windows takes the one on the board for local time."""
    clock = add(domain, "clock", offset=hardware.clock_offset)
    add(clock, "timer", name="rtc", tickpolicy="catchup")
    add(clock, "timer", name="hpet", present="no")
    if kvm:
        add(clock, "timer", name="pit", tickpolicy="delay")
        if hardware.windows:
            add(clock, "timer", name="hypervclock", present="yes")


def add_fixtures(devices: ET.Element, hardware: Hardware) -> None:
    """What every guest of a template has, and always at the same place."""
    if hardware.paravirtual:
        put_on(add(devices, "controller", type="virtio-serial", index="0"), CHANNEL_BUS)
        add(add(devices, "channel", type="unix"), "target", type="virtio", name="org.qemu.guest_agent.0")
    add_screen(devices, hardware)
    if hardware.uefi:
        tpm = add(devices, "tpm", model="tpm-crb")
        # Its state is with libvirt, by the guest's id, and goes when the guest is undefined.
        add(tpm, "backend", type="emulator", version="2.0")
    if not hardware.paravirtual:
        add(devices, "memballoon", model="none")
        return
    balloon = add(devices, "memballoon", model="virtio")
    add(balloon, "stats", period="2")
    put_on(balloon, BALLOON_BUS)
    rng = add(devices, "rng", model="virtio")
    add(rng, "backend", text="/dev/urandom", model="random")
    put_on(rng, RNG_BUS)


def add_watchdog(devices: ET.Element, watchdog: Watchdog, hardware: Hardware) -> None:
    """What acts when a guest has stopped to say that it lives."""
    if watchdog is Watchdog.NONE:
        return
    device = add(devices, "watchdog", model="i6300esb", action=watchdog)
    if hardware.is_q35:
        add(device, "address", type="pci", domain="0x0000", bus="0x00", slot=f"{_WATCHDOG_SLOT:#04x}", function="0x0")
