"""Proves of a deed that it is all or nothing: whatever fails, whoever dies at whatever moment, nothing is half-made.

A deed is done on a whole simulated cloud, again and again: once to see which moments there are (each write of the log,
each call of a driver on a host), then once for every moment with something going wrong at it:

* the controller loses its power before or behind a write of the log, and another starts over what is on disk;
* a driver refuses what it is asked, for good;
* the agent dies in a driver's call, before or behind its effect, and is started again;
* a driver refuses, and the controller loses its power at every write on the way back.

Afterwards every task has come to its end, and hosts and records agree about everything. Time is simulated, so that
whoever tries again later, or looks every so often, takes no longer for that.
"""

import asyncio
import copy
import gc
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any

from msgspec import structs

from pileus.agent.backup.store import BackupStore
from pileus.agent.hypervisor.port import GuestState
from pileus.agent.records import Removed
from pileus.agent.storage.simulated import SimulatedStorage
from pileus.cloud.backups.model import BACKUPS
from pileus.cloud.backups.model import SETTLED as BACKUP_SETTLED
from pileus.cloud.foreign.model import SHADOWS
from pileus.cloud.hosts.model import HOSTS
from pileus.cloud.imageexports.model import IMAGE_EXPORTS
from pileus.cloud.images.model import IMAGES, ImageState
from pileus.cloud.instances.model import INSTANCES, PASSWORD_CHANGES, SETTLED, InstanceState
from pileus.cloud.instances.specs import guest_spec, plugged_ports_of
from pileus.cloud.networks.model import PORTS, PortState
from pileus.cloud.networks.model import SETTLED as PORT_SETTLED
from pileus.cloud.projects.model import PROJECTS
from pileus.cloud.snapshots.model import SETTLED as SNAPSHOT_SETTLED
from pileus.cloud.snapshots.model import SNAPSHOTS
from pileus.cloud.storagepools.model import LOCAL, STORAGE_POOLS
from pileus.cloud.volumes.model import SETTLED as VOLUME_SETTLED
from pileus.cloud.volumes.model import VOLUMES
from pileus.controller.compose import Settings
from pileus.kernel.errors import Conflict, PileusError
from pileus.kernel.ids import ProjectId, VolumeId
from pileus.kernel.units import GIB
from pileus.link.volumes import VolumeObserved
from pileus.testing.cloud import SETTINGS, SimulatedCloud, simulated_cloud
from pileus.testing.fleet import SimulatedAgent, SimulatedFleet
from pileus.testing.links import until
from pileus.testing.memorystore import Disk, MemoryStore
from pileus.testing.simulatedtime import LoopClock, SimulatedTimeLoop
from pileus.workflow.task import TASKS, UNFINISHED

Deed = Callable[[SimulatedCloud], Awaitable[None]]
"""Something asked of a cloud through its client. It must bear being answered with an error."""

HOSTS_IN_PROOF = 2
_AS_FOUND = {
    GuestState.RUNNING: InstanceState.RUNNING,
    GuestState.PAUSED: InstanceState.PAUSED,
    GuestState.SUSPENDED: InstanceState.SUSPENDED,
    GuestState.SHUT_DOWN: InstanceState.STOPPED,
    GuestState.CRASHED: InstanceState.STOPPED,
}
_SETTLES_WITHIN_S = 60.0


class PowerCut(PileusError):
    """The controller's machine lost its power."""

    code, title = "power-cut", "The power was cut"


