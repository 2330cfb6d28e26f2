"""An agent: makes the desired records of one host so, keeps them so, and tells what is. Knows nothing of the wire."""

import asyncio
import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec
import structlog
from msgspec import structs

from pileus.agent.backup.contents import BackupContents
from pileus.agent.backups import Backups
from pileus.agent.comparing import generation_of
from pileus.agent.configdrive import ConfigDrives
from pileus.agent.consoles import GuestConsoles
from pileus.agent.copies import Copies
from pileus.agent.guests import Guests
from pileus.agent.host import Host
from pileus.agent.hypervisor.port import Hypervisor, HypervisorFacts
from pileus.agent.imagecache import AT_MOST, ImageCache
from pileus.agent.media import Media
from pileus.agent.network.port import HostNetwork
from pileus.agent.packing import ImagePacking, Send
from pileus.agent.pools import Pools
from pileus.agent.records import AgentRecords, specs_of
from pileus.agent.storage.found import FilesAsFound, FoundDisks
from pileus.agent.storage.mounted import MountedFolders
from pileus.agent.storage.port import Backings, Fetch, StoragePool
from pileus.agent.volumes import Tell, Volumes, tell_nobody
from pileus.kernel.clock import Clock
from pileus.kernel.errors import Conflict, PileusError, Unavailable
from pileus.kernel.ids import InstanceId, PortId
from pileus.link.backups import BackupChecked, BackupObserved, BackupOf, BackupRestore, BackupSpec
from pileus.link.foreign import ForeignGuests
from pileus.link.guests import (
    DiskPassword,
    GuestObserved,
    GuestPassword,
    GuestReboot,
    GuestRemoval,
    GuestSpec,
    PortTraffic,
)
from pileus.link.hosts import Hello, HostFacts, HostReport, Inventory
from pileus.link.images import MediumSpec
from pileus.link.moves import VolumeMove
from pileus.link.snapshots import SnapshotObserved, SnapshotRemoval, SnapshotRevert, SnapshotSpec, VolumeOf, VolumeSpace
from pileus.link.storagepools import StoragePools, StoragePoolsObserved
from pileus.link.volumes import FoundDisk, VolumeObserved, VolumeRemoval, VolumeSpec

log = structlog.stdlib.get_logger()


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How long an agent waits, in seconds."""

    between_rounds_s: float = 10.0
    """Between two looks at everything."""
    shut_down_s: float = 60.0
    """For a guest that was asked to end."""
    look_again_s: float = 1.0
    """After the hypervisor was lost."""


class Engines(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent works with."""

    hypervisor: Hypervisor
    network: HostNetwork
    pools: Mapping[str, StoragePool]
    """Those that the host is configured with."""
    host: Host
    fetch: Fetch
    send: Send
    backings: Backings = MountedFolders()
    """Opens the other ones."""
    config_drives: Path | None = None
    """The folder for config drives, to which QEMU's user is let through."""
    found_disks: FoundDisks = FilesAsFound()
    images_at_most: float = AT_MOST
    """How much of each pool copies of images may take."""


