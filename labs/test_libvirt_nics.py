"""Network interfaces on a real QEMU: they come and go while the guest runs, each in its place."""

from pathlib import Path

import pytest
from libvirt_host import LibvirtHost, missing
from msgspec.structs import replace
from test_libvirt_volumes import Guest

from pileus.agent.hypervisor.libvirt.driver import LibvirtHypervisor
from pileus.agent.network.port import Plug
from pileus.agent.storage.port import DiskSource
from pileus.kernel.ids import PortId, new_id
from pileus.link.guests import NicSpec

pytestmark = [pytest.mark.lab, pytest.mark.skipif(missing() is not None, reason=f"libvirt lab: {missing()}")]

# Waits until as many network interfaces as said are there, and tells the MAC address and the bus of each.
LISTED = (
    'until [ "$(ls -d /sys/class/net/*/device | wc -l)" = {count} ]; do :; done; for n in /sys/class/net/*/device; do'
    " echo nic $(cat ${{n%/device}}/address) at $(basename $(readlink -f $n/..)); done"
)


async def test_a_network_interface_comes_and_goes_while_the_guest_runs_and_keeps_its_place(
    hypervisor: LibvirtHypervisor, host: LibvirtHost, tmp_path: Path
) -> None:
    guest = Guest(host, hypervisor)
    await guest.installed()
    disks = {guest.root: DiskSource(kind="file", path=str(guest.disk), format="raw")}
    first = replace(guest.spec.nics[0], slot=0)
    second, third = (replace(first, port=PortId(new_id()), mac=f"52:54:01:00:00:0{at}", slot=at) for at in (2, 3))
    plugs = {nic.port: Plug(device=f"tap{nic.port[-10:]}", offload=False) for nic in (first, second, third)}
    for nic in (second, third):
        host.make_tap(plugs[nic.port].device)

    async def has(*nics: NicSpec) -> None:
        guest.spec = replace(guest.spec, generation=guest.spec.generation + 1, nics=nics)
        mine = {nic.port: plugs[nic.port] for nic in guest.spec.nics}
        await guest.defined(disks, mine)
        await hypervisor.change_nics(guest.spec, mine)

    async def seen(count: int) -> dict[str, str]:
        said = await guest.answers(LISTED.format(count=count))
        lines = [line.split() for line in said.splitlines() if line.startswith("nic ")]
        return {words[1]: words[3] for words in lines}

    await has(first)
    await guest.start()
    await guest.booted()
    await has(first, second, third)
    together = await seen(3)
    assert set(together) == {first.mac, second.mac, third.mac}

    await has(first, third)
    left = {mac: at for mac, at in together.items() if mac != second.mac}
    assert await seen(2) == left

    await hypervisor.stop(guest.spec.id)
    await guest.start()
    await guest.booted()
    assert await seen(2) == {mac: at for mac, at in together.items() if mac != second.mac}, (
        "the third stays in its slot"
    )