class Prover:
    """Proves deeds, each begun on the same cloud: a few hosts, and what `prepare` made there."""

    def __init__(self, folder: Path, prepare: Deed, deed: Deed, *, settings: Settings = SETTINGS) -> None:
        self._settings = settings
        self._folder = folder
        self._prepare = prepare
        self._deed = deed
        self._begun: Disk | None = None
        self._ids: list[str] = []

    def prove(self) -> int:
        """Break the deed at every moment there is; says how many runs that took, for a test to pin.

        Raises:
            AssertionError: hosts and records disagree after one of them, which it names.
        """
        with asyncio.Runner(loop_factory=SimulatedTimeLoop) as runner:
            return runner.run(self._break_everywhere())

    async def _break_everywhere(self) -> int:
        writes, calls = await self._moments()
        runs = 0
        for moment in range(1, 2 * writes + 1):
            await self._power_cut(moment, refused_call=None)
            runs += 1
        for call in range(1, calls + 1):
            await self._refused(call)
            await self._agent_dies(2 * call - 1)
            await self._agent_dies(2 * call)
            runs += 3
        for moment in range(1, 2 * (writes + 2) + 1):
            await self._power_cut(moment, refused_call=calls)
            runs += 1
        # Each run has loaded a cloud, which took it out of the collector's sight: all of them may go now.
        gc.unfreeze()
        return runs

    async def _moments(self) -> tuple[int, int]:
        """How often the log is written and a driver called when nothing goes wrong."""
        store, fleet = await self._fresh()
        calls: list[str] = []
        async with self._cloud(store, fleet) as cloud:
            await self._prepare(cloud)
            await cloud.state.durable()
            appended = store.appends
            for faults in fleet.faults:
                faults.calls = calls
            await self._deed(cloud)
            await _settled(cloud)
            # A task has ended in memory first: its last write is one of the moments too.
            await cloud.state.durable()
            writes = store.appends - appended
            await _agree(cloud, "nothing went wrong")
        assert calls, "the deed calls no driver"
        return writes, len([each for each in calls if not _looks_only(each)])

    async def _power_cut(self, moment: int, refused_call: int | None) -> None:
        what = f"power cut at moment {moment} of the log" + (f", call {refused_call} refused" if refused_call else "")
        store, fleet = await self._fresh()
        blown = 0

        def fuse(_: int) -> None:
            nonlocal blown
            blown += 1
            if blown == moment:
                raise PowerCut(what)

        try:
            async with self._cloud(store, fleet) as cloud:
                await self._prepare(cloud)
                if refused_call is not None:
                    _refuse(fleet, refused_call)
                store.fuse = fuse
                await self._deed(cloud)
                await _settled(cloud)
        except* PowerCut:
            pass
        for faults in fleet.faults:
            faults.mend()
        async with self._cloud(MemoryStore(store.disk), fleet) as cloud:
            await _settled(cloud)
            await _agree(cloud, what)

    async def _refused(self, call: int) -> None:
        store, fleet = await self._fresh()
        async with self._cloud(store, fleet) as cloud:
            await self._prepare(cloud)
            _refuse(fleet, call)
            await self._deed(cloud)
            await _settled(cloud)
            await _agree(cloud, f"driver call {call} refused")

    async def _agent_dies(self, moment: int) -> None:
        store, fleet = await self._fresh()
        seen = 0
        async with self._cloud(store, fleet) as cloud:
            await self._prepare(cloud)

            def die(host: SimulatedAgent, call: str) -> None:
                nonlocal seen
                if not _looks_only(call):
                    seen += 1
                    if seen == moment:
                        host.kill_agent()
                        raise asyncio.CancelledError

            for host in fleet.hosts:
                host.faults.watch = partial(die, host)
            await self._deed(cloud)
            await _settled(cloud)
            await _agree(cloud, f"the agent died at moment {moment} of the drivers")

    async def _fresh(self) -> tuple[MemoryStore, SimulatedFleet]:
        """A disk as the cloud began, and hosts with nothing on them."""
        fleet = SimulatedFleet(HOSTS_IN_PROOF, clock=_clock())
        if self._begun is None:
            store = MemoryStore()
            async with self._cloud(store, fleet):
                pass
            self._begun = store.disk
            self._ids = [host.id for host in fleet.hosts]
            fleet = SimulatedFleet(HOSTS_IN_PROOF, clock=_clock())
        for host, id in zip(fleet.hosts, self._ids, strict=True):
            host.id = type(host.id)(id)
        return MemoryStore(copy.deepcopy(self._begun)), fleet

    def _cloud(self, store: MemoryStore, fleet: SimulatedFleet) -> AbstractAsyncContextManager[SimulatedCloud]:
        return simulated_cloud(self._folder, fleet=fleet, store=store, clock=_clock(), settings=self._settings)


def _clock() -> LoopClock:
    return LoopClock(asyncio.get_running_loop())


def _refuse(fleet: SimulatedFleet, call: int) -> None:
    """Let the call of this number fail, on whichever host it is made, without having had any effect."""
    seen = 0

    def watch(name: str) -> None:
        nonlocal seen
        if not _looks_only(name):
            seen += 1
            if seen == 2 * call - 1:
                raise Conflict(f"{name} refuses")

    for faults in fleet.faults:
        faults.watch = watch


