"""The views that are kept in step with the records: addresses and usage, whatever comes in whatever order."""

import asyncio
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pileus.cloud.floatingips import operations as floatingips
from pileus.cloud.floatingips.model import FLOATING_IPS
from pileus.cloud.hosts.model import HOSTS, Host
from pileus.cloud.images.model import Image, ImageState
from pileus.cloud.instances.model import INSTANCES
from pileus.cloud.instances.operations import creation as instances
from pileus.cloud.instances.placement import Placer
from pileus.cloud.instances.workflows.creation import forget
from pileus.cloud.instances.workflows.hosting import OfInstance
from pileus.cloud.networks import operations as networks
from pileus.cloud.networks.addresses import Addresses
from pileus.cloud.networks.model import NETWORKS, PORTS, ROUTERS, SUBNETS, NetworkKind
from pileus.cloud.pools.model import Pool
from pileus.cloud.projects.model import DEFAULT_QUOTA, Project, limits
from pileus.cloud.projects.operations import beginnings
from pileus.cloud.storagepools.model import LOCAL, StoragePool
from pileus.controller.nouns import KINDS
from pileus.diskimages.headers import DiskFormat
from pileus.kernel.clock import FrozenClock, SystemClock
from pileus.kernel.errors import PileusError, QuotaExceeded
from pileus.kernel.ids import InstanceId, NetworkId, PoolId, ProjectId, SubnetId, UserId, new_id
from pileus.link.hosts import HostFacts
from pileus.operations.caller import Caller, Role
from pileus.operations.plan import Ask, Plan
from pileus.operations.usage import Usage
from pileus.state.records import Record
from pileus.state.state import Origin, State, put
from pileus.testing.cloud import simulated_cloud
from pileus.testing.fleet import SimulatedFleet
from pileus.testing.invariants import dangling
from pileus.testing.memorystore import MemoryStore
from pileus.testing.requests import made, running

ORIGIN = Origin(actor="system", operation="test")
QUOTA = {"instances": 4, "floating_ips": 3, "subnets": 5, "routers": 3, "ports": 5}
NOW = FrozenClock().now()
FACTS = HostFacts(
    name="host-1",
    hypervisor="simulated",
    accelerator="simulated",
    accelerator_reason="",
    architecture="x86_64",
    vcpus=64,
    memory_mib=65_536,
    disk_mib=1 << 20,
    version="1",
)


class Desk:
    """Where requests of two projects are planned and applied, as the engine does it, without a cloud around it."""

    def __init__(self) -> None:
        self.usage, self.addresses, self.placer = Usage(KINDS), Addresses(), Placer()
        self.state = State(KINDS, MemoryStore(), FrozenClock(), (self.usage, self.addresses, self.placer))
        self.projects = [ProjectId(new_id()) for _ in range(2)]
        pool = Pool(id=new_id(), created_at=NOW, name="default", is_default=True)
        host = Host(
            id=new_id(),
            created_at=NOW,
            name="host-1",
            pool_id=PoolId(pool.id),
            connected=True,
            since=NOW,
            facts=FACTS,
        )
        self.image = Image(
            id=new_id(),
            created_at=NOW,
            project_id=self.projects[0],
            name="mini",
            format=DiskFormat.RAW,
            public=True,
            state=ImageState.ACTIVE,
        )
        projects = [Project(id=id, created_at=NOW, name=id, quota=QUOTA) for id in self.projects]
        storage = StoragePool(id=new_id(), created_at=NOW, name=LOCAL)
        self.state.apply(map(put, [pool, host, storage, *projects, self.image]), ORIGIN)
        wish = networks.ExternalNetworkCreate(name="out", cidr="198.51.100.0/29", gateway="198.51.100.1")
        self.state.apply(networks.create_external(self.ask(0, Role.PLATFORM), wish).changes, ORIGIN)
        for at, id in enumerate(self.projects):
            self.state.apply(beginnings(self.ask(at), id), ORIGIN)

    def ask(self, project: int, role: Role = Role.MEMBER) -> Ask:
        caller = Caller(user_id=UserId("u"), user_name="u", project_id=self.projects[project], role=role)
        views: Mapping[type, Any] = {Usage: self.usage, Addresses: self.addresses, Placer: self.placer}
        return Ask(state=self.state, caller=caller, now=NOW, views=views)

    def perform(self, plan: Plan) -> None:
        self.usage.check(plan.changes, self.state, limits)
        self.state.apply(plan.changes, ORIGIN)

    def do(self, deed: str, project: int, number: int) -> None:
        """One request; `number` chooses what it is about."""
        ask = self.ask(project)
        own = ProjectId(self.projects[project])
        match deed:
            case "create instance":
                wish = instances.InstanceCreate(name="x", image_id=self.image.id, vcpus=1, memory_mib=64)
                self.perform(instances.create(ask, wish))
            case "instance gone":
                instance = self.one(INSTANCES, own, number)
                self.state.apply(forget(self.state, OfInstance(InstanceId(instance.id))), ORIGIN)
            case "take floating ip":
                self.perform(floatingips.create(ask, floatingips.FloatingIpCreate()))
            case "associate":
                instance = self.one(INSTANCES, own, number)
                wish = floatingips.FloatingIpAssociate(instance_id=instance.id)
                self.perform(floatingips.associate(ask, self.one(FLOATING_IPS, own, number), wish))
            case "release floating ip":
                self.perform(floatingips.delete(ask, self.one(FLOATING_IPS, own, number)))
            case "create subnet":
                own_network = self.one(NETWORKS, own, -1)
                cidr = f"10.{number}.0.0/29"
                wish = networks.SubnetCreate(name="x", network_id=own_network.id, cidr=cidr)
                self.perform(networks.create_subnet(ask, wish))
            case "delete subnet":
                self.perform(networks.delete_subnet(ask, self.one(SUBNETS, own, number)))
            case "create router":
                external = self.state[NETWORKS].by("kind", NetworkKind.EXTERNAL)[0].id
                wish = networks.RouterCreate(name="x", external_network_id=external)
                self.perform(networks.create_router(ask, wish))
            case "delete router":
                self.perform(networks.delete_router(ask, self.one(ROUTERS, own, number)))
            case other:
                raise AssertionError(other)

    def one(self, kind: Any, project: ProjectId, number: int) -> Any:
        found = self.state.table(kind).by("project", project)
        if not found:
            raise QuotaExceeded("there is none")  # as good a refusal as any
        return found[number % len(found)]

    def everything(self) -> list[tuple[str, Record]]:
        return [(kind.name, record) for kind in self.state.kinds for record in self.state.table(kind)]


