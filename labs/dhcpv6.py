"""A DHCPv6 client (RFC 8415) that asks for one address, with nothing but what a lab needs."""

import asyncio
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from functools import partial
from ipaddress import IPv6Address

from pileus.agent.network.ovn_namespace import within

_SOLICIT, _ADVERTISE, _REQUEST, _REPLY = 1, 2, 3, 7
_CLIENT_ID, _SERVER_ID, _IA_NA, _IA_ADDRESS, _DNS_SERVERS = 1, 2, 3, 5, 23
_CLIENT, _SERVER = 546, 547
_ALL_SERVERS = "ff02::1:2"
_SIOCGIFINDEX = 0x8933


async def leased(namespace: str, device: str, mac: str) -> tuple[str, list[str]]:
    """The address that a machine is given at this device, and the DNS servers that it is told."""
    with await within(namespace, partial(_opened, device)) as sock:
        me = _option(_CLIENT_ID, struct.pack("!HH", 3, 1) + bytes.fromhex(mac.replace(":", "")))
        advertised = await _asked(sock, device, _SOLICIT, me + _option(_IA_NA, struct.pack("!3I", 1, 0, 0)))
        wanted = dict(_options(advertised[4:]))
        request = me + _option(_SERVER_ID, wanted[_SERVER_ID]) + _option(_IA_NA, wanted[_IA_NA])
        told = dict(_options((await _asked(sock, device, _REQUEST, request))[4:]))
    address = dict(_options(told[_IA_NA][12:]))[_IA_ADDRESS][:16]
    servers = told.get(_DNS_SERVERS, b"")
    return str(IPv6Address(address)), [str(IPv6Address(servers[at : at + 16])) for at in range(0, len(servers), 16)]


def _opened(device: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
    sock.setblocking(False)
    sock.bind(("::", _CLIENT))
    return sock


async def _asked(sock: socket.socket, device: str, kind: int, options: bytes) -> bytes:
    loop = asyncio.get_running_loop()
    number = os.urandom(3)
    expected = _ADVERTISE if kind == _SOLICIT else _REPLY
    index = _index(sock, device)
    async with asyncio.timeout(60):
        while True:
            await loop.sock_sendto(sock, bytes((kind,)) + number + options, (_ALL_SERVERS, _SERVER, 0, index))
            try:
                async with asyncio.timeout(1):
                    while True:
                        answer = await loop.sock_recv(sock, 1500)
                        if answer[:4] == bytes((expected,)) + number:
                            return answer
            except TimeoutError:
                continue  # as a client does: it asks again


def _index(sock: socket.socket, device: str) -> int:
    """The number of the device in the namespace that the socket is of."""
    return struct.unpack("16sI", fcntl.ioctl(sock, _SIOCGIFINDEX, struct.pack("16sI", device.encode(), 0)))[1]


def _option(kind: int, value: bytes) -> bytes:
    return struct.pack("!HH", kind, len(value)) + value


def _options(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        kind, size = struct.unpack("!HH", data[:4])
        yield kind, data[4 : 4 + size]
        data = data[4 + size :]
