"""Security groups: what may reach an instance, and what it may reach. Stateful: an answer needs no rule. No I/O."""

from enum import StrEnum

from pileus.kernel.ids import ProjectId, SecurityGroupId
from pileus.state.kinds import Kind
from pileus.state.records import Record


class Direction(StrEnum):
    INGRESS = "ingress"
    EGRESS = "egress"


class SecurityGroup(Record, frozen=True, kw_only=True):
    """A set of rules that ports are given. What no rule of any of its groups allows is dropped."""

    project_id: ProjectId
    name: str
    description: str = ""
    is_default: bool = False
    """What ports of the project get that name no group: everything out, and in from members of the same group."""


class SecurityRule(Record, frozen=True, kw_only=True):
    """Lets one kind of traffic through."""

    group_id: SecurityGroupId
    project_id: ProjectId
    direction: Direction
    ip_version: int = 4
    """4 or 6."""
    protocol: str | None = None
    """`tcp`, `udp`, `icmp`, or None for any."""
    port_min: int | None = None
    """The first destination port of TCP and UDP, the type of ICMP; None for any."""
    port_max: int | None = None
    """The last destination port of TCP and UDP, the code of ICMP."""
    remote_cidr: str | None = None
    remote_group_id: SecurityGroupId | None = None
    """The members of this group; neither CIDR nor group is anybody."""


SECURITY_GROUPS = Kind(
    "security_group",
    SecurityGroup,
    indexes={"project": lambda group: group.project_id},
    unique={"default": lambda group: group.project_id if group.is_default else None},
    counts=lambda _: {"security_groups": 1},
)
SECURITY_RULES = Kind(
    "security_rule",
    SecurityRule,
    indexes={
        "project": lambda rule: rule.project_id,
        "group_id": lambda rule: rule.group_id,
        "remote_group": lambda rule: rule.remote_group_id,
    },
    counts=lambda _: {"security_rules": 1},
)
