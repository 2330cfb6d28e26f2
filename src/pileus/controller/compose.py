"""Composes a controller: the one place that knows what is behind each port."""

import asyncio
import secrets
import socket
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import structlog
import uvicorn

from pileus.cloud.events.feed import Feed
from pileus.cloud.events.refusals import Refusals
from pileus.cloud.events.undo import Undoing
from pileus.cloud.foreign.reconcilers import FollowShadows
from pileus.cloud.hosts.model import HOSTS
from pileus.cloud.hosts.operations import Admissions, Loads
from pileus.cloud.identity.attempts import Attempts
from pileus.cloud.identity.factors import SecondFactorGuesses
from pileus.cloud.identity.passwords import Guesses
from pileus.cloud.identity.sealing import Sealer
from pileus.cloud.identity.tokens import TokenAuthenticator, TokenUses
from pileus.cloud.identityproviders.port import Directory, OpenIdProviders
from pileus.cloud.identityproviders.reconcilers import FollowDirectories
from pileus.cloud.imageexports.files import ExportFiles
from pileus.cloud.imageexports.reconcilers import ExpireExports
from pileus.cloud.images.files import DiskTools, ImageFiles
from pileus.cloud.images.operations.data import transfer_url
from pileus.cloud.images.operations.delivery import arrival_url
from pileus.cloud.images.reconcilers import DropImages
from pileus.cloud.images.web import PublicWeb, Web, prefixes
from pileus.cloud.instances.consoles import ConsoleTokens
from pileus.cloud.instances.operations.console import Consoles
from pileus.cloud.instances.operations.deletion import Retention
from pileus.cloud.instances.operations.password import GuestPasswords
from pileus.cloud.instances.placement import Placer
from pileus.cloud.instances.reconcilers import PurgeDeleted
from pileus.cloud.networks.addresses import Addresses
from pileus.cloud.projects.model import limits
from pileus.cloud.schedules.reconcilers import RunSchedules
from pileus.cloud.storagepools.reconcilers import ServePools
from pileus.cloud.storagepools.supply import Supplies
from pileus.cloud.tasks.watch import TaskWatch
from pileus.cloud.world import Hosts, World
from pileus.controller.bootstrap import FirstSecrets, Outside, bootstrap, new_secrets
from pileus.controller.consoles import LinkedConsoles
from pileus.controller.copies import CopyKeeper
from pileus.controller.hosts import HostLinks
from pileus.controller.housekeeping import Housekeeping
from pileus.controller.nouns import KINDS, NOUNS, WORKFLOWS
from pileus.controller.openapi import served
from pileus.diskimages.qemuimg import QemuImg
from pileus.federation.ldap.directory import LdapDirectory
from pileus.federation.oidc.provider import OpenIdConnect
from pileus.kernel.clock import Clock, SystemClock
from pileus.kernel.files import write_atomically
from pileus.kernel.ids import HostId, ImageId
from pileus.link.certificates import CONTROLLER_NAME, Authority, ServerIdentity
from pileus.link.join import AUTHORITY_PATH, Admission, Invitation, JoinRequest, accept_join
from pileus.link.server import LinkServer
from pileus.link.tickets import Tickets
from pileus.link.tokens import new_token
from pileus.operations.declare import Answer
from pileus.operations.engine import Performer
from pileus.operations.http import Api
from pileus.operations.permissions import Permissions
from pileus.operations.usage import Usage
from pileus.ovn.following import follow
from pileus.ovn.northbound import OvnNorthbound
from pileus.ovn.port import Northbound
from pileus.ovn.simulated import SimulatedNorthbound
from pileus.state.history import History
from pileus.state.sqlite import SqliteStore
from pileus.state.state import State, opened
from pileus.state.store import Store
from pileus.workflow.engine import Engine

log = structlog.stdlib.get_logger()