def _looks_only(call: str) -> bool:
    """Whether a driver's call changes nothing: agents look whenever they like, so that looks are no moments."""
    return call.rpartition(".")[2] in ("facts", "files", "foreign", "list", "media", "source", "use", "console")


async def _settled(cloud: SimulatedCloud) -> None:
    """Wait until every task has come to its end."""
    tasks = cloud.state[TASKS]
    await until(lambda: not any(tasks.count_by("state", state) for state in UNFINISHED), within_s=_SETTLES_WITHIN_S)


async def _agree(cloud: SimulatedCloud, what: str) -> None:
    """Raises AssertionError if hosts and records do not come to say the same."""
    deadline = asyncio.get_running_loop().time() + _SETTLES_WITHIN_S
    while (differences := await disagreements(cloud)) and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    assert not differences, f"{what}: {differences}"


async def disagreements(cloud: SimulatedCloud) -> list[str]:
    """Where the records and what is on the hosts differ."""
    state = cloud.state
    found = [f"{task.workflow} is {task.state}" for task in state[TASKS] if task.state in UNFINISHED]
    found += [f"instance {each.id} is {each.state}" for each in state[INSTANCES] if each.state not in SETTLED]
    found += [f"instance {each.id} is busy: {each.busy_with}" for each in state[INSTANCES] if each.busy_with]
    found += [f"volume {each.id} is {each.state}" for each in state[VOLUMES] if each.state not in VOLUME_SETTLED]
    found += [f"port {each.id} is {each.state}" for each in state[PORTS] if each.state not in PORT_SETTLED]
    found += [f"snapshot {each.id} is {each.state}" for each in state[SNAPSHOTS] if each.state not in SNAPSHOT_SETTLED]
    found += [f"the hash of a password is kept for {each.id}" for each in state[PASSWORD_CHANGES]]
    found += [f"backup {each.id} is {each.state}" for each in state[BACKUPS] if each.state not in BACKUP_SETTLED]
    found += [
        f"port {each.id} belongs to nobody"
        for each in state[PORTS]
        if each.state is not PortState.FREE and (each.instance_id or "") not in state[INSTANCES]
    ]
    found += [
        f"volume {each.id} belongs to nobody"
        for each in state[VOLUMES]
        if each.slot is not None and (each.instance_id or "") not in state[INSTANCES]
    ]
    found += [f"guest {each.name} is on its way" for each in state[SHADOWS] if each.instance_id is not None]
    found += [f"image {each.id} is {each.state}" for each in state[IMAGES].by("state", ImageState.IMPORTING)]
    active = set(state[IMAGES].ids_by("state", ImageState.ACTIVE))
    # What an upload has brought waits in `.part` for its end; all else that is no image is left over.
    files = {each.name for each in (cloud.data / "images").iterdir() if each.suffix != ".part"}
    found += _differ("files of images", files, active)
    exports = {each.name for each in (cloud.data / "image-exports").iterdir()}
    found += _differ("files of image exports", exports, set(state[IMAGE_EXPORTS].ids))
    found += [f"image export {each.id} is {each.state}" for each in state[IMAGE_EXPORTS].by("state", "converting")]
    for host in cloud.fleet.hosts:
        if not state[HOSTS].get(host.id).connected:
            found.append(f"{host.name} is not connected")
        instances = {each.id: each for each in state[INSTANCES].by("host_id", host.id)}
        guests = await host.hypervisor.list()
        wanted = {id for id, each in instances.items() if each.state is not InstanceState.DELETED}
        found += _differ(f"guests of {host.name}", set(guests), wanted)
        left = {id for id, each in host.records.volumes.items() if isinstance(each, Removed) and each.left}
        made = [each for each in state[VOLUMES].by("host", host.id) if each.found is None]
        volumes: dict[VolumeId, VolumeObserved] = {}
        for name, storage in _pools(cloud, host).items():
            there = await storage.list()
            in_pool = {each.id for each in made if each.storage_pool == name}
            found += _differ(f"volumes of {host.name} in {name}", there.keys() - left, in_pool)
            volumes |= there
        found += [
            f"volume {each.id} has {volumes[VolumeId(each.id)].size_bytes} bytes instead of {each.size_gib} GiB"
            for each in state[VOLUMES].by("host", host.id)
            if each.id in volumes and volumes[VolumeId(each.id)].size_bytes < each.size_gib * GIB
        ]
        found += _differ(
            f"ports of {host.name}",
            set(await host.network.list()),
            {port.id for each in instances.values() for port in plugged_ports_of(state, each) if port.host_id},
        )
        shadowed = {each.uuid for each in state[SHADOWS].by("host_id", host.id)}
        found += [f"{host.name} has lost the guest {id} of others" for id in shadowed - host.hypervisor.others.keys()]
        found += await _layers_differ(cloud, host)
        found += _differ(f"images packed on {host.name}", set(host.storage.packing.files), set())
        found += await _backups_differ(cloud, host)
        for id, guest in guests.items():
            if id in instances and _AS_FOUND[guest.state] is not instances[id].state:
                found.append(f"instance {id} is {instances[id].state}, its guest {guest.state}")
            defined = host.hypervisor.guests[id]
            wanted = {each.volume: each.size_bytes for each in defined.spec.disks}
            if id in instances:
                # A change that was taken back before the host heard of it counts in the record only.
                now = structs.replace(defined.spec, generation=instances[id].generation)
                found += _differ(f"the guest of instance {id}", {now}, {guest_spec(state, instances[id])})
            size = defined.spec.vcpus, defined.spec.memory_mib
            if guest.state is not GuestState.SHUT_DOWN and defined.size != size:
                found.append(f"guest {id} has {defined.size} vCPUs and MiB instead of {size}")
            if guest.state is not GuestState.SHUT_DOWN and defined.plugged != wanted:
                found.append(f"guest {id} sees the disks {defined.plugged} instead of {wanted}")
            ports = frozenset(nic.port for nic in defined.spec.nics)
            if guest.state is not GuestState.SHUT_DOWN and defined.connected != ports:
                found.append(f"guest {id} has the ports {defined.connected} instead of {ports}")
    return found


