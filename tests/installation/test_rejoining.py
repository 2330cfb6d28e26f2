"""A cloud whose database and authority are both lost: its hosts join a new authority as who they were."""

import asyncio
import shutil
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from pileus.agent.daemon import IDENTITY
from pileus.client.client import Client
from pileus.client.config import Config
from pileus.cloud.hosts.model import HOSTS
from pileus.cloud.instances.model import INSTANCES, InstanceState
from pileus.controller.compose import running
from pileus.installation.rebuild import rebuild
from pileus.installation.rejoining import Rejoining, rejoin
from pileus.kernel.clock import SystemClock
from pileus.kernel.errors import Conflict, Invalid, NotFound, Unauthenticated
from pileus.kernel.ids import InstanceId, new_id
from pileus.link.addresses import Address
from pileus.link.certificates import AgentIdentity, AgentKey, Authority
from pileus.link.join import JoinRequest, join
from pileus.link.tokens import new_token, read_token
from pileus.testing.cloud import SETTINGS
from pileus.testing.fleet import SimulatedFleet, over_tls
from pileus.testing.foreignguests import other
from pileus.testing.links import FACTS, until


async def test_hosts_come_back_to_a_new_authority_with_their_records_and_running_guests(tmp_path: Path) -> None:
    clock, data = SystemClock(), tmp_path / "controller"
    fleet = SimulatedFleet(2, clock=clock)
    folders = {host.name: tmp_path / host.name for host in fleet.hosts}
    links: list[Address] = []
    link = over_tls(lambda: links, lambda host: AgentIdentity(folders[host.name] / IDENTITY), clock)
    async with running(data, SETTINGS) as controller:
        api = Address("127.0.0.1", controller.api_port)
        assert controller.first is not None
        config = Config(url=f"https://{api}", authority=controller.authority.pem.decode(), token=controller.first.token)
        links[:] = [Address("127.0.0.1", controller.link_port)]
        async with Client(config) as client:
            for host in fleet.hosts:
                made = (await client.send("POST", "/v1/hosts/tokens", {}, plans=False)).body
                identity = AgentIdentity(folders[host.name] / IDENTITY)
                joined = await join(api, read_token(made["token"]), identity, await host.facts())
                host.id = joined.host
            living = asyncio.create_task(fleet.run(link))
            await until(lambda: all(controller.hosts.load(host.id) is not None for host in fleet.hosts))
            host = fleet.hosts[0]
            guest = other(host)
            shadow = (await client.send("POST", "/v1/foreign-guests", {"host_id": host.id}, plans=False)).body["items"]
            wish = {"project_id": (await client.get("/v1/projects", {})).body["items"][0]["id"]}
            await client.send("POST", f"/v1/foreign-guests/{shadow[0]['id']}/adopt", wish, plans=False)
            await until(lambda: guest.id in controller.state[INSTANCES] and guest.id in host.hypervisor.guests)
            await until(lambda: not controller.state[INSTANCES].get(guest.id).busy_with)
            await until(lambda: guest.id in {id for id, _ in host.records.copies.items()})
    try:
        for lost in ("authority", "state.db", "state.db-wal", "state.db-shm"):
            path = data / lost
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        with pytest.raises(NotFound, match="every host has to join again"):
            await rebuild(data, SETTINGS, hosts=2, within=timedelta(seconds=1))
        said: list[str] = []
        rebuilding = asyncio.create_task(
            rebuild(data, SETTINGS, hosts=2, within=timedelta(seconds=60), new_authority=True, say=said.append)
        )
        await until(lambda: any("waiting for hosts" in each for each in said) or rebuilding.done())
        *_, where, token = said[0].split()
        controller_at = Address("127.0.0.1", int(where.partition(":")[2]))
        links[:] = [Address("127.0.0.1", int(said[1].split()[-1]))]
        for host in fleet.hosts:
            assert await rejoin(folders[host.name], controller_at, token) == host.id
        done = await rebuilding
        assert done.hosts == 2
        async with running(data, SETTINGS) as controller:
            links[:] = [Address("127.0.0.1", controller.link_port)]
            await until(lambda: all(each.connected for each in controller.state[HOSTS]))
            assert controller.state[INSTANCES].get(guest.id).state is InstanceState.RUNNING
            assert fleet.hosts[0].hypervisor.guests[InstanceId(guest.id)].starts == 1
    finally:
        living.cancel()
        await asyncio.gather(living, return_exceptions=True)


def request(rejoining: Rejoining, key: AgentKey, host: str, *, secret: str = "") -> bytes:
    secret = secret or read_token(rejoining.token).secret
    return msgspec.json.encode(JoinRequest(secret=secret, csr=key.signing_request(), facts=FACTS, host=host))


def test_a_host_comes_again_by_the_token_alone_and_once(tmp_path: Path) -> None:
    rejoining = Rejoining(Authority.create(SystemClock()))
    id, mine, theirs = new_id(), AgentKey.load_or_create(tmp_path / "a"), AgentKey.load_or_create(tmp_path / "b")
    wrong = new_token("sha256:" + "0" * 64).secret
    for body, error in (
        (request(rejoining, mine, id, secret=wrong), Unauthenticated),
        (request(rejoining, mine, ""), Invalid),
        (request(rejoining, mine, "../../x"), Invalid),
        (b"{", Invalid),
        (b"[" * 5000, Invalid),
    ):
        with pytest.raises(error):
            rejoining.admit(body)
    assert rejoining.admit(request(rejoining, mine, id)).host == id
    assert rejoining.admit(request(rejoining, mine, id)).host == id, "an answer may be lost"
    with pytest.raises(Conflict):
        rejoining.admit(request(rejoining, theirs, id))


async def test_a_host_that_was_in_no_cloud_has_nobody_to_be_again(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        await rejoin(tmp_path, Address("127.0.0.1", 1), str(new_token("sha256:" + "0" * 64)))
