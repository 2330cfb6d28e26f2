"""What one may do with hosts."""

import re
from datetime import timedelta
from typing import Annotated, Protocol

import msgspec
from pydantic import Field

from pileus.cloud.backups.model import BACKUPS
from pileus.cloud.foreign.model import SHADOWS
from pileus.cloud.hosts.model import HOSTS, INVITATIONS, Host, HostState, Invited
from pileus.cloud.instances.model import INSTANCES, InstanceState
from pileus.cloud.pools.model import POOLS
from pileus.cloud.storagepools.model import POOLS_ON_HOSTS
from pileus.cloud.storagepools.supply import Supplies
from pileus.cloud.volumes.model import VOLUMES
from pileus.kernel.errors import Conflict, Invalid, NotFound, Unauthenticated
from pileus.kernel.ids import HostId, PoolId
from pileus.link.hosts import Load
from pileus.link.join import Admission, Invitation, JoinRequest
from pileus.link.storagepools import PoolObserved
from pileus.link.tokens import hashed
from pileus.operations.caller import Role
from pileus.operations.declare import Answer, Exchange, Noun
from pileus.operations.plan import Ask, Plan
from pileus.operations.wire import HostName, Id, Wire, ref
from pileus.scheduler.model import HostRole
from pileus.state.state import Origin, put, remove

Place = Annotated[str, Field(max_length=63, pattern=r"^[a-zA-Z0-9._-]*$")]
_LARGEST_FACTS = 64 * 1024


class HostChange(Wire):
    name: HostName | None = None
    state: HostState | None = None
    pool_id: Annotated[Id, ref("pool")] | None = None
    zone: Place | None = None
    room: Place | None = None
    rack: Place | None = None
    roles: Annotated[tuple[HostRole, ...], Field(max_length=4)] | None = None


class JoinTokenCreate(Wire):
    pool_id: Annotated[Id, ref("pool")] | None = None
    roles: Annotated[tuple[HostRole, ...], Field(max_length=4)] = ()
    expires_in_s: Annotated[int, Field(ge=60, le=30 * 86_400)] = 86_400


class JoinTokenMade(msgspec.Struct, frozen=True, kw_only=True):
    """What lets one new host in, shown this once."""

    token: str
    authority: str
    """The fingerprint of the cloud's certificate authority."""


class HostLoad(msgspec.Struct, frozen=True, kw_only=True):
    """How much of a host is in use, measured, and promised."""

    host_id: HostId
    measured: Load | None
    """None while its agent has not reported."""
    instances: int
    promised_vcpus: int
    promised_memory_mib: int
    promised_disk_gib: int
    storage: list[PoolObserved]
    """Its storage pools, as it last reported them."""


class Admissions(Protocol):
    """Makes join tokens, and lets hosts in: the controller's authority and link."""

    def invite(self) -> tuple[str, str]:
        """A new token, and its secret's part that is to be kept (hashed)."""
        ...

    @property
    def fingerprint(self) -> str: ...

    def admit(self, request: JoinRequest, invitation: Invitation, host: HostId) -> Admission:
        """Raises Unauthenticated or Invalid."""
        ...


class Loads(Protocol):
    """What the agents reported last."""

    def load(self, host: HostId) -> Load | None: ...


hosts = Noun(
    HOSTS,
    plural="hosts",
    columns=("name", "state", "connected", "zone", "roles"),
    about="Hosts: the machines that instances run on.",
    visible=lambda ask, _: ask.caller.is_platform,
    scope="",
)
hosts.list(filters=("name", "state", "pool_id", "connected", "zone"), sorts=("name",), least=Role.PLATFORM)
hosts.show(least=Role.PLATFORM)


@hosts.patch(least=Role.PLATFORM)
def change(ask: Ask, host: Host, wish: HostChange) -> Plan:
    """Rename a host, take it into maintenance and back, say where it stands, what it carries, move it to a pool."""
    if wish.pool_id is not None:
        ask.see(POOLS, wish.pool_id, "pool_id")
        if wish.pool_id != host.pool_id and (kept := ask.state[INSTANCES].count_by("host_id", host.id)):
            raise Conflict(
                f"host {host.name} has {kept} instances, which belong to its pool: delete them first",
                fields={"pool_id": "instances are on it"},
            )
    changed = msgspec.structs.replace(host, **wish.model_dump(exclude_none=True))
    return Plan(summary=f"change host {host.name}", changes=(put(changed),), answers=changed, undo="change it back")


