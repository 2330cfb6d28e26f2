"""What people may write of addresses, and how what they wrote fits together."""

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Annotated

from pydantic import AfterValidator, Field

from pileus.cloud.networks.addresses import usable
from pileus.cloud.networks.model import IPV6_LINKS, AddressRange
from pileus.operations.wire import Wire

_NOT_FOR_SUBNETS = [
    ip_network(each)
    for each in ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3", "::/64", "fe80::/10", "ff00::/8")
]


def _cidr(text: str) -> str:
    network = _network(text, "a subnet such as 10.0.0.0/24")
    if network.version == 4 and not 8 <= network.prefixlen <= 29:
        raise ValueError("must have a prefix length from 8 to 29")
    if network.version == 6 and network.prefixlen != 64:
        raise ValueError("must have a prefix length of 64")
    if any(network.overlaps(special) for special in _NOT_FOR_SUBNETS):
        raise ValueError("must not hold addresses that are loopback, link-local, multicast or of no network")
    if network.overlaps(IPV6_LINKS):
        raise ValueError("must not be what routers are linked by with their further ways out")
    return str(network)


def _address(text: str) -> str:
    # A zone (`fe80::1%eth0`) may hold any character, and means nothing outside of one machine.
    if "%" in text:
        raise ValueError("must be an address without a zone")
    try:
        return str(ip_address(text))
    except ValueError:
        raise ValueError("must be an IPv4 or IPv6 address") from None


def _prefix(text: str) -> str:
    return str(_network(text, "a prefix such as 192.0.2.0/24"))


def _network(text: str, wanted: str) -> IPv4Network | IPv6Network:
    if "%" in text:
        raise ValueError(f"must be {wanted}, without a zone")
    try:
        return ip_network(text)
    except ValueError as wrong:
        raise ValueError(f"must be {wanted}: {wrong}") from None


Cidr = Annotated[str, AfterValidator(_cidr)]
Address = Annotated[str, AfterValidator(_address)]
Prefix = Annotated[str, AfterValidator(_prefix)]


class RangeWish(Wire):
    first: Address
    last: Address
    """Both included."""


Ranges = Annotated[tuple[RangeWish, ...], Field(max_length=64)]


def ranges_of(wishes: Ranges) -> tuple[AddressRange, ...]:
    """The ranges as records have them, in order."""
    ranges = [AddressRange(first=each.first, last=each.last) for each in wishes]
    return tuple(sorted(ranges, key=lambda each: int(ip_address(each.first))))


def wrong_ranges(wishes: Ranges, cidr: str) -> dict[str, str]:
    """What is wrong with the ranges of a subnet, by field."""
    wrong: dict[str, str] = {}
    before: list[tuple[int, int]] = []
    for at, each in enumerate(wishes):
        strange = [end for end in ("first", "last") if not can_be_had(getattr(each, end), cidr)]
        wrong |= {f"ranges.{at}.{end}": f"is not an address of {cidr} that a machine can have" for end in strange}
        if strange:
            continue
        first, last = int(ip_address(each.first)), int(ip_address(each.last))
        if first > last:
            wrong[f"ranges.{at}.last"] = "is below the first"
        elif any(first <= end and begin <= last for begin, end in before):
            wrong[f"ranges.{at}"] = "overlaps with another"
        before.append((first, last))
    return wrong


def can_be_had(address: str, cidr: str) -> bool:
    """Whether a machine of this subnet can have this address."""
    network = ip_network(cidr)
    first, last = usable(network)
    return ip_address(address).version == network.version and first <= int(ip_address(address)) <= last