class Agent:
    """One host's agent. Guests go on running when it goes away; a new one over the same records takes over."""

    def __init__(self, engines: Engines, records: AgentRecords, clock: Clock, pace: Pace | None = None) -> None:
        self._engines = engines
        self._clock = clock
        self._pace = pace or Pace()
        self._listeners: list[Callable[[GuestObserved], None]] = []
        self._wake = asyncio.Event()
        self._hypervisor_facts: HypervisorFacts | None = None
        self.copies = Copies(records)
        self._records = records
        self._pools = Pools(engines.pools, records.pools, engines.backings)
        contents = BackupContents(self._pools)
        self._volumes = Volumes(self._pools, records.volumes, engines.fetch, contents, engines.found_disks, clock)
        self._media = Media(self._pools, engines.fetch, clock, lambda: specs_of(records.guests))
        self.image_cache = ImageCache(
            self._pools, engines.fetch, clock, lambda: self._volumes.copied, at_most=engines.images_at_most
        )
        self.packing = ImagePacking(self._pools, engines.send)
        self._guests = Guests(
            engines.hypervisor,
            engines.network,
            self._volumes,
            self._media,
            ConfigDrives(engines.config_drives),
            records.guests,
            records.snapshots,
            clock,
            boot=engines.host.boot,
            patience_s=self._pace.shut_down_s,
            observed=self._tell_listeners,
        )
        self._backups = Backups(self._guests.snapshots, self._volumes, contents, clock)

    # What the controller asks for. Errors are those of `Volumes` and `Guests`.

    async def serve_pools(self, wanted: StoragePools) -> StoragePoolsObserved:
        return StoragePoolsObserved(pools=await self._pools.serve(wanted))

    async def ensure_volume(self, spec: VolumeSpec, tell: Tell) -> VolumeObserved:
        if spec.found is not None and self._records.volumes.get(spec.id) is None:
            await self._must_be_a_disk(spec.found)
        return await self._volumes.ensure(spec, tell)

    async def volume_space(self, volume: VolumeOf) -> VolumeSpace:
        return await self._volumes.space(volume)

    async def remove_volume(self, removal: VolumeRemoval, tell: Tell = tell_nobody) -> None:
        if (user := self._guests.user_of(removal.id)) is not None:
            raise Conflict(f"the volume is a disk of guest {user.name!r}")
        await self._volumes.remove(removal, tell)

    async def copy_volume(self, wish: VolumeMove, tell: Tell) -> None:
        await self._guests.moves.copy(wish, tell)

    async def switch_volume(self, wish: VolumeMove, tell: Tell) -> None:
        await self._guests.moves.switch(wish, tell)

    async def undo_move(self, wish: VolumeMove) -> None:
        await self._guests.moves.undo(wish)

    async def ensure_medium(self, spec: MediumSpec, tell: Tell) -> None:
        await self._media.ensure(spec, tell)

    async def ensure_snapshot(self, spec: SnapshotSpec, tell: Tell) -> SnapshotObserved:
        return await self._guests.snapshots.ensure(spec, tell)

    async def remove_snapshot(self, removal: SnapshotRemoval, tell: Tell) -> None:
        await self._guests.snapshots.remove(removal, tell)

    async def revert_to_snapshot(self, wish: SnapshotRevert, tell: Tell) -> None:
        await self._guests.snapshots.revert(wish, tell)

    async def ensure_backup(self, spec: BackupSpec, tell: Tell) -> BackupObserved:
        return await self._backups.ensure(spec, tell)

    async def check_backup(self, wish: BackupOf, tell: Tell) -> BackupChecked:
        return await self._backups.check(wish, tell)

    async def remove_backup(self, removal: BackupOf) -> None:
        await self._backups.remove(removal)

    async def prepare_restore(self, wish: BackupRestore, tell: Tell) -> None:
        await self._backups.prepare(wish, tell)

    async def drop_restore(self, wish: BackupRestore) -> None:
        await self._backups.drop(wish)

    async def exchange_restored(self, wish: BackupRestore) -> None:
        await self._guests.snapshots.exchange([each.volume for each in wish.volumes], wish.to)

    async def ensure_guest(self, spec: GuestSpec, tell: Tell) -> GuestObserved:
        return await self._guests.ensure(spec, tell)

    async def remove_guest(self, removal: GuestRemoval) -> None:
        await self._guests.remove(removal)

    async def reboot_guest(self, wish: GuestReboot) -> GuestObserved:
        return await self._guests.reboot(wish)

    async def port_traffic(self, port: PortId) -> PortTraffic:
        return await self._engines.network.traffic(port)

    async def set_password(self, wish: GuestPassword) -> None:
        await self._guests.set_password(wish)

    async def set_password_in_disk(self, wish: DiskPassword, tell: Tell) -> None:
        await self._guests.set_password_in_disk(wish, tell)

    @property
    def consoles(self) -> GuestConsoles:
        return self._guests.consoles

    # What is.

    async def inventory(self) -> Inventory:
        """Everything of Pileus that is here, with or without a record.

        Raises:
            Unavailable: the hypervisor does not answer.
        """
        return Inventory(guests=tuple(await self._guests.observe()), volumes=tuple(await self._volumes.observe()))

    async def foreign_guests(self) -> ForeignGuests:
        """The guests here that are not of Pileus.

        Raises:
            Unavailable: the hypervisor does not answer.
        """
        found = await self._engines.hypervisor.foreign()
        known = {id: generation_of(record) for id, record in self._records.guests.items()}
        return ForeignGuests(
            guests=tuple(structs.replace(each, generation=known.get(InstanceId(each.id), 0)) for each in found)
        )

    async def _must_be_a_disk(self, disk: FoundDisk) -> None:
        """Raises Conflict unless a guest of others has this disk: no other file of this host is anybody's volume."""
        guests = await self._engines.hypervisor.foreign()
        if not any((each.kind, each.path) == (disk.kind, disk.path) for guest in guests for each in guest.disks):
            raise Conflict(f"{disk.path} is not a disk of a guest on this host that is not of Pileus")

    async def hello(self) -> Hello:
        """What is said on a new connection; of a hypervisor that is away just now, what was last seen.

        Raises:
            Unavailable: the hypervisor has not answered yet.
        """
        guests = tuple(await self._guests.observe(or_last=True))
        pools = await self._pools.observed()
        inventory = Inventory(guests=guests, volumes=tuple(await self._volumes.observe()))
        return Hello(facts=await self.facts(), inventory=inventory, pools=pools)

    async def facts(self) -> HostFacts:
        """What this host is.

        Raises:
            Unavailable: the hypervisor has not answered yet.
        """
        # It does not change under a running agent, and a host whose hypervisor is away is no stranger.
        hypervisor = self._hypervisor_facts = self._hypervisor_facts or await self._engines.hypervisor.facts()
        machine = await self._engines.host.machine()
        return HostFacts(
            name=machine.name,
            hypervisor=hypervisor.name,
            accelerator=hypervisor.accelerator,
            accelerator_reason=hypervisor.accelerator_reason,
            architecture=hypervisor.architecture,
            vcpus=machine.vcpus,
            memory_mib=machine.memory_mib,
            disk_mib=machine.disk_mib,
            version=hypervisor.version,
            addresses=machine.addresses,
            traits=hypervisor.traits,
            physical_networks=await self._wires() or (),
        )

    async def report(self) -> HostReport:
        """What this host measures now."""
        return HostReport(
            at=self._clock.now(),
            load=await self._engines.host.load(),
            running_guests=self._guests.running,
            physical_networks=await self._wires(),
            pools=await self._pools.observed(),
        )

    async def _wires(self) -> tuple[str, ...] | None:
        """The physical networks that this host is on; None while the switch does not answer."""
        try:
            return await self._engines.network.physical_networks()
        except Unavailable:
            return None

    def listen(self, told: Callable[[GuestObserved], None]) -> Callable[[], None]:
        """Tell this of whatever a guest does by itself, until what is returned is called; it must return at once."""
        self._listeners.append(told)
        return lambda: self._listeners.remove(told)

    def _tell_listeners(self, observed: GuestObserved) -> None:
        for told in self._listeners:
            told(observed)

    # What must stay so.

    async def run(self) -> None:
        """Keep everything as it ought to be until cancelled, and leave the guests running then."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch())
            while True:
                self._wake.clear()
                # A round may wait for a guest to shut down: the next one does not wait for that.
                this_round = tasks.create_task(self.reconcile())
                await asyncio.wait({this_round}, timeout=self._pace.between_rounds_s)
                await self._until_next_round()

    async def reconcile(self) -> None:
        """One round: compare what ought to be with what is, and correct it."""
        try:
            await self._pools.look()
            await self._volumes.settle()
            await self._guests.moves.settle()
            await self._guests.snapshots.settle()
            await self._guests.settle()
            await self._media.settle()
            await self._backups.settle()
            await self.image_cache.settle()
            await self._engines.hypervisor.appliance.sweep()
        except PileusError as why:
            log.warning("round not finished", why=str(why), internal=why.internal)
        except Exception:
            # A fault of ours must not end the care for all other guests, nor go unseen.
            log.exception("round failed")

    async def _until_next_round(self) -> None:
        due_s = self._guests.due_in_s()
        # Agents that started together do not go on looking together.
        wait_s = self._pace.between_rounds_s * random.uniform(0.8, 1.2)  # noqa: S311 - no secret
        wait_s = wait_s if due_s is None else min(due_s, wait_s)
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._wake.wait()

    async def _watch(self) -> None:
        while True:
            try:
                async for id in self._engines.hypervisor.changes():
                    if self._guests.changed(id):
                        self._wake.set()
            except PileusError as why:
                log.warning("hypervisor lost", why=str(why), internal=why.internal)
            await asyncio.sleep(self._pace.look_again_s)
            self._wake.set()
