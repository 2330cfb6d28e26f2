"""The guest that the contracts of a hypervisor driver are about, and waiting for what is seen of it."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import ClassVar

import pytest
from msgspec import structs

from pileus.agent.hypervisor.port import GuestFound, Hypervisor
from pileus.agent.network.port import Plug
from pileus.agent.storage.port import DiskSource
from pileus.kernel.ids import InstanceId, PortId, VolumeId
from pileus.link.guests import GuestSpec

Crash = Callable[[InstanceId], Awaitable[None]]


class GuestContract:
    """What the contracts share. A subclass brings the fixtures below.

    * `hypervisor`: the driver, with no guest of Pileus yet.
    * `another`: a function that makes a second driver of the same hypervisor, as a restarted agent does.
    * `guest`, `disks`, `plugs`: a guest that can be started, and where its disks and ports are.
    * `crash`: a function that kills the guest's process.
    """

    patience_s: ClassVar[float] = 60.0
    """How long a change may take to show."""

    @pytest.fixture
    def defined(
        self,
        hypervisor: Hypervisor,
        guest: GuestSpec,
        disks: Mapping[VolumeId, DiskSource],
        plugs: Mapping[PortId, Plug],
    ) -> Callable[..., Awaitable[InstanceId]]:
        """A function that defines the guest, with changes."""

        async def define(**changes: object) -> InstanceId:
            await hypervisor.define(structs.replace(guest, **changes), disks, plugs)
            return guest.id

        return define

    async def until(self, hypervisor: Hypervisor, id: InstanceId, holds: Callable[[GuestFound | None], bool]) -> None:
        async with asyncio.timeout(self.patience_s):
            while not holds((await hypervisor.list()).get(id)):  # noqa: ASYNC110 - what is seen counts, not what is told
                await asyncio.sleep(0.02)