DEEDS = (
    "create instance",
    "instance gone",
    "take floating ip",
    "associate",
    "release floating ip",
    "create subnet",
    "delete subnet",
    "create router",
    "delete router",
)


@settings(max_examples=120)
@given(
    deeds=st.lists(st.tuples(st.sampled_from(DEEDS), st.integers(0, 1), st.integers(0, 9)), max_size=40),
    seed=st.integers(0, 2**32),
)
def test_whatever_is_asked_no_address_is_given_twice_and_no_quota_exceeded(
    deeds: list[tuple[str, int, int]], seed: int
) -> None:
    async def asking() -> None:
        desk = Desk()
        for deed, project, number in deeds:
            try:
                desk.do(deed, project, number)
            except PileusError:
                continue
            for id in desk.projects:
                used = desk.usage.of(id)
                assert all(used.get(what, 0) <= limit for what, limit in {**DEFAULT_QUOTA, **QUOTA}.items())
        wrong = [
            each for each in dangling(desk.state) if "no task is at work" not in each and "nobody makes it" not in each
        ]
        assert wrong == []
        # Kinds load in no particular order: what is rebuilt from the records is what was kept, in any order.
        records = desk.everything()
        random.Random(seed).shuffle(records)
        usage, addresses = Usage(KINDS), Addresses()
        for kind, record in records:
            for view in (usage, addresses):
                view.changed(kind, None, record)
        assert addresses.taken() == desk.addresses.taken()
        for id in desk.projects:
            counted = {what: n for what, n in desk.usage.of(id).items() if n}
            assert counted == {what: n for what, n in usage.of(id).items() if n}

    asyncio.run(asking())


async def test_an_address_that_was_given_before_a_restart_is_not_given_after_it() -> None:
    desk = Desk()
    desk.do("create instance", 0, 0)
    desk.do("take floating ip", 0, 0)
    again = Addresses()
    for kind, record in sorted(desk.everything(), key=lambda each: each[0]):  # as SQLite loads them
        again.changed(kind, None, record)
    subnet = desk.state[SUBNETS].by("project", desk.projects[0])[-1]
    held = {each.address for port in desk.state[PORTS] for each in port.addresses}
    assert held
    assert not held & {again.next(SubnetId(subnet.id)) for _ in range(3)}
    external = desk.state[NETWORKS].by("kind", NetworkKind.EXTERNAL)[0]
    outside = {floating.address for floating in desk.state[FLOATING_IPS]}
    outside |= {router.external_address for router in desk.state[ROUTERS] if router.external_address}
    assert again.next_of_network(NetworkId(external.id)) not in outside


async def test_a_controller_that_starts_again_gives_no_address_twice(tmp_path: Path) -> None:
    fleet = SimulatedFleet(1, clock=SystemClock())
    given: list[str] = []
    for _ in range(3):
        async with simulated_cloud(tmp_path, fleet=fleet) as cloud:
            instance = await running(cloud, cloud.client)
            floating = await made(cloud.client, "floating-ips", instance_id=instance["id"])
            router = await made(cloud.client, "routers", name="r", external_network_id=floating["network_id"])
            given += [*instance["addresses"], floating["address"], router["external_address"]]
            assert dangling(cloud.state) == []
    assert len(given) == len(set(given)) == 9


async def test_a_refused_request_takes_nothing() -> None:
    desk = Desk()
    for _ in range(4):
        desk.do("create instance", 0, 0)
    before = desk.state.sequence, desk.addresses.taken(), dict(desk.usage.of(desk.projects[0]))
    with pytest.raises(QuotaExceeded):
        desk.do("create instance", 0, 0)
    assert before == (desk.state.sequence, desk.addresses.taken(), dict(desk.usage.of(desk.projects[0])))
    assert desk.state[HOSTS].ids
