"""What there is of instances on this host, engine by engine."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from pileus.agent.daemon import LibvirtConfig
from pileus.agent.hypervisor.libvirt.binding import load
from pileus.agent.hypervisor.libvirt.domain import Ground
from pileus.agent.hypervisor.libvirt.driver import LibvirtHypervisor
from pileus.agent.hypervisor.port import GuestState
from pileus.agent.records import on_record
from pileus.doctor.facts import Found, Pool, Process
from pileus.doctor.gather.pools import pools
from pileus.doctor.gather.site import Site
from pileus.kernel.ids import is_id
from pileus.kernel.programs import run
from pileus.machine import cgroups, libvirtd

_ALIAS = "pileus-port:"
_UP = frozenset({GuestState.RUNNING, GuestState.PAUSED})


async def found(site: Site) -> Found:
    """Processes, devices and volumes, and what the agent was told; guests are asked for apart (`guests`)."""
    told = site.places.agent / "records" / "guests"
    there = await asyncio.to_thread(pools, site.places.agent, site.agent)
    return Found(
        host=site.places.layout.identity(),
        told=frozenset(each.stem for each in told.glob("*.json")),
        processes=await asyncio.to_thread(_processes, site),
        devices=await _devices(),
        volumes=await asyncio.to_thread(_volumes, site, there),
        pools=there,
    )


async def guests(site: Site) -> tuple[Mapping[str, bool], frozenset[str]] | None:
    """By id, whether it runs, of all guests of Pileus in libvirt, and the ids of those of others.

    None if guests here are not libvirt's.

    Raises:
        Unavailable: libvirt does not answer.
    """
    config = site.agent.hypervisor if site.agent is not None else None
    if not isinstance(config, LibvirtConfig):
        return None
    ground = Ground(accelerator=config.accelerator, sockets=Path(config.sockets), logs=Path(config.logs))
    hypervisor = LibvirtHypervisor(load(), uri=config.uri, ground=ground, accelerator_reason="")
    try:
        others = frozenset(each.id for each in await hypervisor.foreign())
        return {id: guest.state in _UP for id, guest in (await hypervisor.list()).items()}, others
    finally:
        await hypervisor.close()


def _processes(site: Site) -> tuple[Process, ...]:
    found: list[Process] = []
    for pid in cgroups.processes_in(libvirtd.cgroup(site.places.layout)):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has ended
            continue
        if "-uuid" in words[:-1]:
            found.append(Process(pid=pid, guest=words[words.index("-uuid") + 1]))
    return tuple(found)


async def _devices() -> Mapping[str, str]:
    links: list[Mapping[str, Any]] = json.loads(await run("ip", "-json", "link", "show"))
    aliases = {str(each["ifname"]): str(each.get("ifalias", "")) for each in links}
    return {name: alias.removeprefix(_ALIAS) for name, alias in aliases.items() if alias.startswith(_ALIAS)}


def _volumes(site: Site, there: Sequence[Pool]) -> Mapping[str, Path]:
    left = _left(site.places.agent / "records" / "volumes")
    folders = [each.folder / "volumes" for each in there if not each.away]
    return {
        each.name: each
        for folder in folders
        if folder.is_dir()
        for each in folder.iterdir()
        if is_id(each.name) and each.name not in left and (each / "disk.raw").exists()
    }


def _left(records: Path) -> frozenset[str]:
    """The volumes that are others' by now, although their files are where they were."""
    said = on_record(records, msgspec.json.Decoder(dict[str, Any]).decode)
    return frozenset(id for id, each in said.items() if each.get("left"))
