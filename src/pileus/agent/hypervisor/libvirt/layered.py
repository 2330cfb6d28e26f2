"""The port `LayeredDisks` on libvirt and QEMU: overlays come and go while the guest runs."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, Protocol, TypeVar

import structlog

from pileus.agent.hypervisor.libvirt.binding import Library, VirConnect, VirDomain
from pileus.agent.hypervisor.libvirt.disks import disks_of
from pileus.agent.hypervisor.libvirt.layers import chain_of, files_of, switch_xml, with_disks
from pileus.agent.hypervisor.libvirt.states import Order
from pileus.agent.storage.port import DiskSource
from pileus.kernel.ids import InstanceId, VolumeId

_SWITCH_S: Final = 60.0
_MEMORY_S: Final = 900.0
"""Of a few GiB of memory to a slow disk."""
_AGENT_S: Final = 8
_LOOK_AGAIN_S: Final = 0.2

T = TypeVar("T")
log = structlog.stdlib.get_logger()


class Do(Protocol):
    """Asks libvirt about a guest, in its turn; `what` is told if it fails."""

    def __call__(
        self, what: str, id: InstanceId, deed: Callable[[VirConnect], T], *, timeout_s: float = ...
    ) -> Awaitable[T]: ...


class DoTo(Protocol):
    """Does something to the domain of a guest, in its turn; `what` is told if it fails."""

    def __call__(
        self, what: str, id: InstanceId, deed: Callable[[VirDomain], T], *, timeout_s: float = ...
    ) -> Awaitable[T]: ...


class LibvirtLayers:
    """Switches and merges the disks of guests (a LayeredDisks)."""

    def __init__(
        self,
        library: Library,
        do: Do,
        do_to: DoTo,
        ordered: Callable[[InstanceId, Order | None], AbstractContextManager[None]],
    ) -> None:
        """`ordered` remembers what a guest was told."""
        self._library = library
        self._do = do
        self._do_to = do_to
        self._ordered = ordered

    async def files(self, id: InstanceId) -> Mapping[VolumeId, str]:
        return await self._do_to("look at the guest's disks", id, lambda domain: files_of(domain.XMLDesc(0)))

    async def freeze(self, id: InstanceId) -> bool:
        def freeze(domain: VirDomain) -> bool:
            try:
                domain.agentSetResponseTimeout(_AGENT_S)
                return domain.fsFreeze() >= 0
            except self._library.libvirtError as error:
                log.info("guest's agent does not hold its file systems", guest=id, why=str(error))
                return False

        return await self._do_to("freeze the guest's file systems", id, freeze)

    async def thaw(self, id: InstanceId) -> None:
        def thaw(domain: VirDomain) -> None:
            try:
                domain.fsThaw()
            except self._library.libvirtError as error:
                log.info("guest's agent does not let its file systems go on", guest=id, why=str(error))

        await self._do_to("thaw the guest's file systems", id, thaw)

    async def switch(self, id: InstanceId, disks: Mapping[VolumeId, DiskSource], *, memory: Path | None = None) -> None:
        library = self._library
        flags = (
            library.VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT
            | library.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
            | library.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
            | (library.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY if memory is None else 0)
        )

        def switch(domain: VirDomain) -> None:
            definition = domain.XMLDesc(0)
            has = files_of(definition)
            ahead = {volume: source for volume, source in disks.items() if has.get(volume) != source.path}
            if ahead:
                domain.snapshotCreateXML(switch_xml(definition, ahead, memory), flags)

        await self._do_to("switch the guest's disks", id, switch, timeout_s=_SWITCH_S if memory is None else _MEMORY_S)

    async def merge(self, id: InstanceId, volume: VolumeId, layer: DiskSource, into: DiskSource) -> None:
        def merge(domain: VirDomain) -> bool:
            """Begin the merge, or see to it that it ends; whether it has ended."""
            definition = domain.XMLDesc(0)
            chain, target = chain_of(definition, volume), disks_of(definition).get(volume, "")
            if layer.path not in chain:
                return True
            active = chain[0] == layer.path
            if not domain.blockJobInfo(target):
                kind = library.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE if active else library.VIR_DOMAIN_BLOCK_COMMIT_RELATIVE
                domain.blockCommit(target, into.path, layer.path, 0, kind)
            elif active:
                try:
                    domain.blockJobAbort(target, library.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
                except library.libvirtError as error:
                    log.debug("layer not merged yet", guest=id, volume=volume, why=str(error))
            return False

        library = self._library
        while not await self._do_to("merge layers of the guest's disk", id, merge):  # noqa: ASYNC110 - libvirt's own state
            await asyncio.sleep(_LOOK_AGAIN_S)

    async def restore(self, id: InstanceId, disks: Mapping[VolumeId, DiskSource], memory: Path) -> None:
        def restore(libvirt: VirConnect) -> None:
            domain = libvirt.lookupByUUIDString(id)
            definition = with_disks(libvirt.saveImageGetXMLDesc(str(memory)), disks)
            running = self._library.VIR_DOMAIN_SAVE_RUNNING
            if not domain.isActive():
                libvirt.restoreFlags(str(memory), definition, running)

        with self._ordered(id, None):
            await self._do("go on from the guest's memory", id, restore, timeout_s=_MEMORY_S)
