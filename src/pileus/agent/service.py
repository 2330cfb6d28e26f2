"""Binds an agent to its link: answers what the controller asks, says hello, and reports.

An operation once begun goes on when the link is lost: whoever asked for it asks again and finds it done, or under way.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from types import NoneType
from typing import Final, TypeVar

import structlog

from pileus.agent.agent import Agent
from pileus.agent.hypervisor.consoles import ByteStream
from pileus.agent.volumes import Tell
from pileus.kernel.errors import Unavailable
from pileus.link.backups import BackupChecked, BackupObserved, BackupOf, BackupRestore, BackupSpec
from pileus.link.channel import Channel
from pileus.link.consoles import ConsoleLogRequest, ConsoleRequest, ScreenPassword, ScreenshotRequest
from pileus.link.copies import CopiesKept, CopiesUpdate, Recall, Recalled
from pileus.link.foreign import ForeignGuests
from pileus.link.guests import (
    DiskPassword,
    GuestObserved,
    GuestPassword,
    GuestReboot,
    GuestRemoval,
    GuestSpec,
    PortTraffic,
    TrafficAsked,
)
from pileus.link.handlers import Call, Handlers, Opening
from pileus.link.hosts import Inventory, Welcome
from pileus.link.images import (
    ImageBring,
    ImageCopies,
    ImageForget,
    ImagePack,
    ImagePacked,
    ImagesDrop,
    ImageSend,
    MediumSpec,
)
from pileus.link.messages import Message, Method, Progress
from pileus.link.moves import VolumeMove, VolumeMoveCopy
from pileus.link.snapshots import SnapshotObserved, SnapshotRemoval, SnapshotRevert, SnapshotSpec, VolumeOf, VolumeSpace
from pileus.link.storagepools import StoragePools, StoragePoolsObserved
from pileus.link.streams import Stream
from pileus.link.volumes import VolumeObserved, VolumeRemoval, VolumeSpec

_HELLO_TIMEOUT_S: Final = 30.0
_A_MOMENT_S: Final = 0.1
_LOOK_AGAIN_S: Final = 1.0
"""While the hypervisor does not answer, so that nothing can be said of this host."""

T = TypeVar("T")
log = structlog.stdlib.get_logger()


class AgentService:
    """The agent as the controller sees it. `accompany` runs beside each channel whose `handlers` these are."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._errands: asyncio.TaskGroup | None = None
        self.handlers = Handlers()
        self.handlers.add(Method.STORAGE_POOLS, StoragePools, self._serve_pools)
        self.handlers.add(Method.VOLUME_ENSURE, VolumeSpec, self._ensure_volume)
        self.handlers.add(Method.VOLUME_SPACE, VolumeOf, self._volume_space)
        self.handlers.add(Method.VOLUME_REMOVE, VolumeRemoval, self._remove_volume)
        self.handlers.add(Method.MOVE_COPY, VolumeMoveCopy, self._copy_volume)
        self.handlers.add(Method.MOVE_SWITCH, VolumeMove, self._switch_volume)
        self.handlers.add(Method.MOVE_UNDO, VolumeMove, self._undo_move)
        self.handlers.add(Method.MEDIUM_ENSURE, MediumSpec, self._ensure_medium)
        self.handlers.add(Method.SNAPSHOT_ENSURE, SnapshotSpec, self._ensure_snapshot)
        self.handlers.add(Method.SNAPSHOT_REMOVE, SnapshotRemoval, self._remove_snapshot)
        self.handlers.add(Method.SNAPSHOT_REVERT, SnapshotRevert, self._revert_to_snapshot)
        self.handlers.add(Method.BACKUP_ENSURE, BackupSpec, self._ensure_backup)
        self.handlers.add(Method.BACKUP_CHECK, BackupOf, self._check_backup)
        self.handlers.add(Method.BACKUP_REMOVE, BackupOf, self._remove_backup)
        self.handlers.add(Method.IMAGES_CACHED, Message, self._cached_images)
        self.handlers.add(Method.IMAGE_BRING, ImageBring, self._bring_image)
        self.handlers.add(Method.IMAGES_DROP, ImagesDrop, self._drop_images)
        self.handlers.add(Method.IMAGE_PACK, ImagePack, self._pack_image)
        self.handlers.add(Method.IMAGE_SEND, ImageSend, self._send_image)
        self.handlers.add(Method.IMAGE_FORGET, ImageForget, self._forget_image)
        self.handlers.add(Method.RESTORE_PREPARE, BackupRestore, self._prepare_restore)
        self.handlers.add(Method.RESTORE_DROP, BackupRestore, self._drop_restore)
        self.handlers.add(Method.RESTORE_EXCHANGE, BackupRestore, self._exchange_restored)
        self.handlers.add(Method.GUEST_ENSURE, GuestSpec, self._ensure_guest)
        self.handlers.add(Method.GUEST_REMOVE, GuestRemoval, self._remove_guest)
        self.handlers.add(Method.GUEST_REBOOT, GuestReboot, self._reboot_guest)
        self.handlers.add(Method.PORT_TRAFFIC, TrafficAsked, self._port_traffic)
        self.handlers.add(Method.GUEST_PASSWORD, GuestPassword, self._set_password)
        self.handlers.add(Method.DISK_PASSWORD, DiskPassword, self._set_password_in_disk)
        self.handlers.add(Method.FOREIGN_GUESTS, Message, self._foreign_guests)
        self.handlers.add(Method.COPIES_KEPT, Message, self._copies_kept)
        self.handlers.add(Method.COPIES_UPDATE, CopiesUpdate, self._update_copies)
        self.handlers.add(Method.RECALL, Recall, self._recall)
        self.handlers.add(Method.INVENTORY, NoneType, self._inventory)
        self.handlers.add(Method.SCREEN_ACCESS, ScreenPassword, self._set_screen_password)
        self.handlers.add_stream(Method.CONSOLE, ConsoleRequest, self._console)
        self.handlers.add_stream(Method.CONSOLE_LOG, ConsoleLogRequest, self._console_log)
        self.handlers.add_stream(Method.SCREENSHOT, ScreenshotRequest, self._screenshot)

    async def run(self) -> None:
        """Keep the host as it ought to be, and carry out what is asked, until cancelled."""
        async with asyncio.TaskGroup() as self._errands:
            await self._agent.run()

    async def accompany(self, channel: Channel) -> None:
        """Say hello on a new channel, then report until it is lost.

        Raises:
            Unavailable: the link was lost.
        """
        news = asyncio.Queue[GuestObserved]()
        # From before the inventory is taken: nothing falls in between.
        forget = self._agent.listen(news.put_nowait)
        try:
            welcome = await self._say_hello(channel)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._tell_news(channel, news))
                await self._report(channel, welcome.report_every_s)
        except* Unavailable as lost:
            raise Unavailable("the link was lost") from lost
        finally:
            forget()

    async def _say_hello(self, channel: Channel) -> Welcome:
        while True:
            try:
                hello = await self._agent.hello()
                break
            except Unavailable as why:
                log.warning("no hello yet", why=str(why), internal=why.internal)
                await asyncio.sleep(_LOOK_AGAIN_S)
        welcome = await channel.request(Method.HELLO, hello, Welcome, timeout_s=_HELLO_TIMEOUT_S)
        log.info("welcomed", host=welcome.host, orphans=list(welcome.orphans))
        return welcome

    async def _tell_news(self, channel: Channel, news: "asyncio.Queue[GuestObserved]") -> None:
        while True:
            await channel.notify(Method.GUEST_OBSERVED, await news.get())

    async def _report(self, channel: Channel, every_s: float) -> None:
        # Hosts that came together do not go on reporting together.
        wait_s = random.uniform(0, every_s)  # noqa: S311 - no secret
        while True:
            await channel.notify(Method.REPORT, await self._agent.report())
            await asyncio.sleep(wait_s)
            wait_s = every_s

    async def _serve_pools(self, wanted: StoragePools, _call: Call) -> StoragePoolsObserved:
        return await self._agent.serve_pools(wanted)

    async def _ensure_volume(self, spec: VolumeSpec, call: Call) -> VolumeObserved:
        return await self._carry_out(call, lambda tell: self._agent.ensure_volume(spec, tell))

    async def _volume_space(self, volume: VolumeOf, _call: Call) -> VolumeSpace:
        return await self._agent.volume_space(volume)

    async def _remove_volume(self, removal: VolumeRemoval, call: Call) -> None:
        await self._carry_out(call, lambda tell: self._agent.remove_volume(removal, tell))

    async def _copy_volume(self, wish: VolumeMoveCopy, call: Call) -> None:
        await self._carry_out(call, lambda tell: self._agent.copy_volume(wish, tell))

    async def _switch_volume(self, wish: VolumeMove, call: Call) -> None:
        await self._carry_out(call, lambda tell: self._agent.switch_volume(wish, tell))

    async def _undo_move(self, wish: VolumeMove, call: Call) -> None:
        await self._carry_out(call, lambda _: self._agent.undo_move(wish))

    async def _ensure_medium(self, spec: MediumSpec, call: Call) -> None:
        await self._carry_out(call, lambda tell: self._agent.ensure_medium(spec, tell))

    async def _ensure_snapshot(self, spec: SnapshotSpec, call: Call) -> SnapshotObserved:
        return await self._carry_out(call, lambda tell: self._agent.ensure_snapshot(spec, tell))

    async def _remove_snapshot(self, removal: SnapshotRemoval, call: Call) -> None:
        await self._carry_out(call, lambda tell: self._agent.remove_snapshot(removal, tell))

    async def _revert_to_snapshot(self, wish: SnapshotRevert, call: Call) -> None:
        await self._carry_out(call, lambda tell: self._agent.revert_to_snapshot(wish, tell))

    async def _ensure_backup(self, spec: BackupSpec, call: Call) -> BackupObserved:
        return await self._carry_out(call, lambda tell: self._agent.ensure_backup(spec, tell))

    async def _check_backup(self, wish: BackupOf, call: Call) -> BackupChecked:
        return await self._carry_out(call, lambda tell: self._agent.check_backup(wish, tell))

    async def _remove_backup(self, removal: BackupOf, call: Call) -> None:
        await self._carry_out(call, lambda _: self._agent.remove_backup(removal))

    async def _cached_images(self, _body: Message, _call: Call) -> ImageCopies:
        return await self._agent.image_cache.told()

    async def _bring_image(self, wish: ImageBring, call: Call) -> None:
        await self._carry_out(call, lambda tell: self._agent.image_cache.bring(wish, tell))

    async def _drop_images(self, wish: ImagesDrop, call: Call) -> None:
        await self._carry_out(call, lambda _: self._agent.image_cache.drop(wish))

    async def _pack_image(self, wish: ImagePack, call: Call) -> ImagePacked:
        return await self._carry_out(call, lambda tell: self._agent.packing.pack(wish, tell))

    async def _send_image(self, wish: ImageSend, call: Call) -> None:
        await self._carry_out(call, lambda tell: self._agent.packing.send(wish, tell))

    async def _forget_image(self, wish: ImageForget, call: Call) -> None:
        await self._carry_out(call, lambda _: self._agent.packing.forget(wish))

    async def _prepare_restore(self, wish: BackupRestore, call: Call) -> None:
        await self._carry_out(call, lambda tell: self._agent.prepare_restore(wish, tell))

    async def _drop_restore(self, wish: BackupRestore, call: Call) -> None:
        await self._carry_out(call, lambda _: self._agent.drop_restore(wish))

    async def _exchange_restored(self, wish: BackupRestore, call: Call) -> None:
        await self._carry_out(call, lambda _: self._agent.exchange_restored(wish))

    async def _ensure_guest(self, spec: GuestSpec, call: Call) -> GuestObserved:
        return await self._carry_out(call, lambda tell: self._agent.ensure_guest(spec, tell))

    async def _remove_guest(self, removal: GuestRemoval, call: Call) -> None:
        await self._carry_out(call, lambda _: self._agent.remove_guest(removal))

    async def _reboot_guest(self, wish: GuestReboot, call: Call) -> GuestObserved:
        return await self._carry_out(call, lambda _: self._agent.reboot_guest(wish))

    async def _port_traffic(self, asked: TrafficAsked, _call: Call) -> PortTraffic:
        return await self._agent.port_traffic(asked.port)

    async def _set_password(self, wish: GuestPassword, _call: Call) -> None:
        await self._agent.set_password(wish)

    async def _set_password_in_disk(self, wish: DiskPassword, call: Call) -> None:
        await self._carry_out(call, lambda tell: self._agent.set_password_in_disk(wish, tell))

    async def _foreign_guests(self, _body: Message, _call: Call) -> ForeignGuests:
        return await self._agent.foreign_guests()

    async def _copies_kept(self, _body: Message, _call: Call) -> CopiesKept:
        return self._agent.copies.kept()

    async def _update_copies(self, update: CopiesUpdate, _call: Call) -> None:
        await self._agent.copies.update(update)

    async def _recall(self, wish: Recall, _call: Call) -> Recalled:
        return self._agent.copies.recall(wish)

    async def _inventory(self, _body: None, _call: Call) -> Inventory:
        return await self._agent.inventory()

    async def _console(self, wish: ConsoleRequest, opening: Opening) -> None:
        console = await self._agent.consoles.open(wish)
        try:
            await _join(console, await opening.accept())
        finally:
            await console.close()

    async def _console_log(self, wish: ConsoleLogRequest, opening: Opening) -> None:
        said = await self._agent.consoles.said(wish)
        await (await opening.accept()).write(said)

    async def _screenshot(self, wish: ScreenshotRequest, opening: Opening) -> None:
        picture = await self._agent.consoles.screenshot(wish.id)
        await (await opening.accept()).write(picture)

    async def _set_screen_password(self, wish: ScreenPassword, _call: Call) -> None:
        await self._agent.consoles.set_screen_password(wish)

    async def _carry_out(self, call: Call, work: Callable[[Tell], Awaitable[T]]) -> T:
        """Do the work to its end, and tell of its progress for as long as somebody waits for it.

        What takes but a moment is done before anybody could read of its progress, which costs a controller with many
        hosts more than the answer.
        """
        if self._errands is None:
            raise Unavailable("the agent is only just starting")
        progress = _ProgressQueue()
        errand = self._errands.create_task(_outcome(work, progress.put, call.method))
        errand.add_done_callback(lambda _: progress.end())
        await asyncio.wait((errand,), timeout=_A_MOMENT_S)
        while (report := await progress.get()) is not None:
            await call.progress(report)
        outcome = await errand
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


