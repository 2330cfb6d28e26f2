"""Changing the size of a guest while it runs: vCPUs are plugged in and out, the balloon gives and takes memory."""

import asyncio
from collections.abc import Callable

import structlog

from pileus.agent.hypervisor.libvirt.binding import Library, VirDomain
from pileus.agent.hypervisor.libvirt.plugging import DoTo
from pileus.kernel.errors import Conflict
from pileus.kernel.ids import InstanceId
from pileus.link.guests import GuestSpec

log = structlog.stdlib.get_logger()

_KIB_IN_MIB = 1024
# libvirt itself waits 5 s for each vCPU that a guest is to let go of.
_LETS_GO_S = 45.0
_LOOK_AGAIN_S = 0.5
# The places of virDomainInfo.
_MAX_MEMORY, _MEMORY, VCPUS = 1, 2, 3


class Sizing:
    """Gives running guests another size."""

    def __init__(self, library: Library, do_to: DoTo) -> None:
        self._library = library
        self._do_to = do_to

    async def change_size(self, guest: GuestSpec) -> None:
        """Have the guest of this size; see the port."""
        await self._do_to("look at the guest's size", guest.id, lambda domain: _check(domain, guest))
        memory_kib = guest.memory_mib * _KIB_IN_MIB
        await self._insist(
            "vCPUs",
            guest.id,
            lambda domain: domain.info()[VCPUS] == guest.vcpus,
            lambda domain: domain.setVcpusFlags(guest.vcpus, self._library.VIR_DOMAIN_AFFECT_LIVE),
        )
        await self._insist(
            "memory",
            guest.id,
            lambda domain: domain.info()[_MEMORY] == memory_kib,
            lambda domain: domain.setMemoryFlags(memory_kib, self._library.VIR_DOMAIN_AFFECT_LIVE),
        )

    async def _insist(
        self, what: str, id: InstanceId, done: Callable[[VirDomain], bool], ask: Callable[[VirDomain], object]
    ) -> None:
        """Raises Conflict if the guest does not follow in time."""

        def look(domain: VirDomain) -> bool:
            if not domain.isActive() or done(domain):
                return True
            try:
                ask(domain)
            except self._library.libvirtError as error:
                log.info("guest not resized at once", guest=id, what=what, why=str(error))
            return done(domain)

        try:
            async with asyncio.timeout(_LETS_GO_S):
                # libvirt tells of the balloon, but not to one who has lost it in between.
                while not await self._do_to(f"change the guest's {what}", id, look):  # noqa: ASYNC110
                    await asyncio.sleep(_LOOK_AGAIN_S)
        except TimeoutError as late:
            raise Conflict(f"the guest does not follow with its {what}; it may be only just starting") from late


def _check(domain: VirDomain, guest: GuestSpec) -> None:
    if not domain.isActive():
        return
    if guest.vcpus > domain.maxVcpus() or guest.memory_mib * _KIB_IN_MIB > domain.info()[_MAX_MEMORY]:
        raise Conflict("the guest was started with less than that as its most")
