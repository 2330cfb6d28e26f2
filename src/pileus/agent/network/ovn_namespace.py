"""Network namespaces: making them, and opening sockets in them that the agent's own event loop serves."""

import asyncio
import ctypes
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pileus.kernel.errors import Unavailable

T = TypeVar("T")

NAMESPACES = Path("/run/netns")
"""Where iproute2 keeps those that have a name (ip-netns(8))."""

_CLONE_NEWNET = 0x4000_0000
_libc = ctypes.CDLL(None, use_errno=True)


def is_namespace(name: str) -> bool:
    """Whether there is a network namespace of this name, and not only the file that one was mounted on."""
    file = NAMESPACES / name
    try:
        return file.stat().st_dev != file.parent.stat().st_dev
    except FileNotFoundError:
        return False


async def within(namespace: str, call: Callable[[], T]) -> T:
    """Call this in a network namespace. A socket that it opens stays there; the process does not.

    The namespace is a thread's, so the thread is one of its own that ends here: one of a pool would stay in there.
    """
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: BaseException | None) -> None:
        if result.done():
            return
        if error is not None:
            result.set_exception(error)
        else:
            result.set_result(value)  # type: ignore[arg-type]

    def work() -> None:
        try:
            _enter(namespace)
            value = call()
        except BaseException as error:  # noqa: BLE001 - told to the one who asked
            loop.call_soon_threadsafe(settle, None, error)
        else:
            loop.call_soon_threadsafe(settle, value, None)

    threading.Thread(target=work, name=f"in {namespace}", daemon=True).start()
    return await result


def _enter(namespace: str) -> None:
    try:
        file = os.open(NAMESPACES / namespace, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as missing:
        raise Unavailable(f"the network namespace {namespace} is gone") from missing
    try:
        if _libc.setns(file, _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")
    finally:
        os.close(file)


def close_ipv6(device: str) -> None:
    """Have the kernel not speak IPv6 on this device: it would answer there with an address of its own making."""
    setting = Path(f"/proc/sys/net/ipv6/conf/{device}/disable_ipv6")
    if setting.exists():  # a kernel without IPv6 has none
        setting.write_text("1", encoding="ascii")


_SIOCETHTOOL = 0x8946
_ETHTOOL_STXCSUM = 0x17


def compute_checksums(device: str) -> None:
    """Have the kernel compute the checksums of what it sends by this device, and not leave them to the hardware.

    A virtual Ethernet pair has none that would, and a switch in userspace passes packets on as they come.
    """
    value = ctypes.create_string_buffer(struct.pack("II", _ETHTOOL_STXCSUM, 0))
    request = struct.pack("16sP16x", device.encode(), ctypes.addressof(value))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCETHTOOL, request)


def devices() -> set[str]:
    """The network devices of the namespace that this is called in."""
    return {name for _, name in socket.if_nameindex()}