class _ProgressQueue:
    """Progress on its way: of one step only the latest, so that a slow link does not keep the work."""

    def __init__(self) -> None:
        self._waiting: list[Progress] = []
        self._ended = False
        self._changed = asyncio.Event()

    def put(self, progress: Progress) -> None:
        if self._waiting and self._waiting[-1].step == progress.step:
            self._waiting.pop()
        self._waiting.append(progress)
        self._changed.set()

    def end(self) -> None:
        self._ended = True
        self._changed.set()

    async def get(self) -> Progress | None:
        """The next one; None at the end."""
        await self._changed.wait()
        if self._ended:
            return None
        progress = self._waiting.pop(0)
        if not self._waiting:
            self._changed.clear()
        return progress


async def _outcome(work: Callable[[Tell], Awaitable[T]], tell: Tell, method: str) -> T | Exception:
    """What came of the work; nobody may be left to raise an error to."""
    try:
        return await work(tell)
    except Exception as error:  # noqa: BLE001 - whoever waits raises it
        log.info("errand failed", method=method, why=str(error), kind=type(error).__name__)
        return error


async def _join(console: ByteStream, stream: Stream) -> None:
    """Carry bytes both ways until either side ends."""
    async with asyncio.TaskGroup() as tasks:
        ways = {tasks.create_task(_carry(console, stream)), tasks.create_task(_carry(stream, console))}
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()


async def _carry(source: ByteStream | Stream, sink: ByteStream | Stream) -> None:
    try:
        while data := await source.read():
            await sink.write(data)
    except Unavailable as ended:
        log.debug("console ended", why=str(ended))
