"""Which devices can become physical networks, and what is said of those that cannot."""

import json
from pathlib import Path

import pytest

from pileus.kernel.errors import Invalid
from pileus.machine.layout import Layout
from pileus.machine.wires import Link, Wires, links_of, unfit, why_not

LINKS = {
    link.name: link
    for link in (
        Link(name="lo", addresses=("127.0.0.1",)),
        Link(name="eth0", addresses=("192.0.2.7",)),
        Link(name="eth1"),
        Link(name="eth2", master="br0"),
        Link(name="eth3", master="ovs-system"),
        Link(name="br0", is_bridge=True, addresses=("198.51.100.7",)),
    )
}


@pytest.mark.parametrize("name", ["lan", "vlan-trunk", "a", "office-2"])
def test_a_physical_network_is_called_by_a_short_name(name: str) -> None:
    assert why_not(name) == ""


@pytest.mark.parametrize("name", ["", "LAN", "1st", "a_b", "-a", "external", "ex", "int", "tun", "twelve-chars", "län"])
def test_a_name_that_no_bridge_can_be_called_after_is_refused(name: str, tmp_path: Path) -> None:
    assert why_not(name)
    with pytest.raises(Invalid):
        Wires(Layout.of(tmp_path), {name: "eth1"}, print)


@pytest.mark.parametrize("device", ["eth1", "eth3", "br0"])
def test_a_free_card_or_a_bridge_of_the_kernel_will_do(device: str) -> None:
    assert unfit(device, LINKS, mine="br-lan") == ""


@pytest.mark.parametrize(
    ("device", "says"),
    [
        ("eth0", "the machine is reached there by 192.0.2.7"),
        ("eth2", "a part of br0"),
        ("eth9", "there are br0, eth0, eth1, eth2, eth3"),
        ("lo", "leads nowhere"),
    ],
)
def test_a_device_that_the_machine_uses_is_refused_with_the_reason(device: str, says: str) -> None:
    assert says in unfit(device, LINKS, mine="br-lan")


def test_addresses_that_reach_no_further_than_the_link_do_not_count() -> None:
    shown = json.loads(
        '[{"ifname": "br0", "linkinfo": {"info_kind": "bridge"}, "addr_info": []},'
        ' {"ifname": "eth1", "addr_info": [{"local": "fe80::1", "scope": "link"}]},'
        ' {"ifname": "eth0", "master": "bond0", "addr_info": [{"local": "2001:db8::7", "scope": "global"}]}, {}]'
    )
    assert links_of(shown)[1:] == [Link(name="eth1"), Link(name="eth0", master="bond0", addresses=("2001:db8::7",))]
    assert links_of(shown)[0] == Link(name="br0", is_bridge=True)


def test_what_was_asked_for_is_kept_until_it_is_taken_back(tmp_path: Path) -> None:
    layout = Layout.of(tmp_path)
    layout.machine.mkdir(parents=True)
    (layout.machine / "wires.json").write_text('{"lan": "eth1", "office": "br0"}')
    assert Wires(layout, {}, print).wanted() == {"lan": "eth1", "office": "br0"}
    assert Wires(layout, {"lan": "", "dmz": "eth3"}, print).wanted() == {"office": "br0", "dmz": "eth3"}
