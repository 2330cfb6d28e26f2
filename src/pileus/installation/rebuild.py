"""`pileus rebuild --from-agents`: a lost database is made again from what the hosts keep.

The controller must be stopped and its records gone; its authority must be there, or no host would speak to it. Nothing
is asked of hosts but what they keep: guests and their traffic go on, before, while and afterwards.
"""

import asyncio
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from datetime import timedelta
from pathlib import Path

import msgspec
import structlog

from pileus.client.config import Config
from pileus.cloud.identity.model import Grant, Password, Token, TokenSecret, User
from pileus.cloud.identity.passwords import hashed
from pileus.cloud.identity.tokens import token_hash
from pileus.cloud.images.model import IMAGES
from pileus.cloud.pools.model import Pool
from pileus.cloud.projects.model import Project
from pileus.controller.bootstrap import FirstSecrets, new_secrets
from pileus.controller.compose import Settings, serving, store_of
from pileus.controller.daemon import read_settings
from pileus.controller.nouns import KINDS
from pileus.controller.rebuilding import Kept, Rebuilt, rebuilt
from pileus.installation.places import Places
from pileus.installation.rejoining import Rejoining
from pileus.kernel.clock import Clock, SystemClock
from pileus.kernel.errors import Conflict, NotFound, PileusError
from pileus.kernel.files import write_atomically
from pileus.kernel.ids import HostId, ProjectId, TokenId, UserId, is_id, new_id
from pileus.link.certificates import CONTROLLER_NAME, Authority, ServerIdentity
from pileus.link.channel import Channel
from pileus.link.copies import Recall, Recalled
from pileus.link.guests import GuestObserved
from pileus.link.handlers import Call, Handlers
from pileus.link.hosts import Hello, HostReport, Welcome
from pileus.link.messages import Method
from pileus.link.server import LinkServer
from pileus.operations.caller import Role
from pileus.state.records import Record
from pileus.state.state import Origin, opened, put
from pileus.state.store import Store

log = structlog.stdlib.get_logger()

ORIGIN = Origin(actor="system", operation="rebuild")

Say = Callable[[str], None]

_PAGE_S = 60.0


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """What was rebuilt."""

    hosts: int
    counts: Mapping[str, int]
    """How many records there are of each kind."""
    missing: Sequence[str]
    """What could not be known, in sentences."""
    first: FirstSecrets
    """What lets the new administrator in."""


