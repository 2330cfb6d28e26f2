"""The guests of a host, as the controller asks for them: never half made."""

from collections.abc import Callable

from pileus.agent.comparing import as_observed, differs, generation_of, is_suspended, is_up, size_of
from pileus.agent.configdrive import ConfigDrives
from pileus.agent.consoles import GuestConsoles
from pileus.agent.hypervisor.port import Hypervisor
from pileus.agent.keeping import Keeping
from pileus.agent.making import Making
from pileus.agent.media import Media
from pileus.agent.moving import Moves
from pileus.agent.network.port import HostNetwork
from pileus.agent.records import GuestRecord, Records, Removed, SnapshotRecord
from pileus.agent.snapshots import Snapshots
from pileus.agent.volumes import Tell, Volumes
from pileus.kernel.clock import Clock
from pileus.kernel.errors import Conflict, Stale, Unavailable
from pileus.kernel.ids import InstanceId, SnapshotId, VolumeId
from pileus.link.guests import DiskPassword, GuestObserved, GuestPassword, GuestReboot, GuestRemoval, GuestSpec, Power
from pileus.link.messages import Progress


class Guests:
    """Makes, changes, stops and removes guests when asked to, and has them kept so."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        network: HostNetwork,
        volumes: Volumes,
        media: Media,
        config_drives: ConfigDrives,
        records: Records[InstanceId, GuestRecord | Removed],
        snapshots: Records[SnapshotId, SnapshotRecord | Removed],
        clock: Clock,
        *,
        boot: str,
        patience_s: float,
        observed: Callable[[GuestObserved], None],
    ) -> None:
        """Guests on this hypervisor.

        `boot` names this boot of the host. A guest that was asked to end has `patience_s` seconds to do so. `observed`
        is told of whatever a guest does by itself.
        """
        self._hypervisor = hypervisor
        self._records = records
        self._clock = clock
        self._making = Making(
            hypervisor, network, volumes, media, config_drives, records, clock, boot=boot, patience_s=patience_s
        )
        self.snapshots = Snapshots(self._making, volumes, snapshots)
        self.moves = Moves(self._making, self.snapshots, volumes)
        self._turns = self._making.turns
        self.consoles = GuestConsoles(hypervisor.consoles, self._making)
        self._keeping = Keeping(self._making, observed)

    # What the controller asks for.

    async def ensure(self, spec: GuestSpec, tell: Tell) -> GuestObserved:
        """Have the guest as specified. If it is new and that fails, nothing is left of it.

        The same generation again changes nothing: a guest that has shut itself down since stays down.

        Raises:
            Stale: a later generation is known, or this one has been removed.
            NotFound: a disk of it is not here.
            Unavailable: hypervisor, switch or storage do not answer.
        """
        async with self._turns.of(spec.id):
            before = self._records.get(spec.id)
            if isinstance(before, Removed):
                before = await self._making.finish_removal(spec.id, before)
            known = -1 if before is None else generation_of(before)
            if known > spec.generation or (isinstance(before, Removed) and known == spec.generation):
                raise Stale(f"guest {spec.id} is at generation {known} on this host")
            if isinstance(before, GuestRecord) and known == spec.generation:
                record = before
                found = await self._making.find(spec.id)
                if found is not None and self._keeping.ended_itself(record, found):
                    return await self._keeping.accept_end(record, found)
                if found is not None and not differs(record, found):
                    return as_observed(record, found)
            else:
                record = self._next_record(spec, before)
                await self._records.put(spec.id, record)
                self._keeping.forgive(spec.id)
            try:
                return await self._making.make(record, tell)
            except Exception:
                if not isinstance(before, GuestRecord):
                    await self._making.undo(record)
                raise

    async def remove(self, removal: GuestRemoval) -> None:
        """Have the guest no more; it is stopped at once, unless it is to go on without us. Its volumes stay.

        Raises:
            Stale: a later generation is known.
            Unavailable: hypervisor or switch do not answer; the removal goes on by itself.
        """
        with self._making.hurrying(removal.id):
            async with self._turns.of(removal.id):
                before = self._records.get(removal.id)
                known = removal.generation if before is None else generation_of(before)
                if isinstance(before, GuestRecord) and known > removal.generation:
                    raise Stale(f"guest {removal.id} is at generation {known} on this host")
                removed = Removed(
                    generation=max(known, removal.generation),
                    at=self._clock.now(),
                    ports=before.ports if before else (),
                    leaving=removal.leaving,
                )
                await self._records.put(removal.id, removed)
                self._keeping.forgive(removal.id)
                await self._making.finish_removal(removal.id, removed)

    async def reboot(self, wish: GuestReboot) -> GuestObserved:
        """Restart a running guest.

        Raises:
            NotFound: there is no such guest here.
            Conflict: it does not run.
        """
        async with self._turns.of(wish.id):
            record = self._making.known(wish.id)
            found = await self._making.find(wish.id)
            if not is_up(found):
                raise Conflict(f"guest {record.spec.name!r} does not run")
            await self._hypervisor.reboot(wish.id, hard=wish.hard)
            return as_observed(record, found)

    async def set_password(self, wish: GuestPassword) -> None:
        """Have a running guest change a user's password.

        Raises:
            NotFound: there is no such guest here.
            Conflict: it does not run, has no agent that answers, or refuses.
        """
        record = self._making.known(wish.id)
        if not is_up(await self._making.find(wish.id)):
            raise Conflict(f"guest {record.spec.name!r} does not run")
        await self._hypervisor.set_password(wish.id, wish.user, wish.password)

    async def set_password_in_disk(self, wish: DiskPassword, tell: Tell) -> None:
        """Have a user's password changed in the disk that a stopped guest boots from.

        Raises:
            NotFound: there is no such guest here.
            Conflict: it is not stopped, or there is no such user, or no system that is known, on its disk.
            Unavailable: hypervisor or storage do not answer, or it was broken off; asking again is right.
        """
        async with self._turns.of(wish.id):
            record = self._making.known(wish.id)
            found = await self._making.find(wish.id)
            if is_up(found) or is_suspended(found) or record.power is not Power.STOPPED:
                raise Conflict(f"guest {record.spec.name!r} is not stopped")
            tell(Progress(step="looking into its disk"))
            disk = await self._making.root_of(record.spec)
            await self._hypervisor.appliance.set_password(wish.id, disk, wish.user, wish.hash)

    async def observe(self, *, or_last: bool = False) -> list[GuestObserved]:
        """Every guest that is here or ought to be; one without a record is as the hypervisor has it.

        Raises:
            Unavailable: the hypervisor does not answer; with `or_last` only if it has not answered yet.
        """
        try:
            found = dict(await self._making.look())
        except Unavailable:
            if not or_last or self._making.found is None:
                raise
            found = dict(self._making.found)
        observed: list[GuestObserved] = []
        for id, record in self._records.items():
            if isinstance(record, GuestRecord):
                observed.append(as_observed(record, found.pop(id, None)))
        for id, stranger in found.items():
            power = Power.RUNNING if is_up(stranger) else Power.STOPPED
            observed.append(
                GuestObserved(
                    id=id,
                    generation=stranger.generation,
                    power=power,
                    since=self._clock.now(),
                    cause="this host has no record of it",
                )
            )
        return observed

    @property
    def running(self) -> int:
        """How many guests ran when the hypervisor was last asked."""
        return sum(is_up(each) for each in self._making.found.values()) if self._making.found else 0

    def user_of(self, volume: VolumeId) -> GuestSpec | None:
        """The guest that has this volume as a disk, if any has."""
        return next((spec for spec in self._making.specs() for disk in spec.disks if disk.volume == volume), None)

    def _next_record(self, spec: GuestSpec, before: GuestRecord | Removed | None) -> GuestRecord:
        since, former, resized = self._clock.now(), (), False
        if isinstance(before, GuestRecord):
            kept = {nic.port for nic in spec.nics}
            former = tuple(port for port in dict.fromkeys(before.ports) if port not in kept)
            since = before.since if before.power is spec.power else since
            resized = before.resized or size_of(before.spec) != size_of(spec)
        return GuestRecord(spec=spec, power=spec.power, since=since, former_ports=former, resized=resized)

    # What must stay so.

    def changed(self, id: InstanceId) -> bool:
        """The hypervisor says that a guest has changed; whether anybody has to look at it."""
        self._making.heard_of(id)
        return not self._turns.busy(id)

    def due_in_s(self) -> float | None:
        """Seconds until a guest that failed is to be tried again."""
        return self._keeping.due_in_s()

    async def settle(self) -> None:
        """Correct every guest that is not as it ought to be; one that is being worked on is left to that.

        Raises:
            Unavailable: the hypervisor does not answer.
        """
        await self._keeping.settle()
