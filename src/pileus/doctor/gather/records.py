"""The records: from the controller, or from its database when it does not answer."""

import asyncio
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from pileus.client.client import Client
from pileus.client.config import Config
from pileus.cloud.instances.model import WITH_GUEST
from pileus.cloud.networks.model import NetworkKind
from pileus.cloud.volumes.model import VolumeState
from pileus.doctor.facts import Api, HostSeen, InstanceSeen, NetworkSeen, PortSeen, Records, TaskSeen, VolumeSeen
from pileus.doctor.gather.files import read_only
from pileus.doctor.gather.site import Site
from pileus.kernel.errors import PileusError
from pileus.workflow.task import UNFINISHED

_PATIENCE_S = 2.0
_CONTROLLER = "the controller"

T = TypeVar("T")


class _Revised(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def revision(self) -> int: ...


R = TypeVar("R", bound=_Revised)


async def api(site: Site) -> Api:
    """Whether the controller answers."""
    url = _config(site).url
    try:
        async with _client(site) as client:
            await client.get("/healthz")
    except PileusError as failed:
        return Api(url=url, failure=failed.detail)
    return Api(url=url)


def _client(site: Site) -> Client:
    return Client(_config(site), patience_s=_PATIENCE_S)


def _config(site: Site) -> Config:
    return msgspec.json.decode(site.places.client.read_bytes(), type=Config)


async def records(site: Site, api: Api | None) -> Records:
    """All records that the engines are compared with, as they are now."""
    if api is not None and not api.failure:
        async with _client(site) as client:
            return await _asked(client)
    return await asyncio.to_thread(_read, site.places.controller / "state.db")


async def _asked(client: Client) -> Records:
    async def all_of(path: str, kind: type[T]) -> tuple[T, ...]:
        return msgspec.convert([each async for each in client.records(path, all_projects="true")], tuple[kind, ...])

    async def tasks(state: str) -> tuple[TaskSeen, ...]:
        found = [each async for each in client.records("/v1/tasks", all_projects="true", state=state)]
        return msgspec.convert(found, tuple[TaskSeen, ...])

    return _records(
        _CONTROLLER,
        hosts=msgspec.convert([each async for each in client.records("/v1/hosts")], tuple[HostSeen, ...]),
        instances=await all_of("/v1/instances", InstanceSeen),
        volumes=await all_of("/v1/volumes", VolumeSeen),
        ports=await all_of("/v1/ports", PortSeen),
        networks=msgspec.convert([each async for each in client.records("/v1/networks")], tuple[NetworkSeen, ...]),
        tasks=[task for state in sorted(UNFINISHED) for task in await tasks(state)],
    )


def _read(database: Path) -> Records:
    with read_only(database) as on:

        def all_of(kind: str, of: type[T]) -> tuple[T, ...]:
            rows = on.execute("SELECT body FROM records WHERE kind = ?", (kind,))
            return tuple(msgspec.json.decode(body, type=of) for (body,) in rows)

        return _records(
            "the database that the controller has left",
            hosts=all_of("host", HostSeen),
            instances=all_of("instance", InstanceSeen),
            volumes=all_of("volume", VolumeSeen),
            ports=all_of("port", PortSeen),
            networks=all_of("network", NetworkSeen),
            tasks=[each for each in all_of("task", TaskSeen) if each.state in UNFINISHED],
        )


def _records(
    source: str,
    *,
    hosts: tuple[HostSeen, ...],
    instances: tuple[InstanceSeen, ...],
    volumes: tuple[VolumeSeen, ...],
    ports: tuple[PortSeen, ...],
    networks: tuple[NetworkSeen, ...],
    tasks: Sequence[TaskSeen],
) -> Records:
    # What guests were found with that were taken over is in no engine of ours.
    unmanaged = {each.id for each in networks if each.kind == NetworkKind.UNMANAGED}
    return Records(
        source=source,
        hosts=hosts,
        instances=instances,
        volumes=tuple(each for each in volumes if each.found is None),
        ports=tuple(each for each in ports if each.network_id not in unmanaged),
        tasks=tuple(tasks),
        lines=tuple(each for each in networks if each.kind == NetworkKind.EXTERNAL),
        known=frozenset(each.id for each in (*instances, *volumes, *ports)),
    )


def steady(before: Records, after: Records) -> Records:
    """What was the same before and after: only of that engines may be expected to agree."""
    instances = tuple(each for each in _same(before.instances, after.instances) if each.state in WITH_GUEST)
    settled = {each.id for each in instances}
    return msgspec.structs.replace(
        after,
        instances=instances,
        volumes=tuple(
            each
            for each in _same(before.volumes, after.volumes)
            if each.state == VolumeState.IN_USE and (each.instance_id is None or each.instance_id in settled)
        ),
        ports=tuple(each for each in _same(before.ports, after.ports) if each.instance_id in settled),
        known=before.known | after.known,
    )


def _same(before: Iterable[R], after: Iterable[R]) -> list[R]:
    earlier = {each.id: each.revision for each in before}
    return [each for each in after if earlier.get(each.id) == each.revision]