def _pools(cloud: SimulatedCloud, host: SimulatedAgent) -> dict[str, SimulatedStorage]:
    """The storage pools of a host, by name."""
    others = {cloud.state[STORAGE_POOLS].get(id).name: pool for id, pool in host.backings.pools.items()}
    return {LOCAL: host.storage, **others}


async def _layers_differ(cloud: SimulatedCloud, host: SimulatedAgent) -> list[str]:
    """Where the snapshots of a host's volumes are others than the records', or guests write where they should not."""
    state, found = cloud.state, list[str]()
    places = {id: pool for pool in _pools(cloud, host).values() for id in await pool.list()}
    layers = {id: await pool.layering.layers(id) for id, pool in places.items()}
    for id, each in layers.items():
        wanted = {*state[SNAPSHOTS].ids_by("volume", id), *state[BACKUPS].ids_by("based", id)}
        found += _differ(f"snapshots of volume {id}", set(each.frozen), wanted)
        if each.unconfirmed or each.to_merge() is not None:
            found.append(f"volume {id} has layers that nobody needs: {each}")
    in_no_pool = {each.id for each in state[VOLUMES].by("host", host.id) if each.found is not None}
    for guest in host.hypervisor.guests.values():
        if guest.state is not GuestState.SHUT_DOWN:
            written = {id: path for id, path in guest.written.items() if id not in in_no_pool}
            active = {id: (await places[id].source(id)).path for id in written if id in layers}
            found += _differ(f"files of guest {guest.spec.id}", set(written.items()), set(active.items()))
    if host.hypervisor.layers.frozen:
        found.append(f"guests are held still: {host.hypervisor.layers.frozen}")
    return found


async def _backups_differ(cloud: SimulatedCloud, host: SimulatedAgent) -> list[str]:
    """Where the backups in a host's storage pools are others than the records', or something is there besides them."""
    found, backups = list[str](), set[str]()
    for storage in (host.storage, *host.backings.pools.values()):
        store, objects = BackupStore(storage.place), set(storage.place.objects)
        needed: set[str] = set()
        for project in cloud.state[PROJECTS].ids:
            needed |= await store.needed(ProjectId(project))
        found += _differ(f"objects of backups of {host.name}", objects, needed)
        backups |= {name.split("/")[2] for name in objects if name.endswith("/manifest.json")}
        found += _differ(f"what volumes of {host.name} are to become", set(storage.prepared), set())
    return [*found, *_differ(f"backups of {host.name}", backups, set(cloud.state[BACKUPS].ids_by("host", host.id)))]


def _differ(what: str, has: set[Any], wants: set[Any]) -> list[str]:
    return [f"{what}: {sorted(has - wants)} too many, {sorted(wants - has)} missing"] if has != wants else []
