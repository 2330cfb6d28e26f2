"""Machines on the physical wire of the lab, and frames made by hand."""

import asyncio
import socket
import struct
from functools import partial
from ipaddress import ip_address

from ovn_lab import Lab

from pileus.agent.network.ovn_namespace import compute_checksums, within

BROADCAST = "ff:ff:ff:ff:ff:ff"
_ALL_PROTOCOLS = 3
_IPV4, _IPV6 = 0x0800, 0x86DD
_UDP, _ICMPV6 = 17, 58
_ROUTER_ANNOUNCEMENT = 134


async def plug_in_machine(lab: Lab, name: str, *, at: str, vlan: int, address: str) -> str:
    """A namespace on a VLAN of the wire, at an access port of this host's external bridge. Answers where it is."""
    host, link = lab.hosts[at], f"to-{name}"
    await lab.ip("netns", "add", name)
    await lab.ip("-n", at, "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
    await lab.ip("-n", at, "link", "set", link, "up")
    for device in ("lo", "eth0"):
        await lab.ip("-n", name, "link", "set", device, "up")
    await lab.ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
    await within(lab.path(name), partial(compute_checksums, "eth0"))
    hook = f'type filter hook ingress device "{link}" priority -500; policy drop;'
    await host.run("nft", "-f", "-", stdin=f"add chain netdev lab {link} {{ {hook} }}\n".encode())
    await host.vsctl("add-port", "br-ex", link, f"tag={vlan}")
    return lab.path(name)


def dhcp_offer(mac: str, source: str) -> bytes:
    """What somebody says who pretends to be a DHCP server; of the offer only that it is one."""
    return _udp(mac, source, "255.255.255.255", 67, 68, b"\x02" + b"\0" * 300)


def router_announcement(mac: str, source: str) -> bytes:
    """What somebody says who pretends to be a router (RFC 4861, section 4.2)."""
    body = struct.pack("!BBHBBHII", _ROUTER_ANNOUNCEMENT, 0, 0, 64, 0, 1800, 0, 0)
    to = ip_address("ff02::1").packed
    pseudo = ip_address(source).packed + to + struct.pack("!II", len(body), _ICMPV6)
    body = body[:2] + struct.pack("!H", _checksum(pseudo + body)) + body[4:]
    packet = struct.pack("!IHBB", 6 << 28, len(body), _ICMPV6, 255) + ip_address(source).packed + to + body
    return _ethernet(mac, "33:33:00:00:00:01", _IPV6, packet)


def remark(mac: str, source: str, says: bytes) -> bytes:
    """A UDP packet to everybody, of no protocol that anybody minds."""
    return _udp(mac, source, "255.255.255.255", 9, 9, says)


async def sees(namespace: str, sender: str, frame: bytes, marker: bytes) -> bool:
    """Whether a frame gets from one namespace to another, to which the marker that is sent behind it does."""
    loop = asyncio.get_running_loop()
    with await within(namespace, _raw) as far, await within(sender, _raw) as near:
        async with asyncio.timeout(60):
            while True:
                for each in (frame, marker):
                    await loop.sock_sendall(near, each)
                seen = await _until_marked(far, frame, marker)
                if seen is not None:
                    return seen


async def _until_marked(sock: socket.socket, frame: bytes, marker: bytes) -> bool | None:
    """Whether the frame came before the marker; None if the marker did not come in a second."""
    loop = asyncio.get_running_loop()
    seen = False
    try:
        async with asyncio.timeout(1):
            while (got := await loop.sock_recv(sock, 2048))[: len(marker)] != marker:
                seen |= got[: len(frame)] == frame
    except TimeoutError:
        return None
    return seen


def _raw() -> socket.socket:
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL_PROTOCOLS))
    raw.setblocking(False)
    raw.bind(("eth0", 0))
    return raw


def _udp(mac: str, source: str, to: str, from_port: int, to_port: int, data: bytes) -> bytes:
    datagram = struct.pack("!HHHH", from_port, to_port, 8 + len(data), 0) + data
    ends = ip_address(source).packed + ip_address(to).packed
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(datagram), 0, 0, 64, _UDP, 0) + ends
    head = head[:10] + struct.pack("!H", _checksum(head)) + head[12:]
    return _ethernet(mac, BROADCAST, _IPV4, head + datagram)


def _ethernet(source: str, to: str, kind: int, payload: bytes) -> bytes:
    return b"".join(bytes.fromhex(each.replace(":", "")) for each in (to, source)) + struct.pack("!H", kind) + payload


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
