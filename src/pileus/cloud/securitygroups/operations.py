"""What one may do with security groups and their rules."""

from typing import Annotated, Self

import msgspec
from pydantic import Field, model_validator

from pileus.cloud.networks.model import PORTS
from pileus.cloud.networks.operations import Prefix
from pileus.cloud.securitygroups.model import (
    SECURITY_GROUPS,
    SECURITY_RULES,
    Direction,
    SecurityGroup,
    SecurityRule,
)
from pileus.kernel.errors import Conflict
from pileus.kernel.ids import ProjectId, SecurityGroupId
from pileus.operations.declare import Noun
from pileus.operations.plan import Ask, Plan
from pileus.operations.wire import Description, Id, Name, Wire, ref
from pileus.state.state import Change, put, remove

_LARGEST_ICMP = 255
PortNumber = Annotated[int, Field(ge=0, le=65_535)]


class SecurityGroupCreate(Wire):
    name: Name
    description: Description = ""


class SecurityGroupChange(Wire):
    name: Name | None = None
    description: Description | None = None


class SecurityRuleCreate(Wire):
    group_id: Annotated[Id, ref("security-group")]
    direction: Direction = Direction.INGRESS
    ip_version: Annotated[int, Field(ge=4, le=6, multiple_of=2)] = 4
    protocol: Annotated[str, Field(pattern="^(tcp|udp|icmp)$")] | None = None
    port_min: PortNumber | None = None
    port_max: PortNumber | None = None
    remote_cidr: Prefix | None = None
    remote_group_id: Annotated[Id, ref("security-group")] | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.remote_cidr is not None and self.remote_group_id is not None:
            raise ValueError("remote_cidr and remote_group_id exclude each other")
        if self.remote_cidr is not None and (":" in self.remote_cidr) != (self.ip_version == 6):
            raise ValueError("remote_cidr is not of this ip_version")
        if self.protocol is None and self.port_min is not None:
            raise ValueError("ports need a protocol")
        if self.port_max is not None and self.port_min is None:
            raise ValueError("port_max needs port_min")
        if self.protocol == "icmp" and max(self.port_min or 0, self.port_max or 0) > _LARGEST_ICMP:
            raise ValueError(f"types and codes of ICMP go up to {_LARGEST_ICMP}")
        if self.protocol != "icmp" and self.port_max is not None and self.port_max < (self.port_min or 0):
            raise ValueError("port_max is below port_min")
        return self


security_groups = Noun(
    SECURITY_GROUPS,
    plural="security-groups",
    columns=("name", "is_default", "description"),
    about="Security groups: what may reach an instance, and what it may reach.",
)
security_groups.list(filters=("name", "is_default"), sorts=("name",))
security_groups.show()


@security_groups.post()
def create(ask: Ask, wish: SecurityGroupCreate) -> Plan:
    """Create a security group. It lets everything out, and nothing in until it has a rule that does."""
    group = SecurityGroup(
        id=ask.new_id(),
        created_at=ask.now,
        project_id=ask.caller.project_id,
        name=wish.name,
        description=wish.description,
    )
    changes = [put(group), *_all_out(ask, group)]
    return Plan(summary=f"create security group {wish.name}", changes=changes, answers=group, undo="delete it")


@security_groups.patch()
def change(ask: Ask, group: SecurityGroup, wish: SecurityGroupChange) -> Plan:
    """Rename a security group, or describe it. What it lets through are its rules."""
    changed = msgspec.structs.replace(group, **wish.model_dump(exclude_none=True))
    return Plan(
        summary=f"change security group {group.name}", changes=(put(changed),), answers=changed, undo="change it back"
    )


