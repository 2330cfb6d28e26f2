import socket
import struct

import pytest

from pileus.link.addresses import Address
from pileus.link.discovery import Announcement, find

LOOPBACK = "127.0.0.1"
CA = "sha256:" + "ab" * 32


def _why_no_multicast() -> str:
    group = "224.0.0.251"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver, socket.socket(type=socket.SOCK_DGRAM) as sender:
        try:
            receiver.bind((group, 0))
            membership = struct.pack("4s4s", socket.inet_aton(group), socket.inet_aton(LOOPBACK))
            receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
            receiver.settimeout(1)
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(LOOPBACK))
            sender.sendto(b"x", (group, receiver.getsockname()[1]))
            receiver.recv(1)
        except OSError as missing:
            return f"no multicast on the loopback interface: {missing}"
    return ""


@pytest.fixture(scope="module", autouse=True)
def multicast() -> None:
    if why := _why_no_multicast():
        pytest.skip(why)


async def test_a_controller_that_announces_itself_is_found_by_agents_of_its_cloud_only() -> None:
    announced = Announcement(
        "controller-1", ["192.0.2.7"], api_port=5870, link_port=5871, authority=CA, interfaces=[LOOPBACK]
    )
    async with announced:
        found = await find(within_s=60, interfaces=[LOOPBACK], authority=CA)
        assert await find(within_s=0.2, interfaces=[LOOPBACK], authority="sha256:" + "cd" * 32) is None
    assert found is not None
    assert found.api == (Address("192.0.2.7", 5870),)
    assert found.link == (Address("192.0.2.7", 5871),)
    assert found.authority == CA
