"""What a project is: who owns what, and how much of it. No I/O."""

from collections.abc import Mapping
from typing import Any

import msgspec

from pileus.kernel.ids import ProjectId
from pileus.state.kinds import Kind
from pileus.state.records import Record
from pileus.state.state import State

DEFAULT_QUOTA: Mapping[str, int] = {
    "instances": 100,
    "vcpus": 200,
    "memory_mib": 400 * 1024,
    "volumes": 200,
    "volume_gib": 10_000,
    "snapshots": 500,
    "backups": 500,
    "backup_gib": 10_000,
    "schedules": 100,
    "images": 100,
    "image_gib": 500,
    "image_shares": 1000,
    "image_exports": 5,
    "networks": 20,
    "subnets": 40,
    "reservations": 500,
    "routers": 10,
    "ports": 500,
    "peerings": 20,
    "security_groups": 100,
    "security_rules": 1000,
    "floating_ips": 50,
    "nat_rules": 200,
    "keypairs": 100,
    "server_groups": 50,
    "users": 100,
    "groups": 50,
    "roles": 50,
    "grants": 1000,
    "tokens": 1000,
}
"""What a project may use unless its own quota says otherwise."""


class Project(Record, frozen=True, kw_only=True):
    """A tenant: everything that is made belongs to one."""

    name: str
    description: str = ""
    quota: Mapping[str, int] = msgspec.field(default_factory=dict[str, int])
    """Its own limits, where they differ from the default; -1 is no limit."""
    requires_second_factor: bool = False
    """Whether nobody works in it without a second factor."""


def _project_2(project: dict[str, Any]) -> dict[str, Any]:
    """Since version 2 a project can demand a second factor."""
    return {**project, "requires_second_factor": False}


PROJECTS = Kind("project", Project, unique={"name": lambda project: project.name}, upgrades=(_project_2,))


def of_its_own(quota: Mapping[str, int]) -> Mapping[str, int]:
    """The limits of a project, without those that say nothing: what has no default limit has none already."""
    return {what: limit for what, limit in quota.items() if what in DEFAULT_QUOTA or limit >= 0}


def limits(state: State, project: ProjectId) -> Mapping[str, int]:
    """What a project may use; what is not named is not limited."""
    found = state[PROJECTS].find(project)
    wanted = {**DEFAULT_QUOTA, **(found.quota if found is not None else {})}
    return {what: limit for what, limit in wanted.items() if limit >= 0}
