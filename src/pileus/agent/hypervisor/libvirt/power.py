"""Starting, stopping and holding guests. What a guest was told is remembered, so that its end is understood."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

from pileus.agent.hypervisor.libvirt.binding import Library, VirDomain
from pileus.agent.hypervisor.libvirt.connection import Connection
from pileus.agent.hypervisor.libvirt.layered import DoTo
from pileus.agent.hypervisor.libvirt.states import DomainState, Order
from pileus.kernel.ids import InstanceId

# libvirt gives QEMU half a minute to come up, and a quarter to go.
DEED_S: Final = 60.0
# A guest's memory goes to a disk, or comes from there.
_MEMORY_S: Final = 900.0


class Power:
    """Brings guests into the states that they ought to be in."""

    def __init__(
        self,
        library: Library,
        connection: Connection,
        do_to: DoTo,
        ordered: Callable[[InstanceId, Order | None], AbstractContextManager[None]],
    ) -> None:
        """`ordered` remembers what a guest was told."""
        self._library = library
        self._connection = connection
        self._do_to = do_to
        self._ordered = ordered

    async def start(self, id: InstanceId) -> None:
        def start(domain: VirDomain) -> None:
            self._unless(domain.isActive, lambda: domain.createWithFlags(0))

        with self._ordered(id, None):
            await self._do_to("start the guest", id, start, timeout_s=_MEMORY_S)

    async def shut_down(self, id: InstanceId) -> None:
        button = self._library.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN

        def shut_down(domain: VirDomain) -> None:
            self._unless(lambda: not domain.isActive(), lambda: domain.shutdownFlags(button))

        with self._ordered(id, Order.SHUT_DOWN):
            await self._do_to("shut down the guest", id, shut_down)

    async def stop(self, id: InstanceId) -> None:
        def stop(domain: VirDomain) -> None:
            self._unless(lambda: not domain.isActive(), lambda: domain.destroyFlags(0))

        with self._ordered(id, Order.STOP):
            # Not in the guest's turn: if its QEMU hangs, this is what ends the call that has the turn.
            await self._connection.call(
                "stop the guest", lambda libvirt: stop(libvirt.lookupByUUIDString(id)), timeout_s=DEED_S
            )

    async def pause(self, id: InstanceId) -> None:
        def pause(domain: VirDomain) -> None:
            self._unless(lambda: domain.state(0)[0] == DomainState.PAUSED, domain.suspend)

        await self._do_to("pause the guest", id, pause)

    async def resume(self, id: InstanceId) -> None:
        def resume(domain: VirDomain) -> None:
            self._unless(lambda: domain.state(0)[0] == DomainState.RUNNING, domain.resume)

        await self._do_to("resume the guest", id, resume)

    async def suspend(self, id: InstanceId) -> None:
        # Without the flag a guest that was paused would be paused again by its next start.
        def suspend(domain: VirDomain) -> None:
            self._unless(
                lambda: not domain.isActive() and domain.hasManagedSaveImage(),
                lambda: domain.managedSave(self._library.VIR_DOMAIN_SAVE_RUNNING),
            )

        await self._do_to("suspend the guest", id, suspend, timeout_s=_MEMORY_S)

    async def forget_memory(self, id: InstanceId) -> None:
        def forget(domain: VirDomain) -> None:
            self._unless(lambda: not domain.hasManagedSaveImage(), domain.managedSaveRemove)

        with self._ordered(id, Order.STOP):
            await self._do_to("forget what the guest had in memory", id, forget)

    async def reboot(self, id: InstanceId, *, hard: bool) -> None:
        button = self._library.VIR_DOMAIN_REBOOT_ACPI_POWER_BTN

        def reboot(domain: VirDomain) -> None:
            if hard:
                domain.reset(0)
            else:
                domain.reboot(button)

        await self._do_to("reboot the guest", id, reboot)

    def _unless(self, done: Callable[[], object], deed: Callable[[], object]) -> None:
        """Do it, unless it is done or somebody else does it at the same moment."""
        if done():
            return
        try:
            deed()
        except self._library.libvirtError:
            if not done():
                raise
