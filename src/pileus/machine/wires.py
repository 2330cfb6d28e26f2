"""Physical networks: the wires outside that instances can be on, each by a bridge of ours.

A network card goes into the bridge itself, so it must be one that the machine does not use: with an address of the
machine's it would no longer be reached. Where the only card is the machine's own, the address has to be on a Linux
bridge, which the machine's owner makes; that one is joined with ours by a pair of links, and stays as it is.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from pileus.kernel.errors import Conflict, Invalid
from pileus.kernel.files import write_atomically
from pileus.kernel.programs import run
from pileus.machine.external import guard, unguard
from pileus.machine.layout import Layout
from pileus.machine.openvswitch import EXTERNAL_NETWORK, Datapath, OpenVSwitch

_LONGEST_NAME = 11
"""A link's name has 15 characters, of which ours take three or four."""
_NOT_FOR_WIRES = {EXTERNAL_NETWORK, "ex", "int", "tun"}
"""Names that are taken, or whose bridges are."""
_KERNEL_DATAPATH = "ovs-system"


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """A network device of the machine, as far as it matters here."""

    name: str
    is_bridge: bool = False
    """Whether it is a bridge of the kernel's."""
    master: str = ""
    """The device that it is a part of."""
    addresses: tuple[str, ...] = ()
    """Those that reach further than the link."""


class Wires:
    """The physical networks of one host. What was asked for once is kept until it is taken back."""

    def __init__(self, layout: Layout, asked: Mapping[str, str], say: Callable[[str], None]) -> None:
        """Nothing is done or looked at yet.

        Args:
            layout: the host's folders.
            asked: by the name of a physical network the device that leads there; an empty one takes it back.
            say: told each change to the machine.

        Raises:
            Invalid: a name cannot be one.
        """
        for name in asked:
            if reason := why_not(name):
                raise Invalid(f"{name!r} cannot be the name of a physical network: {reason}")
        self._layout = layout
        self._asked = asked
        self._say = say

    @property
    def _file(self) -> Path:
        return self._layout.machine / "wires.json"

    def kept(self) -> dict[str, str]:
        """What was asked for before, by name."""
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=dict[str, str])
        except FileNotFoundError:
            return {}

    def wanted(self) -> dict[str, str]:
        """All physical networks that the host is to have, each with its device."""
        both = {**self.kept(), **self._asked}
        return {name: device for name, device in both.items() if device}

    def mappings(self) -> dict[str, str]:
        """The bridge of each."""
        return {name: bridge_of(name) for name in self.wanted()}

    async def check(self) -> None:
        """Refuse what would cut the machine off, before anything is changed.

        Raises:
            Conflict: a device is not there, is used by the machine, or asked for twice; the detail says what to do.
        """
        links, wanted = await _links(), self.wanted()
        for name, device in wanted.items():
            if reason := unfit(device, links, mine=bridge_of(name)):
                raise Conflict(f"physical network {name} cannot be on {device}: {reason}")
            if twice := [other for other, same in wanted.items() if same == device and other != name]:
                raise Conflict(f"{device} is asked for by two physical networks, {name} and {twice[0]}")

    async def up(self, switch: OpenVSwitch, datapath: Datapath) -> None:
        """Have a bridge on each wire, and none on those that were taken back; idempotent."""
        before, wanted = self.kept(), self.wanted()
        # Noted before it is made: what is there of it is found again whenever this ends.
        write_atomically(self._file, msgspec.json.encode({**before, **wanted}), mode=0o644)
        for name in before.keys() - wanted.keys():
            await self._take_away(name, before[name], switch)
            self._say(f"physical network {name} is no more on {before[name]}")
        for name, device in wanted.items():
            if before.get(name, device) != device:
                await self._take_away(name, before[name], switch)
            await self._make(name, device, switch, datapath)
            if before.get(name) != device:
                self._say(f"physical network {name} is on {device}, by the bridge {bridge_of(name)}")
        write_atomically(self._file, msgspec.json.encode(wanted), mode=0o644)

    async def _make(self, name: str, device: str, switch: OpenVSwitch, datapath: Datapath) -> None:
        links, port = await _links(), device
        if links[device].is_bridge:
            port, far = _ends_of(name)
            if port not in links:
                peer = ("peer", "name", far, "address", _last_in_a_bridge(name))
                await run("ip", "link", "add", port, "type", "veth", *peer)
            await run("ip", "link", "set", "dev", far, "master", device, "up")
        bridge = bridge_of(name)
        await switch.make_bridge(bridge, datapath, "--", "--may-exist", "add-port", bridge, port)
        if datapath is Datapath.NETDEV:
            await guard(port)
        await run("ip", "link", "set", "dev", port, "up")

    async def _take_away(self, name: str, device: str, switch: OpenVSwitch) -> None:
        near, _ = _ends_of(name)
        joined = near in await _links()
        await switch.vsctl("--if-exists", "del-br", bridge_of(name))
        await unguard(near if joined else device)
        if joined:
            await run("ip", "link", "delete", near, accept=(0, 1))

    async def down(self) -> None:
        """Take from the machine what is ours; what was asked for is kept, and made again by the next `up`.

        The bridges go with the switch, and a network card is out of its bridge with it.
        """
        for link in await self._made():
            await run("ip", "link", "delete", link, accept=(0, 1))

    async def leftovers(self) -> list[str]:
        """What there still is of it."""
        return [f"link {link}" for link in await self._made()]

    async def _made(self) -> list[str]:
        links = await _links()
        return [link for name in self.kept() for link in (_ends_of(name)[0], bridge_of(name)) if link in links]


