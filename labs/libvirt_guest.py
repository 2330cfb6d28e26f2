"""A guest of the small image on a real QEMU, spoken with by its console."""

import asyncio
from collections.abc import Mapping

import cache
from libvirt_host import LibvirtHost
from msgspec.structs import replace
from patience import BOOTS_WITHIN_S, WITHIN_S

from pileus.agent.configdrive import ConfigDrives
from pileus.agent.hypervisor.consoles import ByteStream
from pileus.agent.hypervisor.libvirt.driver import LibvirtHypervisor
from pileus.agent.network.port import Plug
from pileus.agent.storage.port import DiskSource
from pileus.kernel.ids import InstanceId, NetworkId, PortId, ProjectId, VolumeId, new_id
from pileus.kernel.programs import run
from pileus.link.guests import FirstBoot, GuestDisk, GuestSpec, NicSpec, Power

PROMPT = b":~# "


class Terminal:
    """The serial console of a guest."""

    def __init__(self, console: ByteStream) -> None:
        self._console = console
        self._unread = b""

    async def types(self, command: str) -> None:
        """Type a command on its console."""
        await self._console.write(f"{command}\r".encode())

    async def answers(self, command: str) -> str:
        """What a command says in the guest, which then waits for the next."""
        # What is typed is shown as well, but not with the sum in it.
        await self.types(f"{command}; echo $((6*7))end")
        said = await self.says(b"42end")
        # Typed before its shell listens again, the next command would be shown twice, and the prompt after it.
        await self.says(PROMPT)
        return said.replace("\r", "")

    async def says(self, words: bytes) -> str:
        """Read its console up to these words."""
        async with asyncio.timeout(BOOTS_WITHIN_S):
            while words not in self._unread:
                more = await self._console.read()
                assert more, f"the console ended; it said: {self._unread.decode(errors='replace')}"
                self._unread += more
        end = self._unread.index(words) + len(words)
        said, self._unread = self._unread[:end], self._unread[end:]
        return said.decode(errors="replace")


class Guest:
    """A guest that boots from an image of its own, and its console."""

    def __init__(
        self, host: LibvirtHost, hypervisor: LibvirtHypervisor, *, template: str = "linux", memory_mib: int = 128
    ) -> None:
        port, self.root = PortId(new_id()), VolumeId(new_id())
        tap = f"tap{port[-10:]}"
        host.make_tap(tap)
        mac = f"52:54:00:{port[-6:-4]}:{port[-4:-2]}:{port[-2:]}"
        self.disk = host.disks / self.root
        self.spec = GuestSpec(
            id=InstanceId(new_id()),
            generation=1,
            name="guest",
            project=ProjectId(new_id()),
            vcpus=1,
            memory_mib=memory_mib,
            power=Power.RUNNING,
            disks=(GuestDisk(volume=self.root),),
            nics=(NicSpec(port=port, network=NetworkId(new_id()), mac=mac, addresses=("192.0.2.5",), mtu=1442),),
            first_boot=FirstBoot(hostname="guest"),
            # One that nobody tells anything asks for it as long as a boot takes, before it lets anybody in.
            config_drive=True,
            template=template,
        )
        self._plugs = {port: Plug(device=tap, offload=False)}
        self._drives = ConfigDrives(host.disks / "config-drives")
        self._hypervisor = hypervisor
        self._terminal: Terminal | None = None

    async def installed(self) -> None:
        """Have the small image on its disk."""
        image = await asyncio.to_thread(cache.mini)
        await run("qemu-img", "convert", "-O", "raw", str(image.path), str(self.disk), timeout_s=WITHIN_S)

    async def given(self, *disks: GuestDisk, sources: Mapping[VolumeId, DiskSource]) -> None:
        """Have these disks besides the one that it boots from, as an agent gives them."""
        root = {self.root: DiskSource(kind="file", path=str(self.disk), format="raw")}
        self.spec = replace(self.spec, generation=self.spec.generation + 1, disks=(self.spec.disks[0], *disks))
        await self.defined({**root, **sources}, self._plugs)
        await self._hypervisor.change_disks(self.spec, {**root, **sources})

    async def defined(self, disks: Mapping[VolumeId, DiskSource], plugs: Mapping[PortId, Plug]) -> None:
        """Be defined as its spec says, with all of its disks."""
        drive = await self._drives.ensure(self.spec)
        await self._hypervisor.define(self.spec, disks, plugs, config_drive=drive)

    async def changed(self, **changes: object) -> None:
        """Have its definition changed."""
        self.spec = replace(self.spec, **changes)
        await self.given(*self.spec.disks[1:], sources={})

    async def start(self) -> None:
        await self._hypervisor.start(self.spec.id)
        self._terminal = Terminal(await self._hypervisor.consoles.serial(self.spec.id))

    async def booted(self) -> None:
        await self.says(PROMPT)

    async def types(self, command: str) -> None:
        """Type a command on its console."""
        await self._at_console.types(command)

    async def answers(self, command: str) -> str:
        """What a command says in the guest."""
        return await self._at_console.answers(command)

    async def says(self, words: bytes) -> str:
        """Read its console up to these words."""
        return await self._at_console.says(words)

    @property
    def _at_console(self) -> Terminal:
        assert self._terminal is not None, "it has not been started"
        return self._terminal