class Gathering:
    """Asks every host that connects for everything it keeps."""

    def __init__(self, say: Say = lambda _: None) -> None:
        self.kept: dict[HostId, Kept] = {}
        """Of the hosts that have answered to the end."""
        self.handlers = Handlers()
        self.handlers.add(Method.HELLO, Hello, self._hello)
        self.handlers.add_note(Method.REPORT, HostReport, lambda _report, _channel: None)
        self.handlers.add_note(Method.GUEST_OBSERVED, GuestObserved, lambda _guest, _channel: None)
        self._say = say
        self._came = asyncio.Event()

    async def accompany(self, channel: Channel, host: HostId) -> None:
        """Runs beside a host's channel."""
        try:
            kept, after = Kept(), ""
            while True:
                page = await channel.request(Method.RECALL, Recall(after=after), Recalled, timeout_s=_PAGE_S)
                kept = kept.with_page(page)
                if not (after := page.next):
                    break
        except PileusError as refused:
            log.warning("host does not tell what it keeps", host=host, reason=refused.detail)
        else:
            self.kept[host] = kept
            self._say(f"host {host} keeps {len(kept.guests)} guests and {len(kept.copies)} records")
            self._came.set()
        await asyncio.get_running_loop().create_future()

    async def wait_for(self, hosts: int | None, within: timedelta) -> None:
        """Come back when so many hosts have answered, or the time is up."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within.total_seconds()):
                while hosts is None or len(self.kept) < hosts:
                    self._came.clear()
                    await self._came.wait()

    async def _hello(self, _hello: Hello, call: Call) -> Welcome:
        return Welcome(host=HostId(call.peer))


async def rebuild(
    data: Path,
    settings: Settings,
    *,
    hosts: int | None,
    within: timedelta,
    new_authority: bool = False,
    say: Say = lambda _: None,
) -> Done:
    """Make the records again, in the place of those that are lost.

    Args:
        data: the controller's folder.
        settings: the controller's.
        hosts: how many there are to wait for; None waits for as long as `within` says.
        within: how long to wait for hosts at most.
        new_authority: whether to begin with a new authority in the place of one that is lost, which hosts join anew.
        say: is told what happens.

    Raises:
        Conflict: there are records, or a controller runs; or there is an authority, and a new one is wanted.
        NotFound: the authority is lost, or no host has answered.
    """
    clock = SystemClock()
    there = (data / "authority" / "authority.pem").exists()
    if there and new_authority:
        raise Conflict(f"{data / 'authority'} is there, and hosts trust it: do without a new one, or move it aside")
    if not there and not new_authority:
        raise NotFound(
            f"{data / 'authority'} is gone, and no host speaks to anybody else: put it back from a backup, or begin"
            " with a new one, which every host has to join again"
        )
    authority = Authority.load_or_create(data / "authority", clock)
    identity = ServerIdentity(authority, data / "authority", clock)
    identity.ensure((*settings.names, CONTROLLER_NAME))
    gathering = Gathering(say)
    link = LinkServer(
        settings.link_host,
        settings.link_port,
        identity.link_context(),
        gathering.handlers,
        gathering.accompany,
        admit=lambda _host, _serial: None,  # whoever has a certificate of ours: who was removed is not known any more
    )
    async with opened(KINDS, store_of(data, settings), clock) as state:
        if any(len(state.table(kind)) for kind in KINDS):
            raise Conflict(f"there are records: move them aside first ({settings.database or data / 'state.db'})")
        async with link, AsyncExitStack() as more:
            if new_authority:
                rejoining = Rejoining(authority)
                rejoining.link_port = link.port
                port = await more.enter_async_context(serving(rejoining, settings, identity.api_context()))
                say(f"on each host, as root: pileus rejoin ADDRESS:{port} {rejoining.token}")
            say(f"waiting for hosts at port {link.port}")
            await gathering.wait_for(hosts, within)
    return await begin_again(data, store_of(data, settings), gathering.kept, clock)


def in_words(done: Done) -> list[str]:
    """What people are told of it, line by line."""
    return [
        f"rebuilt from {done.hosts} hosts:",
        *(f"  {count:>7}  {kind.replace('_', ' ')}" for kind, count in done.counts.items()),
        "could not be known:",
        *(f"  - {each}" for each in done.missing),
        f"the new administrator is `admin`, the password {done.first.password}",
        "now start the controller: pileus up",
    ]


async def begin_again(data: Path, store: Store, kept: Mapping[HostId, Kept], clock: Clock) -> Done:
    """Put what hosts keep into an empty store, with a new administrator.

    Raises:
        NotFound: no host keeps anything.
    """
    if not kept:
        raise NotFound("no host has answered")
    images = data / "images"
    images.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = {each.name for each in images.iterdir() if is_id(each.name)}
    result = rebuilt(kept, KINDS, found, clock.now())
    first = new_secrets()
    async with opened(KINDS, store, clock) as state:
        await state.commit([put(record) for record in (*result.records, *_let_in(result, first, clock))], ORIGIN)
        for id in found:
            if id not in state[IMAGES]:
                await asyncio.to_thread(_set_aside, images / id, data / "images-without-records")
        return Done(
            hosts=len(kept),
            counts={kind.name: len(state.table(kind)) for kind in KINDS if len(state.table(kind)) and not kind.secret},
            missing=result.missing,
            first=first,
        )


def _let_in(result: Rebuilt, first: FirstSecrets, clock: Clock) -> list[Record]:
    """An administrator, who nobody remembers, and a project and a pool for them if there are none."""
    now = clock.now()
    new: list[Record] = []
    projects = [record for record in result.records if isinstance(record, Project)]
    project = next((each for each in projects if each.name == "default"), None)
    if project is None:
        project = Project(id=new_id(), created_at=now, name="default", description="The administrators' own project.")
        new.append(project)
    if not any(isinstance(record, Pool) for record in result.records):
        new.append(Pool(id=new_id(), created_at=now, name="default", is_default=True))
    user = User(id=new_id(), created_at=now, name="admin", is_platform=True)
    token, id, mine = TokenId(new_id()), UserId(user.id), ProjectId(project.id)
    return [
        *new,
        user,
        Password(id=user.id, created_at=now, hash=hashed(first.password)),
        Grant(id=new_id(), created_at=now, project_id=mine, user_id=id, role=Role.ADMIN),
        Token(id=token, created_at=now, project_id=mine, user_id=id, name="command line of the first host"),
        TokenSecret(id=token, created_at=now, token_id=token, hash=token_hash(first.token)),
    ]


def _set_aside(file: Path, folder: Path) -> None:
    """An image's data whose record nobody has: for people to look at, as nobody else ever would."""
    folder.mkdir(mode=0o700, exist_ok=True)
    shutil.move(file, folder / file.name)


async def rebuild_installation(
    data: Path, *, hosts: int | None, within: timedelta, new_authority: bool, say: Say
) -> Done:
    """Do it for what `pileus up` installed: its command line is let in again too. Raises as `rebuild` does."""
    places = Places.of(data)
    settings = read_settings(places.controller)
    done = await rebuild(places.controller, settings, hosts=hosts, within=within, new_authority=new_authority, say=say)
    if places.client.exists():
        config = msgspec.json.decode(places.client.read_bytes(), type=Config)
        text = msgspec.json.encode(msgspec.structs.replace(config, token=done.first.token))
        write_atomically(places.client, msgspec.json.format(text, indent=2), mode=0o600)
    return done