def why_not(name: str) -> str:
    """Why a physical network cannot have this name; empty if it can."""
    if re.fullmatch(r"[a-z][a-z0-9-]*", name) is None:
        return "it begins with a letter, and has small letters, digits and hyphens"
    if len(name) > _LONGEST_NAME:
        return f"it has at most {_LONGEST_NAME} characters, because a bridge is called after it"
    return "the bridge of this name is for something else" if name in _NOT_FOR_WIRES else ""


def unfit(device: str, links: Mapping[str, Link], *, mine: str) -> str:
    """Why a bridge of ours, `mine`, cannot be on this device; empty if it can. It may be already."""
    link = links.get(device)
    if link is None:
        there = ", ".join(sorted(name for name in links if name != "lo"))
        return f"there is no such device; there are {there or 'none'}"
    if link.name == "lo":
        return "it leads nowhere"
    if link.is_bridge:
        return ""
    if link.master and link.master not in (_KERNEL_DATAPATH, mine):
        return f"it is a part of {link.master}; name that"
    if link.addresses:
        return (
            f"the machine is reached there by {link.addresses[0]}, and would no longer be. Give the address to a Linux"
            f" bridge that {device} is a part of, by the machine's own network settings, and name the bridge"
        )
    return ""


def links_of(shown: list[dict[str, Any]]) -> list[Link]:
    """The devices in what `ip -json -details address show` says; `Any`, because it is another program's JSON."""
    return [
        Link(
            name=each["ifname"],
            is_bridge=each.get("linkinfo", {}).get("info_kind") == "bridge",
            master=each.get("master", ""),
            addresses=tuple(at["local"] for at in each["addr_info"] if at.get("scope") == "global"),
        )
        for each in shown
        if each.get("ifname")
    ]


def bridge_of(name: str) -> str:
    """The bridge of a physical network."""
    return f"br-{name}"


def _ends_of(name: str) -> tuple[str, str]:
    """The links that join our bridge with a Linux bridge: ours, and that one's."""
    return f"pi-{name}", f"po-{name}"


def _last_in_a_bridge(name: str) -> str:
    """A MAC address for our end in a Linux bridge, higher than any network card's.

    A bridge takes the lowest of its ports' addresses for its own. If that changed, whoever speaks with the machine
    would not find it for a while.
    """
    digits = hashlib.blake2s(name.encode(), digest_size=5).hexdigest()
    return ":".join(("fe", *(digits[at : at + 2] for at in range(0, 10, 2))))


async def _links() -> dict[str, Link]:
    """The devices of this machine, by name."""
    return {link.name: link for link in links_of(json.loads(await run("ip", "-json", "-details", "address", "show")))}