API_PORT = 5870
LINK_PORT = 5871
_CERTIFICATES_LOOKED_AT_S = 3600.0
_LARGEST_MESSAGE = 1024 * 1024
"""Bytes in one message of a WebSocket: more than anybody types or pastes at once."""


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a controller is told at its start, from `controller.json` in its data folder."""

    api_host: str = "0.0.0.0"  # noqa: S104 - the API is for the network
    api_port: int = API_PORT
    """0 takes a free one."""
    link_host: str = "0.0.0.0"  # noqa: S104 - agents come from other hosts
    link_port: int = LINK_PORT
    names: tuple[str, ...] = ("localhost", "127.0.0.1")
    """Names and addresses by which the API is reached, for its certificate."""
    database: str = ""
    """`postgresql://...`; empty is SQLite in the data folder."""
    northbound: str = ""
    """OVN's northbound database, `unix:/path` or `tcp:address:port`; empty simulates the network."""
    outside: Outside | None = None
    """The external network that the cloud begins with."""
    events_kept_days: int = 90
    deleted_kept_hours: int = 24
    """How long a deleted instance can be had back; 0 deletes for good at once."""
    import_prefixes: tuple[str, ...] = ()
    """Prefixes of addresses that are not public, from which images may be imported all the same: `192.168.7.0/24`."""


class Controller:
    """A controller that runs."""

    def __init__(
        self,
        *,
        state: State,
        authority: Authority,
        engine: Engine[World],
        hosts: HostLinks,
        api: Api,
        first: FirstSecrets | None,
        housekeeping: Housekeeping,
        admissions: "_Admissions",
        identity: ServerIdentity,
    ) -> None:
        self.admissions = admissions
        self.identity = identity
        self.state = state
        self.authority = authority
        self.engine = engine
        self.hosts = hosts
        self.api = api
        self.first = first
        """What is to be told, once, if the cloud has just begun."""
        self.housekeeping = housekeeping
        self.api_port = 0
        self.link_port = 0


@asynccontextmanager
async def running(
    data: Path,
    settings: Settings,
    *,
    clock: Clock | None = None,
    northbound: Northbound | None = None,
    first: FirstSecrets | None = None,
) -> AsyncGenerator[Controller]:
    """A controller that listens: for agents at its link, for everybody at its API. Ends when left, or when it must."""
    async with composed(data, settings, clock=clock, northbound=northbound, first=first) as controller:
        hosts, identity = controller.hosts, controller.identity
        link = LinkServer(
            settings.link_host,
            settings.link_port,
            identity.link_context(),
            hosts.handlers,
            hosts.accompany,
            admit=hosts.admit,
        )
        async with link, serving(controller.api, settings, identity.api_context()) as api_port:
            controller.api_port = api_port
            controller.link_port = controller.admissions.link_port = link.port
            log.info("controller runs", api_port=api_port, link_port=link.port, epoch=controller.state.store.epoch)
            yield controller


