"""This machine's network, and OVN."""

from pileus.doctor.facts import Facts
from pileus.doctor.findings import Finding, broken, ok, warning


def forwarding(facts: Facts) -> list[Finding]:
    """Whether this machine forwards packets."""
    if facts.network is None or not facts.is_up:
        return []
    if facts.network.forwards:
        return [ok("ip_forward", "is 1")]
    return [
        broken(
            "this machine forwards no IPv4 packets (net.ipv4.ip_forward is 0)",
            why="instances do not reach the world, and are not reached from it",
            mend=facts.commands.up,
        )
    ]


def external(facts: Facts) -> list[Finding]:
    """Whether the external network has its address and its way out."""
    seen = facts.network
    if seen is None or not facts.is_up:
        return []
    found: list[Finding] = []
    if seen.external_addresses is None:
        found.append(
            broken(
                f"there is no link {seen.external_bridge}",
                why="the external network is not there: floating addresses do not answer",
                mend=facts.commands.up,
            )
        )
    elif seen.external_address not in seen.external_addresses:
        found.append(
            broken(
                f"{seen.external_bridge} has not the address {seen.external_address}",
                why="it is the gateway of the external network: floating addresses do not answer",
                mend=facts.commands.up,
            )
        )
    if not seen.masquerades:
        found.append(
            broken(
                "the nftables table ip pileus does not translate addresses",
                why="what instances send to the world goes out under an address that nobody can answer",
                mend=facts.commands.up,
            )
        )
    return found or [ok("external network", f"{seen.external_address} on {seen.external_bridge}")]


def lines(facts: Facts) -> list[Finding]:
    """Whether all external networks are in service."""
    if facts.records is None:
        return []
    return [
        warning(
            f"the external network {line.name} is out of service",
            why="nobody sends out by it, and its floating addresses are not answered, until somebody puts it in again",
            mend=facts.commands.cloud(f"network enable {line.id}"),
        )
        for line in facts.records.lines
        if not line.in_service
    ] or [ok("lines out", "all are in service")]


def firewall(facts: Facts) -> list[Finding]:
    """Whether the machine's own firewall lets guests' packets through."""
    if facts.network is None or not facts.is_up:
        return []
    bridge = facts.network.external_bridge
    return [
        warning(
            f"the firewall drops what is forwarded ({chain}), and has no rule for {bridge}",
            why="instances may not reach the world",
            mend=f"nft insert rule {chain} iifname {bridge} accept && nft insert rule {chain} oifname {bridge} accept",
        )
        for chain in facts.network.dropping
    ]


def guards(facts: Facts) -> list[Finding]:
    """Whether guests' frames are kept from this machine's own network stack."""
    if facts.network is None or not facts.is_up:
        return []
    return [
        broken(
            f"the port {device} has no guard",
            why="its guest can reach this machine's own addresses past all security groups",
            mend=f"nft add table netdev pileus && nft 'add chain netdev pileus {device} "
            f'{{ type filter hook ingress device "{device}" priority -500; policy drop; }}\'',
        )
        for device in facts.network.unguarded
    ]


def chassis(facts: Facts) -> list[Finding]:
    """Whether OVN knows this host."""
    if facts.ovn is None or facts.ovn.registered is None or not facts.is_up:
        return []
    if facts.ovn.chassis in facts.ovn.registered:
        return [ok("chassis", "this host is registered in OVN")]
    pid = facts.supervision.pid("ovn-controller") if facts.supervision is not None else None
    return [
        broken(
            f"OVN does not know this host as {facts.ovn.chassis}",
            why="ports of its guests are not connected",
            mend=facts.commands.up if pid is None else f"kill {pid} && {facts.commands.up}",
        )
    ]


def ports(facts: Facts) -> list[Finding]:
    """Whether the ports of running instances here are up."""
    if facts.ovn is None or facts.ovn.ports is None or facts.records is None or facts.found is None:
        return []
    running = {
        each.id: each
        for each in facts.records.instances
        if each.state == "running" and each.host_id == facts.found.host
    }
    ours = {each.id: running[each.instance_id] for each in facts.records.ports if each.instance_id in running}
    down = [each for each in facts.ovn.ports if each.name in ours and not each.up]
    return [
        broken(
            f"the port {each.name} of {ours[each.name].name} is not up",
            why="OVN has not connected it: the instance has no network; mending it starts the instance anew",
            mend=_again(facts, ours[each.name].id),
        )
        for each in down
    ] or [ok("ports", f"{len(ours)} of running instances are up")]


def _again(facts: Facts, instance: str) -> str:
    return (
        f"{facts.commands.cloud(f'instance stop {instance}')} && {facts.commands.cloud(f'instance start {instance}')}"
    )
