"""Where a controller's link or API is: a name or address with a port."""

from urllib.parse import urlsplit

import msgspec

from pileus.kernel.errors import Invalid


class Address(msgspec.Struct, frozen=True, order=True):
    """A host name or IP address (IPv6 without brackets) and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def read_address(text: str, *, default_port: int) -> Address:
    """Read `host`, `host:port`, `[address]` or `[address]:port`.

    Raises:
        Invalid: it is none of these.
    """
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError as wrong:
        raise Invalid(f"{text!r} is not an address", fields={"address": str(wrong)}) from wrong
    if not host or parts.netloc != text or "@" in text or any(c.isspace() for c in text):
        raise Invalid(f"{text!r} is not an address", fields={"address": "expected host or host:port"})
    return Address(host, default_port if port is None else port)
