"""Simulated hosts: a whole cloud of them in this process, or so many against a controller that runs elsewhere."""

import asyncio
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import httpx2
import msgspec

from pileus.agent.fetching import api_client
from pileus.agent.sending import Sender
from pileus.client.client import Client
from pileus.client.config import Config, load, save
from pileus.controller.bootstrap import Outside
from pileus.controller.compose import API_PORT, Controller, Settings, running
from pileus.kernel.clock import SystemClock
from pileus.kernel.files import write_atomically
from pileus.link.addresses import Address, read_address
from pileus.link.certificates import AgentIdentity
from pileus.link.join import join
from pileus.link.tokens import read_token
from pileus.testing.fleet import SimulatedAgent, SimulatedFleet, over_tls

Say = Callable[[str], None]

_JOIN_AT_ONCE = 16


async def simulated_up(data: Path, hosts: int, api_port: int, say: Say) -> None:
    """Run a controller and simulated hosts until interrupted. All that is kept is below the data folder."""
    settings = Settings(
        api_host="127.0.0.1",
        api_port=api_port,
        link_host="127.0.0.1",
        link_port=0,
        outside=Outside(cidr="198.51.100.0/24", gateway="198.51.100.1", first="198.51.100.10", last="198.51.100.254"),
    )
    async with running(data / "controller", settings) as controller:
        config = _client(data, controller)
        if controller.first is not None:
            say(f"administrator admin, password {controller.first.password} (shown this once)")
        say(f"API at {config.url}, CA fingerprint {controller.authority.fingerprint}")
        say(f"command line: PILEUS_CONFIG={data / 'cli.json'} pileus host list")
        links = [Address("127.0.0.1", controller.link_port)]
        await _hosts_until_interrupted(hosts, data / "hosts", config, say, links)


async def simulate_hosts(hosts: int, data: Path, say: Say) -> None:
    """Run simulated hosts against the cloud of the command line's configuration, until interrupted."""
    await _hosts_until_interrupted(hosts, data, load(os.environ), say)


def _client(data: Path, controller: Controller) -> Config:
    environment = {"PILEUS_CONFIG": str(data / "cli.json")}
    url = f"https://127.0.0.1:{controller.api_port}"
    token = controller.first.token if controller.first is not None else load(environment).token
    config = Config(url=url, authority=controller.authority.pem.decode(), token=token)
    save(config, environment)
    return config


async def _hosts_until_interrupted(
    hosts: int, data: Path, config: Config, say: Say, links: Sequence[Address] = ()
) -> None:
    clock = SystemClock()
    fleet = SimulatedFleet(hosts, clock=clock, folder=data / "records")
    identities = {host.name: AgentIdentity(data / host.name) for host in fleet.hosts}
    found = await _join_all(fleet, identities, config, data / "links.json")
    links = links or found
    api = [_api_of(config)]
    for host in fleet.hosts:
        host.send = Sender(lambda: api, partial(_client_of, identities[host.name])).send
    say(f"{hosts} simulated hosts; Ctrl-C ends them")
    interrupted = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupted.set)
    living = asyncio.create_task(
        fleet.run(over_tls(lambda: links, lambda host: identities[host.name], clock)), name="fleet"
    )
    ended = asyncio.create_task(interrupted.wait())
    await asyncio.wait((living, ended), return_when=asyncio.FIRST_COMPLETED)
    for task in (living, ended):
        task.cancel()
    await asyncio.gather(living, ended, return_exceptions=True)


def _client_of(identity: AgentIdentity) -> httpx2.AsyncClient:
    return api_client(identity.context())


def _api_of(config: Config) -> Address:
    return read_address(config.url.removeprefix("https://").rstrip("/"), default_port=API_PORT)


async def _join_all(
    fleet: SimulatedFleet, identities: Mapping[str, AgentIdentity], config: Config, kept: Path
) -> Sequence[Address]:
    """Have all hosts joined; where the controller takes agents."""
    api = _api_of(config)
    turns = asyncio.Semaphore(_JOIN_AT_ONCE)

    async def join_one(client: Client, host: SimulatedAgent) -> None:
        async with turns:
            made = (await client.send("POST", "/v1/hosts/tokens", {}, plans=False)).body
            joined = await join(api, read_token(made["token"]), identities[host.name], await host.facts())
        write_atomically(kept, msgspec.json.encode(joined.links(api)))

    async with Client(config) as client, asyncio.TaskGroup() as tasks:
        for host in fleet.hosts:
            if not identities[host.name].exists:
                tasks.create_task(join_one(client, host))
    return msgspec.json.decode(await asyncio.to_thread(kept.read_bytes), type=list[Address])
