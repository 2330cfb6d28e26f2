from ipaddress import IPv4Network
from typing import Any

from pileus.machine.external import clashing_route, drops_forwarded, masquerade_rule, masquerade_table

WANTED = IPv4Network("172.31.255.0/24")


def test_a_default_route_is_in_nobodys_way() -> None:
    assert clashing_route(WANTED, [{"dst": "default", "dev": "eth0"}]) is None


def test_a_route_that_holds_the_network_is_named() -> None:
    assert clashing_route(WANTED, [{"dst": "172.16.0.0/12", "dev": "vpn0"}]) == "172.16.0.0/12"


def test_a_route_to_one_address_of_the_network_is_named() -> None:
    assert clashing_route(WANTED, [{"dst": "172.31.255.7", "dev": "eth0"}]) == "172.31.255.7"


def test_the_external_bridge_does_not_stand_in_its_own_way() -> None:
    assert clashing_route(WANTED, [{"dst": "172.31.255.0/24", "dev": "br-ex"}]) is None


def test_a_route_of_the_kernels_local_table_without_a_link_is_understood() -> None:
    assert clashing_route(WANTED, [{"type": "unreachable", "dst": "10.0.0.0/8"}]) is None


def test_only_chains_that_drop_what_is_forwarded_are_named() -> None:
    chain = {"family": "inet", "table": "filter", "type": "filter", "prio": 0}
    listed: dict[str, Any] = {
        "nftables": [
            {"metainfo": {}},
            {"chain": {**chain, "name": "input", "hook": "input", "policy": "drop"}},
            {"chain": {**chain, "name": "forward", "hook": "forward", "policy": "drop"}},
            {"chain": {**chain, "name": "open", "hook": "forward", "policy": "accept"}},
            {"chain": {"family": "ip", "table": "nat", "name": "plain"}},
        ]
    }
    assert drops_forwarded(listed) == ["inet filter forward"]


def test_what_stays_on_the_external_bridge_keeps_its_address() -> None:
    rule = masquerade_rule(WANTED)
    assert rule == 'ip saddr 172.31.255.0/24 oifname != "br-ex" masquerade'
    assert rule in masquerade_table(rule)