@security_groups.delete()
def delete(ask: Ask, group: SecurityGroup) -> Plan:
    """Delete a security group that no port uses and no other group's rule names."""
    if group.is_default:
        raise Conflict("the default security group stays as long as its project")
    if ports := ask.state[PORTS].count_by("security_group", group.id):
        raise Conflict(f"{ports} ports use security group {group.name}: give them other groups first")
    rules = ask.state[SECURITY_RULES]
    naming = next((rule for rule in rules.by("remote_group", group.id) if rule.group_id != group.id), None)
    if naming is not None:
        other = ask.state[SECURITY_GROUPS].get(naming.group_id)
        raise Conflict(f"a rule of security group {other.name} names this one: delete it first ({naming.id})")
    changes: list[Change] = [remove(group), *(remove(rule) for rule in rules.by("group_id", group.id))]
    return Plan(summary=f"delete security group {group.name}", changes=changes, undo="create it again, with its rules")


security_rules = Noun(
    SECURITY_RULES,
    plural="security-rules",
    columns=(
        "group_id",
        "direction",
        "ip_version",
        "protocol",
        "port_min",
        "port_max",
        "remote_cidr",
        "remote_group_id",
    ),
    about="Security rules, of security groups: each lets one kind of traffic through, and the answers to it.",
)
security_rules.list(filters=("group_id", "direction", "protocol"))
security_rules.show()


@security_rules.post(verb="create")
def create_rule(ask: Ask, wish: SecurityRuleCreate) -> Plan:
    """Let one kind of traffic through."""
    group = ask.see(SECURITY_GROUPS, wish.group_id, "group_id")
    if wish.remote_group_id is not None:
        ask.see(SECURITY_GROUPS, wish.remote_group_id, "remote_group_id", of=group.project_id)
    rule = SecurityRule(
        id=ask.new_id(),
        created_at=ask.now,
        group_id=SecurityGroupId(group.id),
        project_id=group.project_id,
        direction=wish.direction,
        ip_version=wish.ip_version,
        protocol=wish.protocol,
        port_min=wish.port_min,
        port_max=wish.port_max if wish.port_max is not None or wish.protocol == "icmp" else wish.port_min,
        remote_cidr=wish.remote_cidr,
        remote_group_id=SecurityGroupId(wish.remote_group_id) if wish.remote_group_id else None,
    )
    for other in ask.state[SECURITY_RULES].by("group_id", group.id):
        if _says(other) == _says(rule):
            raise Conflict(f"group {group.name} has this rule already ({other.id})")
    return Plan(
        summary=f"let {wish.direction} {wish.protocol or 'traffic'} through in group {group.name}",
        changes=(put(rule),),
        answers=rule,
        undo="delete the rule",
    )


@security_rules.delete(verb="delete")
def delete_rule(ask: Ask, rule: SecurityRule) -> Plan:
    """Delete a rule. What it let through is cut off, established connections too."""
    return Plan(summary="delete a security rule", changes=(remove(rule),), undo="create it again")


def _says(rule: SecurityRule) -> tuple[object, ...]:
    return (
        rule.direction,
        rule.ip_version,
        rule.protocol,
        rule.port_min,
        rule.port_max,
        rule.remote_cidr,
        rule.remote_group_id,
    )


def _all_out(ask: Ask, group: SecurityGroup) -> list[Change]:
    return [_rule(ask, group, Direction.EGRESS, version) for version in (4, 6)]


def _rule(
    ask: Ask, group: SecurityGroup, direction: Direction, version: int, remote: SecurityGroupId | None = None
) -> Change:
    return put(
        SecurityRule(
            id=ask.new_id(),
            created_at=ask.now,
            group_id=SecurityGroupId(group.id),
            project_id=group.project_id,
            direction=direction,
            ip_version=version,
            remote_group_id=remote,
        )
    )


def default_group(ask: Ask, project: ProjectId) -> list[Change]:
    """The group of ports that name none: everything out, and in from members of the same group."""
    group = SecurityGroup(
        id=ask.new_id(),
        created_at=ask.now,
        project_id=project,
        name="default",
        description="Everything out; in from members of this group.",
        is_default=True,
    )
    own = SecurityGroupId(group.id)
    inwards = [_rule(ask, group, Direction.INGRESS, version, own) for version in (4, 6)]
    return [put(group), *_all_out(ask, group), *inwards]
