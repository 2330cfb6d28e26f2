"""A whole cloud in one process: a real controller, and real agents with simulated engines."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path

import httpx2
import msgspec

from pileus.agent.host import Machine
from pileus.agent.sending import Sender
from pileus.cloud.hosts.model import HOSTS, Host
from pileus.cloud.identity.model import TOKEN_SECRETS, TOKENS, USERS, Token, TokenSecret
from pileus.cloud.identity.tokens import new_token, token_hash
from pileus.cloud.identityproviders.port import Directory
from pileus.cloud.images.model import IMAGES, Image, ImageState
from pileus.cloud.pools.model import POOLS
from pileus.cloud.projects.model import PROJECTS
from pileus.controller.bootstrap import Outside
from pileus.controller.compose import Controller, Settings, composed
from pileus.diskimages.headers import DiskFormat
from pileus.kernel.clock import Clock, SystemClock
from pileus.kernel.ids import PoolId, ProjectId, TokenId, UserId, new_id
from pileus.kernel.units import MIB
from pileus.link.addresses import Address
from pileus.state.records import Record
from pileus.state.state import Origin, put
from pileus.state.store import Store
from pileus.testing.directories import SimulatedDirectory
from pileus.testing.fleet import MACHINE, SimulatedAgent, SimulatedFleet, in_memory
from pileus.testing.links import until

OUTSIDE = Outside(cidr="198.51.100.0/24", gateway="198.51.100.1", first="198.51.100.10", last="198.51.100.250")
"""An external network of the addresses that are meant for examples (RFC 5737)."""

SETTINGS = Settings(
    api_host="127.0.0.1", api_port=0, link_host="127.0.0.1", link_port=0, outside=OUTSIDE, deleted_kept_hours=0
)
"""What is deleted is gone at once, unless a test is about having it back."""
KEEPING = msgspec.structs.replace(SETTINGS, deleted_kept_hours=24)
"""What is deleted can be had back for a day."""

ORIGIN = Origin(actor="system", operation="test")


class SimulatedCloud:
    """A controller with simulated hosts, and an administrator's client."""

    def __init__(
        self, controller: Controller, fleet: SimulatedFleet, client: httpx2.AsyncClient, clock: Clock, data: Path
    ) -> None:
        self.controller = controller
        self.data = data
        """The controller's folder."""
        self.clock = clock
        self.state = controller.state
        self.fleet = fleet
        self.client = client

    def now(self) -> datetime:
        """The time by the controller's clock."""
        return self.clock.now()

    def host(self, name: str) -> SimulatedAgent:
        return next(host for host in self.fleet.hosts if host.name == name)


@asynccontextmanager
async def simulated_cloud(
    data: Path,
    *,
    hosts: int = 3,
    fleet: SimulatedFleet | None = None,
    machine: Machine = MACHINE,
    store: Store | None = None,
    clock: Clock | None = None,
    image: bool = True,
    settings: Settings = SETTINGS,
    directory: Directory | None = None,
) -> AsyncGenerator[SimulatedCloud]:
    """A cloud whose hosts are connected, with an active image `mini`, unless it has begun before.

    Args:
        data: the controller's folder.
        hosts: how many, named `host-1` and so on.
        fleet: these hosts instead: they outlive the controller, as hosts do.
        machine: what each host is like.
        store: where the controller keeps its records, instead of SQLite in `data`.
        clock: the controller's, instead of the machine's.
        image: whether to have an image.
        settings: the controller's.
        directory: where people are asked for who sign in by LDAP, instead of an empty directory.
    """
    clock = clock or SystemClock()
    fleet = fleet or SimulatedFleet(hosts, clock=SystemClock(), machine=machine)
    async with composed(
        data,
        settings,
        clock=clock,
        store=store,
        disk_tools=fleet.disk_tools,
        web=fleet.web,
        directory=directory or SimulatedDirectory(),
    ) as controller:
        await _register(controller, fleet, clock, image=image, images=data / "images")
        for host in fleet.hosts:
            host.send = _sender(controller).send
        living = asyncio.create_task(
            fleet.run(in_memory(controller.hosts.handlers, controller.hosts.accompany)), name="fleet"
        )
        try:
            await until(lambda: all(host.connected for host in controller.state[HOSTS]), within_s=60.0)
            async with client_of(controller, await administrator(controller, clock)) as client:
                yield SimulatedCloud(controller, fleet, client, clock, data)
        finally:
            living.cancel()
            await asyncio.gather(living, return_exceptions=True)


def client_of(controller: Controller, token: str) -> httpx2.AsyncClient:
    """A client of a controller's API in this process, without a network in between."""
    return httpx2.AsyncClient(
        transport=httpx2.ASGITransport(controller.api),
        base_url="https://cloud",
        headers={"authorization": f"Bearer {token}"},
    )


def _sender(controller: Controller) -> Sender:
    """Sends to a controller's API in this process."""
    api = [Address("cloud", 443)]
    return Sender(lambda: api, lambda: httpx2.AsyncClient(transport=httpx2.ASGITransport(controller.api)), pause_s=0.01)


async def administrator(controller: Controller, clock: Clock) -> str:
    """A token of the cloud's administrator, in their own project."""
    if controller.first is not None:
        return controller.first.token
    state = controller.state
    text, id = new_token(), TokenId(new_id())
    user = UserId(next(user.id for user in state[USERS] if user.is_platform))
    token = Token(
        id=id,
        created_at=clock.now(),
        project_id=ProjectId(state[PROJECTS].ids[0]),
        user_id=user,
        name="test",
    )
    secret = TokenSecret(id=id, created_at=clock.now(), token_id=id, hash=token_hash(text))
    await state.commit([put(token), put(secret)], ORIGIN)
    assert id in state[TOKENS]
    assert id in state[TOKEN_SECRETS]
    return text


async def _register(controller: Controller, fleet: SimulatedFleet, clock: Clock, *, image: bool, images: Path) -> None:
    state, now = controller.state, clock.now()
    pool = state[POOLS].one("default", key=True)
    assert pool is not None
    new: list[Record] = [
        Host(
            id=host.id,
            created_at=now,
            name=host.name,
            pool_id=PoolId(pool.id),
            since=now,
            roles=("gateway",) if host is fleet.hosts[0] else (),
        )
        for host in fleet.hosts
        if host.id not in state[HOSTS]
    ]
    if image and not len(state[IMAGES]):
        mini = Image(
            id=new_id(),
            created_at=now,
            project_id=ProjectId(state[PROJECTS].ids[0]),
            name="mini",
            format=DiskFormat.RAW,
            public=True,
            state=ImageState.ACTIVE,
            size_bytes=1 * MIB,
            virtual_size_bytes=1 * MIB,
            sha256="30e14955ebf1352266dc2ff8067e68104607e750abb9d3b36582b8af909fcb58",
        )
        await state.commit([put(mini)], ORIGIN)
        # A sweep that has begun before the image was known would take its file away: this one ends after it.
        await controller.housekeeping.once()
        await asyncio.to_thread((images / mini.id).write_bytes, bytes(1 * MIB))
    if new:
        await state.commit([put(record) for record in new], ORIGIN)
