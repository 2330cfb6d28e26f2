"""Names that controller and agent must agree on, computed from ids."""

from hashlib import blake2s

METADATA_ADDRESS = "169.254.169.254"
"""Where guests ask for metadata and, unless their subnet says otherwise, for names. On-link in every network."""

DOMAIN = "internal"
"""The domain of instances' names, reserved for private use by ICANN (resolution 2024.07.29.06)."""


def short(id: str, *, digits: int = 12) -> str:
    """Some hexadecimal digits for an id, where its own 36 characters are too many."""
    return blake2s(id.encode()).hexdigest()[:digits]


def mac_of(*of: str) -> str:
    """A locally administered MAC address for these ids, of a range that guests' ports do not use (0e:...)."""
    digits = short("/".join(of), digits=10)
    return ":".join(("0e", *(digits[at : at + 2] for at in range(0, 10, 2))))


def metadata_port(network: str) -> str:
    """The logical port of the metadata service, present on every host that serves the network."""
    return f"metadata-{network}"


def metadata_mac(network: str) -> str:
    return mac_of("metadata", network)


def guests_of(network: str) -> str:
    """The port group of all guests' ports in a network."""
    return f"guests_{network.replace('-', '_')}"
