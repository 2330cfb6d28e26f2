"""What a guest is told about itself at 169.254.169.254, in the layouts that cloud-init and its relatives read.

OpenStack's layout and EC2's, with the same content. A guest is known by the network that it asks from and the address
that it asks with, which the switch does not let it forge; no header counts. Networks are configured by DHCP, so
`network_data.json` names links and asks for that.

Layouts: https://docs.openstack.org/nova/latest/user/metadata.html,
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/ec2-instance-metadata.html
"""

import base64
import secrets
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Final

import msgspec

from pileus.kernel.eui64 import slaac_address
from pileus.kernel.ids import NetworkId
from pileus.link.guests import FirstBoot, GuestSpec, NicSpec

OPENSTACK_VERSIONS: Final = ("2012-08-10", "2013-04-04", "2013-10-17", "2015-10-15", "2016-06-30", "2018-08-27")
EC2_VERSIONS: Final = ("1.0", "2009-04-04", "2016-09-02", "2021-03-23")
_NETWORK_DATA_SINCE: Final = "2015-10-15"

Answer = tuple[int, str, bytes]
"""HTTP status, content type, body."""


class Metadata:
    """Answers the guests of a host."""

    def __init__(self, guests: Callable[[], Iterable[GuestSpec]]) -> None:
        self._guests = guests

    async def answer(self, network: NetworkId, address: str, method: str, path: str) -> Answer:
        """The answer for the guest that has this address in this network; 404 for anybody else."""
        guest = next((each for each in self._guests() if _has(each, network, address)), None)
        if guest is None:
            return _plain(HTTPStatus.NOT_FOUND, "nothing is known of who asks\n")
        path = "/" + "/".join(part for part in path.partition("?")[0].split("/") if part)
        if path == "/latest/api/token":
            # EC2's session tokens keep a forging proxy in the guest out. They are handed out so that clients which
            # insist on them go on, and not asked for: a guest's own proxies are its own business.
            return _plain(HTTPStatus.OK, secrets.token_urlsafe(32)) if method == "PUT" else _not_allowed()
        if method not in {"GET", "HEAD"}:
            return _not_allowed()
        return look_up(files(guest), path)


def look_up(content: Mapping[str, bytes], path: str) -> Answer:
    """The file at this path (`/a/b`), or the names in this folder, folders below a version with a slash."""
    found = content.get(path.strip("/"))
    if found is not None:
        kind = "application/json" if path.endswith(".json") else "text/plain; charset=utf-8"
        return HTTPStatus.OK, kind, found
    prefix = path.strip("/") + "/" if path != "/" else ""
    below = (name[len(prefix) :] for name in content if name.startswith(prefix))
    names = [name for name in dict.fromkeys(_listed(each, prefix) for each in below) if name]
    if not names:
        return _plain(HTTPStatus.NOT_FOUND, "there is nothing here\n")
    return _plain(HTTPStatus.OK, "\n".join(names))


def files(guest: GuestSpec) -> dict[str, bytes]:
    """All that a guest may read, by path: also the content of a config drive."""
    content: dict[str, bytes] = {}
    user_data = _user_data(guest.first_boot)
    for version in (*OPENSTACK_VERSIONS, "latest"):
        content[f"openstack/{version}/meta_data.json"] = _openstack(guest)
        if user_data:
            content[f"openstack/{version}/user_data"] = user_data
        if version >= _NETWORK_DATA_SINCE:
            content[f"openstack/{version}/network_data.json"] = _network_data(guest)
    for version in (*EC2_VERSIONS, "latest"):
        for name, value in _ec2(guest).items():
            content[f"{version}/meta-data/{name}"] = value.encode()
        if user_data:
            content[f"{version}/user-data"] = user_data
    return content


def _openstack(guest: GuestSpec) -> bytes:
    boot = guest.first_boot
    return msgspec.json.encode(
        {
            "uuid": guest.id,
            "name": guest.name,
            "hostname": boot.hostname,
            "launch_index": 0,
            "project_id": guest.project,
            "availability_zone": boot.availability_zone,
            "public_keys": dict(boot.public_keys),
            "keys": [{"name": name, "type": "ssh", "data": key} for name, key in boot.public_keys],
            "meta": {},
        }
    )


def _network_data(guest: GuestSpec) -> bytes:
    links = [
        {"id": nic.port, "type": "ovs", "ethernet_mac_address": nic.mac, "mtu": nic.mtu, "vif_id": nic.port}
        for nic in guest.nics
    ]
    networks = [
        {"id": f"{nic.port}-ipv{version}", "link": nic.port, "network_id": nic.network, "type": kind}
        for nic in guest.nics
        for version, kind in _ways_of(nic)
    ]
    return msgspec.json.encode({"links": links, "networks": networks, "services": []})


def _ways_of(nic: NicSpec) -> list[tuple[int, str]]:
    """The IP versions of a network interface, each with how it comes to its address."""
    ways: dict[int, str] = {}
    for address in nic.addresses:
        if ":" not in address:
            ways[4] = "ipv4_dhcp"
        else:
            own = slaac_address(f"{address}/64", nic.mac)
            ways[6] = "ipv6_slaac" if address == own else "ipv6_dhcpv6-stateful"
    return sorted(ways.items())


def _ec2(guest: GuestSpec) -> dict[str, str]:
    boot = guest.first_boot
    values = {
        "ami-id": "ami-00000000",
        "instance-id": guest.id,
        "instance-type": guest.template,
        "hostname": boot.hostname,
        "local-hostname": boot.hostname,
        "placement/availability-zone": boot.availability_zone,
    }
    if guest.nics:
        values["mac"] = guest.nics[0].mac
        values["local-ipv4"] = next((each for each in guest.nics[0].addresses if ":" not in each), "")
    for index, (name, key) in enumerate(boot.public_keys):
        values[f"public-keys/{index}={name}"] = ""
        values[f"public-keys/{index}/openssh-key"] = key
    return values


def _listed(name: str, prefix: str) -> str:
    # EC2 lists keys as `0=name`, while each is found below `0/`.
    if prefix.endswith("meta-data/public-keys/"):
        return name if "=" in name else ""
    first, slash, _ = name.partition("/")
    # cloud-init takes the names of versions as they are.
    return first if prefix in {"", "openstack/"} else first + slash


def _user_data(boot: FirstBoot) -> bytes:
    return base64.b64decode(boot.user_data) if boot.user_data_base64 else boot.user_data.encode()


def _has(guest: GuestSpec, network: NetworkId, address: str) -> bool:
    return any(nic.network == network and address in nic.addresses for nic in guest.nics)


def _plain(status: HTTPStatus, text: str) -> Answer:
    return status, "text/plain; charset=utf-8", text.encode()


def _not_allowed() -> Answer:
    return _plain(HTTPStatus.METHOD_NOT_ALLOWED, "this can only be read\n")
