"""Fills a controller's data folder with a cloud that a benchmark can begin with."""

import asyncio
from collections.abc import Sequence
from datetime import datetime
from ipaddress import ip_address, ip_network
from pathlib import Path

import msgspec

from pileus.cloud.flavors.model import FLAVORS
from pileus.cloud.hosts.model import Host
from pileus.cloud.identity.model import Grant, Token, TokenSecret, User
from pileus.cloud.identity.tokens import new_token, token_hash
from pileus.cloud.images.model import Image, ImageState
from pileus.cloud.instances.model import FirstBootData, Instance, InstanceState
from pileus.cloud.networks.connecting import mac_of
from pileus.cloud.networks.model import SUBNETS, FixedAddress, Port, Subnet
from pileus.cloud.pools.model import POOLS
from pileus.cloud.projects.model import DEFAULT_QUOTA, Project
from pileus.cloud.projects.operations import beginnings
from pileus.cloud.securitygroups.model import SECURITY_GROUPS
from pileus.cloud.volumes.model import BOOT_SLOT, Volume, VolumeState
from pileus.controller.compose import Settings, composed
from pileus.diskimages.headers import DiskFormat
from pileus.kernel.clock import SystemClock
from pileus.kernel.ids import (
    HostId,
    ImageId,
    InstanceId,
    PoolId,
    ProjectId,
    SecurityGroupId,
    SubnetId,
    TokenId,
    UserId,
    new_id,
)
from pileus.kernel.units import MIB
from pileus.link.certificates import AgentIdentity, AgentKey, Authority
from pileus.operations.caller import Caller, Role
from pileus.operations.plan import Ask
from pileus.state.records import Record
from pileus.state.state import Origin, State, put

SETTINGS = Settings(api_host="127.0.0.1", api_port=0, link_host="127.0.0.1", link_port=0)
ORIGIN = Origin(actor="system", operation="benchmark")

_IN_A_PROJECT = 500
"""Instances: a project's first subnet has room for twice as many."""
_AT_ONCE = 1000


class Tenant(msgspec.Struct, frozen=True, kw_only=True):
    """A project, with a token that speaks for a member of it."""

    project: ProjectId
    token: str
    subnet: Subnet
    group: SecurityGroupId


class Filled(msgspec.Struct, frozen=True, kw_only=True):
    """What is in a data folder."""

    hosts: Sequence[HostId]
    tenants: Sequence[Tenant]
    platform_token: str
    """Of the cloud's administrator."""
    image: str
    flavor: str
    instances: Sequence[tuple[str, int]]
    """Ids, each with the number of its tenant."""