@asynccontextmanager
async def composed(
    data: Path,
    settings: Settings,
    *,
    clock: Clock | None = None,
    store: Store | None = None,
    northbound: Northbound | None = None,
    disk_tools: DiskTools | None = None,
    web: Web | None = None,
    directory: Directory | None = None,
    first: FirstSecrets | None = None,
) -> AsyncGenerator[Controller]:
    """A controller over a data folder: loaded, its first records made, its tasks running; it does not listen.

    Args:
        data: its folder; made if it is not there.
        settings: see `Settings`.
        clock: the machine's own, unless a test brings another.
        store: what the settings name, unless a test brings another.
        northbound: what the settings name, unless a test brings another.
        disk_tools: qemu-img, unless a test brings others.
        web: where images are imported from, unless a test brings another.
        directory: LDAP, unless a test brings another.
        first: what lets the first people in, if the cloud is about to begin; made up and logged nowhere without.
    """
    clock = clock or SystemClock()
    await asyncio.to_thread(data.mkdir, parents=True, exist_ok=True, mode=0o700)
    authority = Authority.load_or_create(data / "authority", clock)
    identity = ServerIdentity(authority, data / "authority", clock)
    identity.ensure((*settings.names, CONTROLLER_NAME))
    tickets = Tickets(_secret(data / "ticket.key"), clock)
    placer, addresses, usage = Placer(), Addresses(), Usage(KINDS)
    permissions, uses = Permissions(NOUNS), TokenUses()
    sealer = Sealer.load_or_create(data / "secrets.key")
    retention = Retention(deleted=timedelta(hours=settings.deleted_kept_hours))
    views: Mapping[type, Any] = {
        Placer: placer,
        Addresses: addresses,
        Usage: usage,
        Permissions: permissions,
        Retention: retention,
        Sealer: sealer,
    }
    northbound = northbound or _northbound(settings)
    async with opened(KINDS, store or store_of(data, settings), clock, (placer, addresses, usage)) as state:
        first = first or new_secrets()
        begun = await bootstrap(state, clock, views, settings.outside, first)
        supplies = Supplies(state, placer, clock)
        hosts = HostLinks(state, placer, supplies, authority, clock)
        watch = TaskWatch()
        disk_tools = disk_tools or QemuImg()
        files = ImageFiles(data / "images", disk_tools, clock)
        exports = ExportFiles(data / "image-exports", files, disk_tools, clock)
        public = _web(settings, state)
        world = World(
            state=state,
            hosts=hosts,
            networks=northbound,
            images=_Urls(tickets),
            files=files,
            exports=exports,
            web=web or public,
            clock=clock,
        )
        engine = Engine(state, world, clock, WORKFLOWS, on_progress=watch.progress)
        deleted, events_kept = PurgeDeleted(state, engine, retention, clock), timedelta(days=settings.events_kept_days)
        schedules = RunSchedules(state, engine, usage, views, clock)
        refusals = Refusals(state, clock.monotonic)
        housekeeping = Housekeeping(
            state,
            files,
            watch,
            uses,
            refusals,
            clock,
            events_kept,
            deleted,
            schedules,
            ExpireExports(state, exports, clock),
        )
        admissions = _Admissions(authority, settings, clock)
        consoles = LinkedConsoles(state, permissions, hosts, clock)
        await consoles.forget_former()
        directory = directory or LdapDirectory()
        services: dict[type, Any] = {
            Engine: engine,
            TaskWatch: watch,
            Feed: Feed(state),
            Guesses: Guesses(clock.monotonic),
            SecondFactorGuesses: SecondFactorGuesses(clock.monotonic),
            Sealer: sealer,
            Directory: directory,
            OpenIdProviders: OpenIdConnect(public.address, clock),
            Attempts: Attempts(clock),
            ImageFiles: files,
            ExportFiles: exports,
            Tickets: tickets,
            Admissions: admissions,
            Loads: hosts,
            Supplies: supplies,
            Hosts: hosts,
            ConsoleTokens: ConsoleTokens(clock),
            Consoles: consoles,
            GuestPasswords: consoles,
        }
        nouns = {noun.name.replace("_", "-"): noun for noun in NOUNS}
        performer = Performer(state, engine, clock, usage, limits, views, History(state, clock), nouns, services)
        performer.views = {**views, Undoing: Undoing(NOUNS, performer.authorise)}
        state.listen(watch.events)
        unfollow = follow(state, northbound)
        try:
            async with asyncio.TaskGroup() as tasks:
                work = [
                    tasks.create_task(northbound.run(), name="northbound"),
                    tasks.create_task(hosts.serve(), name="hosts"),
                    tasks.create_task(engine.serve(), name="workflow engine"),
                    tasks.create_task(housekeeping.run(), name="housekeeping"),
                    tasks.create_task(ServePools(state, hosts, supplies).run(), name="storage pools"),
                    tasks.create_task(CopyKeeper(state, hosts).run(), name="copies"),
                    tasks.create_task(DropImages(state, hosts).run(), name="copies of deleted images"),
                    tasks.create_task(FollowShadows(state, hosts).run(), name="shadows"),
                    tasks.create_task(FollowDirectories(state, directory, sealer, clock).run(), name="directories"),
                    tasks.create_task(_renew(identity, settings), name="certificates"),
                    tasks.create_task(_end_with_the_log(state), name="log watch"),
                ]
                await hosts.ready.wait()
                authenticator = TokenAuthenticator(state, permissions, clock, uses)
                yield Controller(
                    state=state,
                    authority=authority,
                    engine=engine,
                    hosts=hosts,
                    api=Api(performer, NOUNS, authenticator, _Mounted(authority), refusals.note),
                    first=first if begun else None,
                    housekeeping=housekeeping,
                    admissions=admissions,
                    identity=identity,
                )
                for task in work:
                    task.cancel()
        finally:
            unfollow()


