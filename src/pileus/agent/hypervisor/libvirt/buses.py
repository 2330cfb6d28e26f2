"""Where devices are on a guest's PCI buses.

On q35 there is a bus for every device that there may be, each behind a root port: one can come at any time, and none
ever moves to another address. On the old i440fx all are on one bus, where libvirt finds places for them; nothing is
plugged in there while a guest runs.
"""

from xml.etree import ElementTree as ET

from pileus.agent.hypervisor.libvirt.elements import add
from pileus.link.guests import DISK_SLOTS, NIC_SLOTS

# Number 0 is the bus that the root ports are on.
FIRST_DISK_BUS = 1
FIRST_NIC_BUS = FIRST_DISK_BUS + DISK_SLOTS
CHANNEL_BUS = FIRST_NIC_BUS + NIC_SLOTS
BALLOON_BUS = CHANNEL_BUS + 1
RNG_BUS = BALLOON_BUS + 1
SCSI_BUS = RNG_BUS + 1
USB_BUS = SCSI_BUS + 1
# Below it q35 may put what it has always had; eight ports make one device of the bus.
_FIRST_PORTS_SLOT = 2
_PORTS_IN_SLOT = 8


def add_root_ports(devices: ET.Element) -> None:
    """A bus for every device that there may be."""
    for port in range(USB_BUS):
        controller = add(devices, "controller", type="pci", index=str(port + 1), model="pcie-root-port")
        slot, function = divmod(port, _PORTS_IN_SLOT)
        address = {"bus": "0x00", "slot": f"{_FIRST_PORTS_SLOT + slot:#04x}", "function": f"{function:#x}"}
        if function == 0:
            address["multifunction"] = "on"
        add(controller, "address", type="pci", domain="0x0000", **address)


def put_on(device: ET.Element, bus: int) -> None:
    """Have a device on a bus of its own."""
    add(device, "address", type="pci", domain="0x0000", bus=f"{bus:#04x}", slot="0x00", function="0x0")
