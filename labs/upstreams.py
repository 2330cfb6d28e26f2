"""Two upstream lines for a lab, as two providers have them: each a router that passes on its own addresses only.

Behind both is the same world. Who sends to it by one line with an address of the other is not heard.
"""

from functools import partial
from pathlib import Path
from typing import NamedTuple

from ovn_lab import LINES, Lab

from pileus.agent.network.ovn_namespace import compute_checksums, within
from pileus.kernel.programs import run

WORLD = {4: "192.0.2.80", 6: "2001:db8:ffff::80"}


class Line(NamedTuple):
    """A provider's line: its wire, its ranges there, and the prefix that it delegates."""

    physical: str
    name: str
    ipv4: str
    """The /24 that addresses outside are of, without its last number."""
    ipv6: str
    """The /64 that IPv6 addresses outside are of."""
    delegated: str
    """The first half of a /56, for subnets inside."""

    @property
    def cidr(self) -> str:
        return f"{self.ipv4}.0/24"

    @property
    def gateway(self) -> str:
        return f"{self.ipv4}.254"

    @property
    def ipv6_gateway(self) -> str:
        return f"{self.ipv6}::fe"


A = Line("provider", "up-a", "172.24.0", "2001:db8:a", "2001:db8:a0")
B = Line("second", "up-b", "172.25.0", "2001:db8:b", "2001:db8:b0")


async def begin(lab: Lab, *, prefixes_by: dict[str, str]) -> str:
    """Make both lines and the world behind them; answers where to open the world's namespace.

    Args:
        lab: with a wire for each line.
        prefixes_by: the next hop for each prefix that is routed into the cloud.
    """
    await lab.ip("netns", "add", "backbone")
    await lab.ip("-n", "backbone", "link", "add", "core", "type", "bridge", "forward_delay", "0")
    await lab.ip("-n", "backbone", "link", "set", "core", "up")
    await lab.ip("netns", "add", "world")
    await _backbone_wire(lab, "world")
    addresses = (f"{WORLD[4]}/24", f"{WORLD[6]}/64")
    await _configure(lab, "world", "core0", addresses)
    for at, line in enumerate((A, B), 1):
        await lab.ip("netns", "add", line.name)
        await lab.wire(line.name, "in0", LINES[line.physical])
        await _backbone_wire(lab, line.name)
        await _configure(lab, line.name, "in0", (f"{line.gateway}/24", f"{line.ipv6_gateway}/64"))
        await _configure(lab, line.name, "core0", (f"192.0.2.{at}/24", f"2001:db8:ffff::{at}/64"))
        await within(lab.path(line.name), _forward)
        for to, by in ((line.cidr, f"192.0.2.{at}"), *((p, f"2001:db8:ffff::{at}") for p in _ipv6(line))):
            await lab.ip("-n", "world", "route", "add", to, "via", by)
        await _only_own_addresses(lab, line)
        for prefix, by in prefixes_by.items():
            if prefix.startswith(line.delegated):
                await lab.ip("-n", line.name, "route", "add", prefix, "via", by)
    return lab.path("world")


def _ipv6(line: Line) -> tuple[str, str]:
    return f"{line.ipv6}::/64", f"{line.delegated}::/48"


async def _backbone_wire(lab: Lab, namespace: str) -> None:
    far = f"core-{namespace}"
    await lab.ip("-n", "backbone", "link", "add", far, "type", "veth", "peer", "name", "core0", "netns", namespace)
    await lab.ip("-n", "backbone", "link", "set", far, "master", "core", "up")
    await within(lab.path(namespace), partial(compute_checksums, "core0"))


async def _configure(lab: Lab, namespace: str, device: str, addresses: tuple[str, ...]) -> None:
    await lab.ip("-n", namespace, "link", "set", "lo", "up")
    await lab.ip("-n", namespace, "link", "set", device, "up")
    for address in addresses:
        nodad = ("nodad",) if ":" in address else ()
        await lab.ip("-n", namespace, "address", "add", address, "dev", device, *nodad)


def _forward() -> None:
    for setting in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        Path(f"/proc/sys/net/{setting}").write_text("1", encoding="ascii")


async def _only_own_addresses(lab: Lab, line: Line) -> None:
    """What leaves by a line has its addresses, as providers see to (BCP 38)."""
    ipv6 = ", ".join(_ipv6(line))
    rules = (
        "add table inet line\n"
        "add chain inet line forward { type filter hook forward priority 0; policy accept; }\n"
        f'add rule inet line forward iifname "in0" ip saddr != {line.cidr} drop\n'
        f'add rule inet line forward iifname "in0" ip6 saddr != {{ {ipv6} }} drop\n'
    )
    await run("nsenter", f"--net={lab.path(line.name)}", "nft", "-f", "-", stdin=rules.encode())