def store_of(data: Path, settings: Settings) -> Store:
    """What the settings name, not opened yet."""
    if settings.database:
        from pileus.state.postgresql import PostgresqlStore

        return PostgresqlStore(settings.database)
    return SqliteStore(data)


def _northbound(settings: Settings) -> Northbound:
    return OvnNorthbound(settings.northbound) if settings.northbound else SimulatedNorthbound()


def _web(settings: Settings, state: State) -> PublicWeb:
    def own() -> set[str]:
        hosts = {address for host in state[HOSTS] if host.facts is not None for address in host.facts.addresses}
        return hosts | set(settings.names)

    return PublicWeb(prefixes(settings.import_prefixes), own)


def _secret(path: Path) -> bytes:
    if not path.exists():
        write_atomically(path, secrets.token_bytes(32), mode=0o600)
    return path.read_bytes()


async def _renew(identity: ServerIdentity, settings: Settings) -> None:
    while True:
        await asyncio.sleep(_CERTIFICATES_LOOKED_AT_S)
        if identity.ensure((*settings.names, CONTROLLER_NAME)):
            log.info("server certificate renewed")


async def _end_with_the_log(state: State) -> None:
    """A controller whose log cannot be written must end: its memory is ahead of its disk."""
    raise await state.broken_by()


class _Urls:
    def __init__(self, tickets: Tickets) -> None:
        self._tickets = tickets

    def url(self, image: ImageId, host: HostId) -> str:
        return transfer_url(self._tickets, image, host)

    def arrival_url(self, image: ImageId, host: HostId) -> str:
        return arrival_url(self._tickets, image, host)


class _Admissions:
    """Lets hosts in; see `pileus.cloud.hosts.operations.Admissions`."""

    def __init__(self, authority: Authority, settings: Settings, clock: Clock) -> None:
        self._clock = clock
        self._authority = authority
        self._addresses = tuple(name for name in settings.names if name not in ("localhost", "127.0.0.1"))
        self.link_port = settings.link_port

    def invite(self) -> tuple[str, str]:
        token = new_token(self._authority.fingerprint)
        return str(token), token.secret

    @property
    def fingerprint(self) -> str:
        return self._authority.fingerprint

    def admit(self, request: JoinRequest, invitation: Invitation, host: HostId) -> Admission:
        return accept_join(
            self._authority,
            request,
            invitation,
            host=host,
            now=self._clock.now(),
            link_port=self.link_port,
            addresses=self._addresses,
        )


class _Mounted:
    """What is served besides the operations: the authority's certificate, the OpenAPI document."""

    def __init__(self, authority: Authority) -> None:
        self._files = {
            AUTHORITY_PATH: Answer(status=200, body=authority.pem, media_type="application/x-pem-file"),
            "/openapi.json": Answer(status=200, body=served()),
            "/healthz": Answer(status=200, body=b'{"status":"ok"}'),
        }

    async def __call__(self, path: str) -> Answer | None:
        return self._files.get(path)


class _Server(uvicorn.Server):
    """Leaves signals to whoever composes."""

    def capture_signals(self) -> Any:  # noqa: ANN401 - uvicorn's own signature
        return nullcontext()


@asynccontextmanager
async def serving(
    api: Callable[..., Awaitable[None]], settings: Settings, context: ssl.SSLContext
) -> AsyncGenerator[int]:
    """The API, or whatever stands in its place, at its port, over TLS."""
    family = socket.AF_INET6 if ":" in settings.api_host else socket.AF_INET
    listening = socket.create_server((settings.api_host, settings.api_port), family=family, backlog=1024)

    def with_context(_config: uvicorn.Config, _default: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
        return context

    config = uvicorn.Config(
        api,
        http="httptools",
        ws="websockets-sansio",
        ws_max_size=_LARGEST_MESSAGE,
        lifespan="off",
        log_config=None,
        access_log=False,
        # Whoever asks is who the connection comes from; a header could name anybody in the audit trail.
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=2,
        ssl_context_factory=with_context,
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listening]), name="api")
    try:
        yield int(listening.getsockname()[1])
    finally:
        server.should_exit = True
        await asyncio.gather(serving, return_exceptions=True)
        listening.close()
