"""The whole examination: gather, then judge."""

import sqlite3
from collections.abc import Awaitable
from pathlib import Path
from typing import TypeVar

import msgspec

from pileus.doctor.checks import judged
from pileus.doctor.facts import Facts, Ovn, Unseen
from pileus.doctor.findings import Finding
from pileus.doctor.gather import files, machine, network
from pileus.doctor.gather import records as of_records
from pileus.doctor.gather.found import found
from pileus.doctor.gather.found import guests as in_libvirt
from pileus.doctor.gather.site import Site
from pileus.kernel.clock import SystemClock
from pileus.kernel.errors import PileusError

T = TypeVar("T")


async def examine(data: Path) -> list[Finding]:
    """Examine the installation in this folder. Nothing is changed, and nothing has to run for it."""
    return judged(await gathered(data))


async def gathered(data: Path) -> Facts:
    """All that can be seen of the installation in this folder."""
    site, unseen = Site.of(data), list[Unseen]()

    async def look(what: str, looking: Awaitable[T], *, daemon: str = "") -> T | None:
        try:
            return await looking
        except PermissionError as denied:
            unseen.append(Unseen(what=what, why=f"this user may not read {denied.filename}", denied=True))
        except (PileusError, OSError, sqlite3.Error) as failed:
            why = failed.detail if isinstance(failed, PileusError) else str(failed)
            unseen.append(Unseen(what=what, why=why, daemon=daemon))
        return None

    commands, at = site.commands(), SystemClock().now()
    facts = Facts(at=at, commands=commands)
    if site.addresses is None and not commands.simulated:
        return msgspec.structs.replace(facts, installed=False)
    if site.addresses is not None:
        facts = msgspec.structs.replace(
            facts,
            machine=await look("machine", machine.machine(site)),
            supervision=await look("daemons", machine.supervision(site)),
        )
    facts = msgspec.structs.replace(
        facts,
        certificates=await look("certificates", files.certificates(site)) or (),
        file_systems=await look("disks", files.file_systems(site)) or (),
        database=await look("database", files.database(site)),
        secrets=await look("secrets", files.secrets(site)),
    )
    if facts.is_up:
        api = await look("controller", of_records.api(site))
        before = await look("records", of_records.records(site, api))
        if site.addresses is not None:
            here = await look("disks, devices and processes", found(site))
            guests, others = await look("guests", in_libvirt(site), daemon="libvirtd") or (None, frozenset[str]())
            facts = msgspec.structs.replace(
                facts,
                network=await look("network", network.network(site)),
                found=msgspec.structs.replace(here, guests=guests, others=others) if here is not None else None,
                ovn=Ovn(
                    chassis=site.addresses.chassis,
                    registered=await look("hosts in OVN", network.chassis(site.addresses), daemon="ovn-sb"),
                    ports=await look("ports in OVN", network.ports(site.addresses), daemon="ovn-nb"),
                ),
            )
        after = await look("records", of_records.records(site, api)) if before is not None else None
        records = of_records.steady(before, after) if before is not None and after is not None else None
        facts = msgspec.structs.replace(facts, api=api, records=records)
    return msgspec.structs.replace(facts, unseen=tuple(unseen))
