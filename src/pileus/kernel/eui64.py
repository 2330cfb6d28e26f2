"""The IPv6 address that a machine makes for itself out of a router's announcement and its own MAC address."""

from ipaddress import IPv6Address, IPv6Network

_FLIPPED = 0x02
"""The bit that tells universal from local addresses, which is inverted (RFC 4291, appendix A)."""


def slaac_address(cidr: str, mac: str) -> str:
    """The address of a machine in a network of prefix length 64 by stateless autoconfiguration (RFC 4862)."""
    octets = [int(octet, 16) for octet in mac.split(":")]
    identifier = (octets[0] ^ _FLIPPED, *octets[1:3], 0xFF, 0xFE, *octets[3:])
    return str(IPv6Address(int(IPv6Network(cidr, strict=False).network_address) | int.from_bytes(identifier)))
