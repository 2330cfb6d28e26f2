"""Network cards of a guest, as libvirt is told of them."""

from xml.etree import ElementTree as ET

from pileus.agent.hypervisor.libvirt.buses import FIRST_NIC_BUS, put_on
from pileus.agent.hypervisor.libvirt.elements import add
from pileus.agent.hypervisor.libvirt.templates import Hardware
from pileus.agent.network.port import Plug
from pileus.link.records import NicSpec

# The whole of virtio's offload: what one side does not offer, the other must not leave undone.
_HOST_OFFLOADS = ("csum", "gso", "tso4", "tso6", "ecn", "ufo")
_GUEST_OFFLOADS = ("csum", "tso4", "tso6", "ecn", "ufo")


def add_nic(
    devices: ET.Element, nic: NicSpec, plug: Plug, hardware: Hardware, slot: int, *, boot: int | None = None
) -> None:
    """A network card; `slot` is its place among the guest's, `boot` in the order that the firmware goes by."""
    interface = add(devices, "interface", type="ethernet")
    add(interface, "mac", address=nic.mac)
    # The tap is there already, and plugged into its network.
    add(interface, "target", dev=plug.device, managed="no")
    add(interface, "model", type=hardware.nic_model)
    if hardware.nic_model == "virtio":
        if not plug.offload:
            driver = add(interface, "driver")
            add(driver, "host", **dict.fromkeys(_HOST_OFFLOADS, "off"))
            add(driver, "guest", **dict.fromkeys(_GUEST_OFFLOADS, "off"))
        add(interface, "mtu", size=str(nic.mtu))
    if boot is None:
        add(interface, "rom", enabled="no")
    else:
        add(interface, "boot", order=str(boot))
    if hardware.is_q35:
        put_on(interface, FIRST_NIC_BUS + slot)
