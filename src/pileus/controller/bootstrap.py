"""The first records of a cloud: who administers it, what instances may be, and the way out."""

import secrets
from collections.abc import Mapping
from typing import Any

import msgspec

from pileus.cloud.flavors.model import Flavor
from pileus.cloud.identity.model import Grant, Password, Token, TokenSecret, User
from pileus.cloud.identity.passwords import hashed
from pileus.cloud.identity.tokens import new_token, token_hash
from pileus.cloud.networks.operations import ExternalNetworkCreate, create_external
from pileus.cloud.pools.model import Pool
from pileus.cloud.projects.model import PROJECTS, Project
from pileus.cloud.projects.operations import beginnings
from pileus.cloud.storagepools.model import LOCAL, StoragePool, named
from pileus.kernel.clock import Clock
from pileus.kernel.ids import ProjectId, TokenId, UserId, new_id
from pileus.operations.caller import Caller, Role
from pileus.operations.plan import Ask
from pileus.state.records import Record
from pileus.state.state import Origin, State, put

ORIGIN = Origin(actor="system", operation="bootstrap")

FLAVORS = (
    ("tiny", 1, 256, 1),
    ("small", 1, 1024, 10),
    ("medium", 2, 4096, 20),
    ("large", 4, 8192, 40),
    ("xlarge", 8, 16_384, 80),
)
"""Name, vCPUs, memory in MiB, disk in GiB."""


class Outside(msgspec.Struct, frozen=True, kw_only=True):
    """The external network that a cloud begins with."""

    cidr: str
    gateway: str
    first: str
    last: str


class FirstSecrets(msgspec.Struct, frozen=True, kw_only=True):
    """What lets the first people in. Told once; the cloud keeps hashes only."""

    password: str
    """Of the user `admin`."""
    token: str
    """An API token of the administrator, without an end, for the command line on this machine."""


def new_secrets() -> FirstSecrets:
    """Fresh secrets for a cloud that is about to begin."""
    return FirstSecrets(
        password="-".join(secrets.token_hex(3) for _ in range(4)),
        token=new_token(),
    )


async def bootstrap(
    state: State, clock: Clock, views: Mapping[type, Any], outside: Outside | None, first: FirstSecrets
) -> bool:
    """Make the first records, all or none of them; False if the cloud has begun already."""
    now = clock.now()
    # A cloud that was begun by an earlier Pileus has none yet.
    storage = [] if named(state, LOCAL) else [StoragePool(id=new_id(), created_at=now, name=LOCAL)]
    if len(state[PROJECTS]):
        await state.commit([put(each) for each in storage], ORIGIN)
        return False
    project = Project(id=new_id(), created_at=now, name="default", description="The administrators' own project.")
    pool = Pool(id=new_id(), created_at=now, name="default", is_default=True)
    user = User(id=new_id(), created_at=now, name="admin", is_platform=True)
    token_id = TokenId(new_id())
    records: list[Record] = [
        project,
        pool,
        *storage,
        user,
        Password(id=user.id, created_at=now, hash=hashed(first.password)),
        Grant(
            id=new_id(),
            created_at=now,
            project_id=ProjectId(project.id),
            user_id=UserId(user.id),
            role=Role.ADMIN,
        ),
        Token(
            id=token_id,
            created_at=now,
            project_id=ProjectId(project.id),
            user_id=UserId(user.id),
            name="command line of the first host",
            second_factor=True,  # whoever reads it there administers the machine
        ),
        TokenSecret(id=token_id, created_at=now, token_id=token_id, hash=token_hash(first.token)),
        *(
            Flavor(id=new_id(), created_at=now, name=name, vcpus=vcpus, memory_mib=memory, disk_gib=disk)
            for name, vcpus, memory, disk in FLAVORS
        ),
    ]
    caller = Caller(user_id=UserId(user.id), user_name=user.name, project_id=ProjectId(project.id), role=Role.PLATFORM)
    ask = Ask(state=state, caller=caller, now=now, views=views)
    if outside is not None:
        wish = ExternalNetworkCreate(
            name="external",
            cidr=outside.cidr,
            gateway=outside.gateway,
            first=outside.first,
            last=outside.last,
        )
        state.apply(create_external(ask, wish).changes, ORIGIN)
    # The project's router takes an address of the external network, so that has to be there first. Nobody is told of
    # either before both are on disk together.
    await state.commit([*map(put, records), *beginnings(ask, ProjectId(project.id))], ORIGIN)
    return True