@hosts.delete(least=Role.PLATFORM)
def delete(ask: Ask, host: Host) -> Plan:
    """Remove a host that has no instances and no volumes. Its agent is no longer let in."""
    if kept := ask.state[INSTANCES].count_by("host_id", host.id):
        raise Conflict(
            f"host {host.name} has {kept} instances: delete them first, or let them go on by `instance leave`"
        )
    if kept := ask.state[VOLUMES].count_by("host", host.id):
        raise Conflict(f"host {host.name} has {kept} volumes, whose data nobody else has: delete them first")
    if kept := ask.state[BACKUPS].count_by("host", host.id):
        raise Conflict(f"host {host.name} has {kept} backups, which nobody else has: delete them first")
    shadows = [remove(each) for each in ask.state[SHADOWS].by("host_id", host.id)]
    pools = [remove(each) for each in ask.state[POOLS_ON_HOSTS].by("host", host.id)]
    return Plan(summary=f"remove host {host.name}", changes=(remove(host), *shadows, *pools), undo="let it join again")


@hosts.special("GET", "/{id}/load", least=Role.PLATFORM, answers=HostLoad)
async def load(exchange: Exchange, host: Host) -> Answer:
    """Show how much of a host is in use, and promised."""
    loads: Loads = exchange.services[Loads]
    instances = exchange.ask.state[INSTANCES].by("host_id", host.id)
    promised = [each for each in instances if each.state is not InstanceState.DELETED]
    shown = HostLoad(
        host_id=HostId(host.id),
        measured=loads.load(HostId(host.id)),
        instances=len(instances),
        promised_vcpus=sum(each.vcpus for each in promised),
        promised_memory_mib=sum(each.promised_memory_mib for each in promised),
        promised_disk_gib=sum(each.size_gib for each in exchange.ask.state[VOLUMES].by("host", host.id)),
        storage=list(exchange.services[Supplies].of(HostId(host.id)).values()),
    )
    return Answer(status=200, body=msgspec.json.encode(shown))


@hosts.special("POST", "/tokens", least=Role.PLATFORM, status=201, answers=JoinTokenMade)
async def invite(exchange: Exchange, wish: JoinTokenCreate) -> Answer:
    """Make a token that lets one new host join."""
    admissions: Admissions = exchange.services[Admissions]
    ask = exchange.ask
    pool = ask.see(POOLS, wish.pool_id, "pool_id") if wish.pool_id else ask.state[POOLS].one("default", key=True)
    if pool is None:
        raise Conflict("there is no default pool: name one", fields={"pool_id": "missing"})
    token, secret = admissions.invite()
    invited = Invited(
        id=ask.new_id(),
        created_at=ask.now,
        pool_id=PoolId(pool.id),
        roles=wish.roles,
        invitation=Invitation(secret_hash=hashed(secret), expires_at=ask.now + timedelta(seconds=wish.expires_in_s)),
    )
    origin = Origin(
        actor=ask.caller.actor, operation="host.invite", request=ask.caller.request, source=ask.caller.source
    )
    await ask.state.commit([put(invited)], origin)
    made = JoinTokenMade(token=token, authority=admissions.fingerprint)
    return Answer(status=201, body=msgspec.json.encode(made))


@hosts.special("POST", "/join", least=None, max_body=_LARGEST_FACTS)
async def join(exchange: Exchange) -> Answer:
    """Let a new host in, with its join token. Asked by agents; repeating it after a lost answer is safe."""
    try:
        request = msgspec.json.decode(b"".join([chunk async for chunk in exchange.body()]), type=JoinRequest)
    except (msgspec.MsgspecError, RecursionError) as wrong:
        raise Invalid("this is not a request to join", internal=str(wrong)) from None
    admissions: Admissions = exchange.services[Admissions]
    ask = exchange.ask
    invited = ask.state[INVITATIONS].one("secret", hashed(request.secret))
    if invited is None:
        raise Unauthenticated("the join token is not valid")
    admission = admissions.admit(request, invited.invitation, HostId(ask.new_id()))
    id = admission.answer.host
    known = ask.state[HOSTS].find(id)
    if known is None and invited.invitation.host is not None:
        raise NotFound("this host was removed; it needs a new join token")
    host = known or Host(
        id=id,
        created_at=ask.now,
        name=_free_name(ask, request.facts.name),
        pool_id=invited.pool_id,
        roles=invited.roles,
        since=ask.now,
        facts=request.facts,
    )
    host = msgspec.structs.replace(host, certificate_serial=f"{admission.serial:x}")
    used = msgspec.structs.replace(invited, invitation=admission.invitation)
    origin = Origin(actor=f"host:{id}", operation="host.join", request=ask.caller.request, source=ask.caller.source)
    await ask.state.commit([put(host), put(used)], origin)
    return Answer(status=200, body=msgspec.json.encode(admission.answer))


def _free_name(ask: Ask, wanted: str) -> str:
    """The host's own name, or with a number behind it if another has it."""
    own = re.sub(r"[^a-zA-Z0-9-]+", "-", wanted)[:56].strip("-") or "host"
    name, number = own, 1
    while ask.state[HOSTS].one("name", name) is not None:
        number += 1
        name = f"{own}-{number}"
    return name