async def fill(data: Path, *, hosts: int, instances: int = 0, room: int = 0) -> Filled:
    """Make a cloud with so many hosts and running instances, and projects with room for so many more."""
    now = SystemClock().now()
    async with composed(data, SETTINGS) as controller:
        state = controller.state
        pool = state[POOLS].one("default", key=True)
        assert pool is not None
        assert controller.first is not None
        token = controller.first.token
        made = [
            Host(id=new_id(), created_at=now, name=f"host-{number}", pool_id=PoolId(pool.id), since=now)
            for number in range(hosts)
        ]
        await state.commit(map(put, made), ORIGIN)
        ids = [HostId(host.id) for host in made]
        projects = max(10, (instances + room) // _IN_A_PROJECT + 1)
        tenants = [await _tenant(state, number, now) for number in range(projects)]
        image = _image(tenants[0].project, now)
        await state.commit([put(image)], ORIGIN)
        path = data / "images" / image.id
        await asyncio.to_thread(path.write_bytes, bytes(image.size_bytes))
        running: list[tuple[str, int]] = []
        for begin in range(0, instances, _AT_ONCE):
            records: list[Record] = []
            for number in range(begin, min(begin + _AT_ONCE, instances)):
                tenant, host = tenants[number % projects], ids[number % hosts]
                made_here = _instance(tenant, host, PoolId(pool.id), image, number, number // projects, now)
                running.append((made_here[0].id, number % projects))
                records += made_here
            await state.commit(map(put, records), ORIGIN)
        flavor = next(each.id for each in state[FLAVORS] if each.name == "tiny")
    _join(data, ids)
    return Filled(hosts=ids, tenants=tenants, platform_token=token, image=image.id, flavor=flavor, instances=running)


async def _tenant(state: State, number: int, now: datetime) -> Tenant:
    project = Project(
        id=new_id(), created_at=now, name=f"project-{number}", quota=dict.fromkeys(DEFAULT_QUOTA, 1_000_000)
    )
    id = ProjectId(project.id)
    user = User(id=new_id(), created_at=now, name=f"user-{number}")
    grant = Grant(id=new_id(), created_at=now, project_id=id, user_id=UserId(user.id), role=Role.MEMBER)
    caller = Caller(user_id=UserId(user.id), user_name=user.name, project_id=id, role=Role.MEMBER)
    ask = Ask(state=state, caller=caller, now=now, views={})
    text = new_token()
    token = Token(id=new_id(), created_at=now, project_id=id, user_id=UserId(user.id), name="benchmark")
    secret = TokenSecret(id=token.id, created_at=now, token_id=TokenId(token.id), hash=token_hash(text))
    await state.commit([*map(put, (project, user, grant, token, secret)), *beginnings(ask, id)], ORIGIN)
    group = state[SECURITY_GROUPS].one("default", id)
    assert group is not None
    return Tenant(project=id, token=text, subnet=state[SUBNETS].by("project", id)[0], group=SecurityGroupId(group.id))


def _image(project: ProjectId, now: datetime) -> Image:
    return Image(
        id=new_id(),
        created_at=now,
        project_id=project,
        name="mini",
        format=DiskFormat.RAW,
        public=True,
        state=ImageState.ACTIVE,
        size_bytes=1 * MIB,
        virtual_size_bytes=1 * MIB,
        sha256="30e14955ebf1352266dc2ff8067e68104607e750abb9d3b36582b8af909fcb58",
    )


def _instance(
    tenant: Tenant, host: HostId, pool: PoolId, image: Image, number: int, place: int, now: datetime
) -> tuple[Instance, Volume, Port, FirstBootData]:
    """A running instance and what belongs to it, as `instances.create` leaves them."""
    id = InstanceId(new_id())
    name = f"web-{number}"
    address = str(ip_address(int(ip_network(tenant.subnet.cidr).network_address) + 10 + place))
    port = new_id()
    instance = Instance(
        id=id,
        created_at=now,
        project_id=tenant.project,
        name=name,
        labels={"tier": f"tier-{number % 10}"},
        state=InstanceState.RUNNING,
        vcpus=1,
        memory_mib=256,
        disk_gib=1,
        image_id=ImageId(image.id),
        pool_id=pool,
        host_id=host,
        addresses=(address,),
    )
    return (
        instance,
        Volume(
            slot=BOOT_SLOT,
            id=new_id(),
            created_at=now,
            project_id=tenant.project,
            name=name,
            size_gib=1,
            state=VolumeState.IN_USE,
            image_id=ImageId(image.id),
            instance_id=id,
            host_id=host,
        ),
        Port(
            id=port,
            created_at=now,
            network_id=tenant.subnet.network_id,
            project_id=tenant.project,
            name=name,
            mac=mac_of(port),
            addresses=(FixedAddress(subnet_id=SubnetId(tenant.subnet.id), address=address),),
            security_group_ids=(tenant.group,),
            instance_id=id,
            host_id=host,
            hostname=name,
        ),
        FirstBootData(id=id, created_at=now, project_id=tenant.project, hostname=name),
    )


def _join(data: Path, hosts: Sequence[HostId]) -> None:
    """Give every host its certificate, as joining does."""
    authority = Authority.load_or_create(data / "authority", SystemClock())
    for host in hosts:
        key = AgentKey()
        identity(data, host).install(key, authority.certify_host(key.signing_request(), host), authority.pem)


def identity(data: Path, host: HostId) -> AgentIdentity:
    """Where a host keeps its certificate."""
    return AgentIdentity(data / "agents" / host)
