"""A guest's screen, with what is used in front of it.

It listens nowhere: libvirt lets in whom it is asked to. Until a password is set none is right: QEMU takes an empty one
from nobody, and that one was over long ago.
"""

from datetime import UTC, datetime
from xml.etree import ElementTree as ET

from pileus.agent.hypervisor.libvirt.buses import USB_BUS, put_on
from pileus.agent.hypervisor.libvirt.elements import add
from pileus.agent.hypervisor.libvirt.templates import Hardware

_LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


def add_screen(devices: ET.Element, hardware: Hardware) -> None:
    """The screen; keyboard and mouse are on the board already."""
    if not hardware.tablet:
        add(devices, "controller", type="usb", model="none")
    else:
        if hardware.is_q35:
            put_on(add(devices, "controller", type="usb", index="0", model="qemu-xhci"), USB_BUS)
        else:
            add(devices, "controller", type="usb", index="0", model="piix3-uhci")
        add(devices, "input", type="tablet", bus="usb")
    devices.append(_way_in("", until=_LONG_AGO))
    add(add(devices, "video"), "model", type="vga")


def way_in_xml(password: str, *, until: datetime) -> str:
    """The way to the screen, with its password, good until then."""
    return ET.tostring(_way_in(password, until=until), encoding="unicode")


def _way_in(password: str, *, until: datetime) -> ET.Element:
    graphics = ET.Element("graphics", type="vnc", passwd=password, passwdValidTo=f"{until:%Y-%m-%dT%H:%M:%S}")
    add(graphics, "listen", type="none")
    return graphics
