"""Network cards of a guest, as libvirt is told of them."""

from collections.abc import Mapping
from xml.etree import ElementTree as ET

from pileus.agent.hypervisor.libvirt.buses import FIRST_NIC_BUS, put_on
from pileus.agent.hypervisor.libvirt.elements import add
from pileus.agent.hypervisor.libvirt.templates import Hardware, hardware_of
from pileus.agent.network.port import Plug
from pileus.kernel.errors import Invalid
from pileus.link.guests import NIC_SLOTS, GuestSpec, NicSpec

# The whole of virtio's offload: what one side does not offer, the other must not leave undone.
_HOST_OFFLOADS = ("csum", "gso", "tso4", "tso6", "ecn", "ufo")
_GUEST_OFFLOADS = ("csum", "tso4", "tso6", "ecn", "ufo")


def nic_element(nic: NicSpec, plug: Plug, hardware: Hardware, place: int, *, boot: int | None = None) -> ET.Element:
    """A network card.

    `place` is where it is among the guest's if it has no slot of its own, `boot` in the firmware's order.
    """
    slot = place if nic.slot is None else nic.slot
    if not 0 <= slot < NIC_SLOTS:
        raise Invalid(f"a guest has no slot {slot} for network interfaces", fields={"slot": f"0 to {NIC_SLOTS - 1}"})
    interface = ET.Element("interface", type="ethernet")
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
    return interface


def nic_xml(guest: GuestSpec, nic: NicSpec, plug: Plug) -> str:
    """One network card of a guest's definition, to be plugged in while it runs."""
    element = nic_element(nic, plug, hardware_of(guest.template), guest.nics.index(nic))
    return ET.tostring(element, encoding="unicode")


def nics_of(definition: str, guest: GuestSpec) -> Mapping[str, str]:
    """The aliases of a running domain's network cards, by its XML, by the tap devices that they are behind.

    Those that the guest was found with are left out.
    """
    found_macs = {mac.lower() for mac in guest.found_macs}
    found: dict[str, str] = {}
    for interface in ET.fromstring(definition).iterfind("devices/interface"):  # noqa: S314 - libvirt's own
        alias, target, mac = interface.find("alias"), interface.find("target"), interface.find("mac")
        if mac is not None and mac.get("address", "").lower() in found_macs:
            continue
        if alias is not None and target is not None:
            found[target.get("dev", "")] = alias.get("name", "")
    return found
