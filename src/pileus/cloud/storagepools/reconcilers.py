"""Has every host serve the storage pools that it is to serve."""

import asyncio
from collections.abc import Sequence

import structlog

from pileus.cloud.hosts.each import on_each
from pileus.cloud.hosts.model import HOSTS
from pileus.cloud.storagepools.model import STORAGE_BACKINGS, STORAGE_POOLS, served_by
from pileus.cloud.storagepools.supply import Supplies
from pileus.cloud.world import Hosts
from pileus.kernel.errors import PileusError
from pileus.kernel.ids import HostId, StoragePoolId
from pileus.link.messages import Method
from pileus.link.storagepools import StoragePools, StoragePoolsObserved, StoragePoolSpec
from pileus.state.state import State
from pileus.state.store import Event

log = structlog.stdlib.get_logger()

_ANSWER_S = 60.0
_PAUSE_S = 1.0
"""Before a host is told again that refused."""
_AT_ONCE = 64
"""Hosts that are told at a time."""


class ServePools:
    """Tells hosts which storage pools to serve: when they connect, and when that changes."""

    def __init__(self, state: State, hosts: Hosts, supplies: Supplies) -> None:
        self._state = state
        self._hosts = hosts
        self._supplies = supplies
        self._due: set[HostId] = set()
        self._wake = asyncio.Event()

    async def run(self) -> None:
        """Tell hosts until cancelled."""
        forget = self._state.listen(self._came)
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                await self._round()
        finally:
            forget()

    def _came(self, events: Sequence[Event]) -> None:
        for event in events:
            if event.kind == HOSTS.name:
                self._due.add(HostId(event.id))
            elif event.kind in {STORAGE_POOLS.name, STORAGE_BACKINGS.name}:
                self._due.update(HostId(host.id) for host in self._state[HOSTS] if host.connected)
        if self._due:
            self._wake.set()

    async def _round(self) -> None:
        due, self._due = self._due, set()
        refused: set[HostId] = set()

        async def tell(host: HostId) -> None:
            try:
                await self._tell(host)
            except PileusError as why:
                log.info("host does not serve its storage pools yet", host=host, reason=why.detail)
                refused.add(host)

        await on_each(sorted(due), tell, at_once=_AT_ONCE)
        if again := {host for host in refused if self._is_connected(host)}:
            await asyncio.sleep(_PAUSE_S)
            self._due |= again
            self._wake.set()

    async def _tell(self, host: HostId) -> None:
        if not self._is_connected(host):
            return
        wanted = wanted_on(self._state, host)
        found = await self._hosts.ask(host, Method.STORAGE_POOLS, wanted, StoragePoolsObserved, timeout_s=_ANSWER_S)
        self._supplies.take(host, found.pools)

    def _is_connected(self, host: HostId) -> bool:
        known = self._state[HOSTS].find(host)
        return known is not None and known.connected


def wanted_on(state: State, host: HostId) -> StoragePools:
    """The storage pools that a host is to serve."""
    specs: list[StoragePoolSpec] = []
    for pool in served_by(state, state[HOSTS].get(host).pool_id):
        behind = state[STORAGE_BACKINGS].find(pool.id)
        specs.append(
            StoragePoolSpec(
                id=StoragePoolId(pool.id),
                name=pool.name,
                backing=None if behind is None else behind.backing,
                overcommit=pool.overcommit,
            )
        )
    return StoragePools(pools=tuple(specs))
