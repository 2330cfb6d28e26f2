"""What one may do with identity providers, and with what their groups give here."""

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from pydantic import AfterValidator, Field, StringConstraints

from pileus.cloud.identity.leaving import each_once, without_mapping, without_users
from pileus.cloud.identity.model import GRANTS, GROUPS, ROLES, USERS
from pileus.cloud.identity.rights import not_by_a_token_with_a_scope
from pileus.cloud.identity.sealing import Sealer
from pileus.cloud.identityproviders.fields import DEFAULTS, checked
from pileus.cloud.identityproviders.model import (
    GROUP_MAPPINGS,
    IDENTITY_PROVIDERS,
    PROVIDER_SECRETS,
    GroupMapping,
    IdentityProvider,
    ProviderKind,
    ProviderSecret,
)
from pileus.cloud.identityproviders.port import Directory, Finding, OpenIdProviders
from pileus.cloud.projects.model import PROJECTS
from pileus.kernel.errors import Conflict, Invalid
from pileus.kernel.ids import GroupId, IdentityProviderId, ProjectId, RoleId
from pileus.operations.caller import Role
from pileus.operations.declare import Answer, Exchange, Noun
from pileus.operations.plan import Ask, Plan
from pileus.operations.wire import Id, Wire, ref
from pileus.state.state import Change, State, put, remove


def _clean(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must not hold control characters")
    return text


Text = Annotated[str, StringConstraints(max_length=1000), AfterValidator(_clean)]
Attribute = Annotated[str, StringConstraints(max_length=255), AfterValidator(_clean)]
Certificates = Annotated[str, StringConstraints(max_length=32_768)]
Secret = Annotated[str, StringConstraints(min_length=1, max_length=1000), AfterValidator(_clean)]


class _Described(Wire):
    """What can be said at the beginning, and changed."""

    enabled: bool | None = None
    authority: Certificates | None = None
    """Certificates that may vouch for it, as PEM. Without any, those that the machine trusts."""
    secret: Secret | None = None
    """The password of `bind_dn`, or the client's secret."""
    makes_users: bool | None = None
    """Whether somebody who is not known here yet becomes a user by signing in."""
    users_project_id: Annotated[Id, ref("project")] | None = None
    """The project that users whom it makes belong to. Without one they are users of the whole cloud."""
    name_attribute: Attribute | None = None
    """What people sign in by: `uid`; `sAMAccountName` in Active Directory; a claim of OpenID Connect."""
    display_name_attribute: Attribute | None = None
    mail_attribute: Attribute | None = None
    groups_attribute: Attribute | None = None
    """Of a person, the groups that they are in. Empty: a directory is searched for them below `group_base_dn`."""
    subject_attribute: Attribute | None = None
    """What is a person's for good: `entryUUID`; `objectGUID` in Active Directory; always `sub` in OpenID Connect."""
    start_tls: bool | None = None
    """Encrypt a connection to ldap:// before anything else is said."""
    bind_dn: Text | None = None
    """As whom the directory is searched."""
    base_dn: Text | None = None
    """Below which people are found."""
    user_filter: Text | None = None
    """Which entries are people (RFC 4515)."""
    group_base_dn: Text | None = None
    """Below which groups are found, by who is a member of them."""
    group_member_attribute: Attribute | None = None
    client: Text | None = None
    """What the provider calls this cloud (`client_id`)."""
    scopes: Annotated[list[Attribute], Field(max_length=20)] | None = None


class IdentityProviderCreate(_Described):
    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
    """What people name when they sign in by it."""
    kind: ProviderKind
    url: Text
    """`ldaps://HOST`, or the issuer as the provider writes it."""


class IdentityProviderChange(_Described):
    url: Text | None = None
    """Another one takes `secret` again: who may change where it is sent need not know it."""


class ProviderTest(Wire):
    user: Annotated[str, StringConstraints(max_length=255)] = ""
    """Look this person up, too, and say what they would have here."""


class Examination(msgspec.Struct, frozen=True, kw_only=True):
    """What was tried with a provider, in order, up to the first thing that did not work."""

    good: bool
    findings: Sequence[Finding]


class OfferedProvider(msgspec.Struct, frozen=True, kw_only=True):
    """A provider by which one can sign in."""

    name: str
    kind: ProviderKind


class OfferedProviders(msgspec.Struct, frozen=True):
    """The providers by which one can sign in."""

    items: Sequence[OfferedProvider]


_WHO_IS_ASKED = ("url", "start_tls", "authority")

identity_providers = Noun(
    IDENTITY_PROVIDERS,
    plural="identity-providers",
    columns=("name", "kind", "url", "enabled"),
    about="Identity providers: directories (LDAP) and OpenID providers that say who people are.",
    scope="",
)
identity_providers.list(filters=("name", "kind"), least=Role.PLATFORM)
identity_providers.show(least=Role.PLATFORM)


@identity_providers.special("GET", "/offered", least=None, answers=OfferedProviders)
async def offered(exchange: Exchange) -> Answer:
    """List the providers by which one can sign in; for everybody."""
    found = [
        OfferedProvider(name=each.name, kind=each.kind)
        for each in exchange.ask.state[IDENTITY_PROVIDERS]
        if each.enabled
    ]
    return Answer(status=200, body=msgspec.json.encode(OfferedProviders(found)))


@identity_providers.post(least=Role.PLATFORM)
def create(ask: Ask, wish: IdentityProviderCreate) -> Plan:
    """Let people sign in by a directory, or by an OpenID provider."""
    not_by_a_token_with_a_scope(ask)
    settings: dict[str, Any] = {**DEFAULTS[wish.kind], **_said(ask, wish)}
    provider = checked(
        IdentityProvider(id=ask.new_id(), created_at=ask.now, name=wish.name, kind=wish.kind, url=wish.url, **settings)
    )
    _check_secret(provider, known=wish.secret is not None)
    return Plan(
        summary=f"let people sign in by {wish.name}",
        changes=(put(provider), *_sealed(ask, provider, wish.secret)),
        answers=provider,
        undo="delete the provider",
    )


@identity_providers.patch(least=Role.PLATFORM)
def change(ask: Ask, provider: IdentityProvider, wish: IdentityProviderChange) -> Plan:
    """Change how a provider is asked, or let nobody in by it (`enabled`): that counts at once, also for tokens."""
    not_by_a_token_with_a_scope(ask)
    changed = checked(msgspec.structs.replace(provider, url=wish.url or provider.url, **_said(ask, wish)))
    _check_subjects(ask, provider, changed)
    has_one = ask.state[PROVIDER_SECRETS].find(provider.id) is not None
    _check_secret(changed, known=has_one or wish.secret is not None)
    is_another = any(getattr(changed, name) != getattr(provider, name) for name in _WHO_IS_ASKED)
    if is_another and wish.secret is None and has_one:
        raise Invalid("some fields are wrong", fields={"secret": "is needed again, for it is sent to somebody else"})
    return Plan(
        summary=f"change identity provider {provider.name}",
        changes=(put(changed), *_sealed(ask, changed, wish.secret)),
        answers=changed,
        undo="change it back",
    )


@identity_providers.delete(least=Role.PLATFORM)
def delete(ask: Ask, provider: IdentityProvider) -> Plan:
    """Delete a provider, and with it its users, with all that is theirs alone. To keep them, disable it instead."""
    users = ask.state[USERS].by("provider", provider.id)
    if any(user.id == ask.caller.user_id for user in users):
        raise Conflict("you came in by this provider, and nobody can delete themselves")
    changes: list[Change] = [remove(provider)]
    if (secret := ask.state[PROVIDER_SECRETS].find(provider.id)) is not None:
        changes.append(remove(secret))
    # The members of groups that mappings provide are the provider's users, so without those they are right already.
    mappings = ask.state[GROUP_MAPPINGS].by("provider", provider.id)
    changes += [remove(mapping) for mapping in mappings]
    changes += [remove(grant) for mapping in mappings for grant in ask.state[GRANTS].by("mapping", mapping.id)]
    changes += without_users(ask, users)
    return Plan(
        summary=f"delete identity provider {provider.name}, with {len(users)} users",
        changes=each_once(changes),
        undo="none: its secret and its users' keys are gone",
    )


@identity_providers.special("POST", "/{id}/test", verb="test", least=Role.PLATFORM, answers=Examination)
async def examine(exchange: Exchange, provider: IdentityProvider, wish: ProviderTest) -> Answer:
    """Try a provider step by step, and say what was found. Nothing is changed, here or there."""
    state = exchange.ask.state
    if provider.kind is ProviderKind.OIDC:
        if wish.user:
            raise Invalid("some fields are wrong", fields={"user": "an OpenID provider tells only of who signs in"})
        openid: OpenIdProviders = exchange.services[OpenIdProviders]
        findings, person = list(await openid.examine(provider)), None
    else:
        directory: Directory = exchange.services[Directory]
        found, person = await directory.examine(provider, secret_of(exchange.ask, provider), wish.user)
        findings = list(found)
    if person is not None:
        groups = {provider.group(name) for name in person.groups}
        findings += [
            Finding(about="gives", says=_gives(state, mapping))
            for mapping in state[GROUP_MAPPINGS].by("provider", provider.id)
            if provider.group(mapping.external_group) in groups
        ]
    examination = Examination(good=all(each.good for each in findings), findings=findings)
    return Answer(status=200, body=msgspec.json.encode(examination))


def _gives(state: State, mapping: GroupMapping) -> str:
    if mapping.group_id is not None:
        return f"{mapping.external_group}: group {state[GROUPS].get(mapping.group_id).name}"
    role = state[ROLES].get(mapping.role_id).name if mapping.role_id is not None else mapping.role
    return f"{mapping.external_group}: {role} of project {state[PROJECTS].get(mapping.project_id).name}"


def secret_of(ask: Ask, provider: IdentityProvider) -> str:
    """What the provider knows this cloud by; empty if there is nothing. Raises Conflict if it cannot be opened."""
    kept = ask.state[PROVIDER_SECRETS].find(provider.id)
    return ask.view(Sealer).open(kept.sealed, of=provider.id) if kept is not None else ""


def _said(ask: Ask, wish: _Described) -> dict[str, Any]:
    said = wish.model_dump(exclude_none=True, exclude={"name", "kind", "url", "secret"})
    if wish.users_project_id is not None:
        said["users_project_id"] = ask.see(PROJECTS, wish.users_project_id, "users_project_id").id
    if wish.scopes is not None:
        said["scopes"] = tuple(wish.scopes)
    return said


def _check_subjects(ask: Ask, before: IdentityProvider, after: IdentityProvider) -> None:
    """What somebody is known by is theirs at one issuer, and by one attribute: elsewhere it may be another's."""
    fixed = ("subject_attribute", "url") if before.kind is ProviderKind.OIDC else ("subject_attribute",)
    changed = [name for name in fixed if getattr(before, name) != getattr(after, name)]
    if changed and any(user.subject for user in ask.state[USERS].by("provider", before.id)):
        raise Conflict(
            "its users are known by this: make another provider, or delete its users first",
            fields=dict.fromkeys(changed, "cannot change while there are users"),
        )


def _check_secret(provider: IdentityProvider, *, known: bool) -> None:
    """To bind with a name and an empty password is to bind as nobody (RFC 4513, section 5.1.2)."""
    if provider.bind_dn and not known:
        raise Invalid("some fields are wrong", fields={"secret": "is missing: the password of bind_dn"})


def _sealed(ask: Ask, provider: IdentityProvider, secret: str | None) -> list[Change]:
    if secret is None:
        return []
    before = ask.state[PROVIDER_SECRETS].find(provider.id)
    kept = ProviderSecret(
        id=provider.id,
        created_at=ask.now,
        revision=before.revision if before is not None else 0,
        sealed=ask.view(Sealer).seal(secret, of=provider.id),
    )
    return [put(kept)]


class GroupMappingCreate(Wire):
    provider_id: Annotated[Id, ref("identity-provider")]
    external_group: Annotated[Text, Field(min_length=1)]
    """As the provider calls it: `cn=operators,ou=groups,dc=example,dc=com`; `identity-provider test` shows a user's."""
    group_id: Annotated[Id, ref("group")] | None = None
    """The group that its members are put into,"""
    project_id: Annotated[Id, ref("project")] | None = None
    """or the project in which they have a role."""
    role: Annotated[str, StringConstraints(min_length=1, max_length=64), ref("role")] | None = None
    """With a project: `reader`, `member`, `admin`, or the id of a custom role."""


group_mappings = Noun(
    GROUP_MAPPINGS,
    plural="group-mappings",
    columns=("provider_id", "external_group", "group_id", "project_id", "role", "role_id"),
    about="Group mappings: what being in a group of an identity provider gives here.",
    scope="",
)
group_mappings.list(filters=("provider_id", "group_id", "project_id"), least=Role.PLATFORM)
group_mappings.show(least=Role.PLATFORM)


@group_mappings.post(verb="create", least=Role.PLATFORM)
def create_mapping(ask: Ask, wish: GroupMappingCreate) -> Plan:
    """Give who is in a group of a provider a role in a project, or put them into a group.

    It follows the provider each time that somebody signs in, and beside what was granted by hand. Users who belong to a
    project have it in that project only.
    """
    not_by_a_token_with_a_scope(ask)
    provider = ask.see(IDENTITY_PROVIDERS, wish.provider_id, "provider_id")
    wrong = _wrong(wish)
    if wrong:
        raise Invalid("either a group, or a project and a role in it", fields=wrong)
    role, role_id = _role(ask, wish)
    mapping = GroupMapping(
        id=ask.new_id(),
        created_at=ask.now,
        provider_id=IdentityProviderId(provider.id),
        external_group=wish.external_group,
        group_id=None if wish.group_id is None else GroupId(ask.see(GROUPS, wish.group_id, "group_id").id),
        project_id=ProjectId("" if wish.project_id is None else ask.see(PROJECTS, wish.project_id, "project_id").id),
        role=role,
        role_id=role_id,
    )
    return Plan(
        summary=f"let group {wish.external_group} of {provider.name} give something",
        changes=(put(mapping),),
        answers=mapping,
        undo="delete the mapping",
    )


def _wrong(wish: GroupMappingCreate) -> dict[str, str]:
    if wish.group_id is not None:
        return {name: "not with a group" for name in ("project_id", "role") if getattr(wish, name) is not None}
    return {name: "is missing" for name in ("project_id", "role") if getattr(wish, name) is None}


def _role(ask: Ask, wish: GroupMappingCreate) -> tuple[Role | None, RoleId | None]:
    if wish.role is None:
        return None, None
    if wish.role == Role.PLATFORM:
        raise Conflict("nobody administers the cloud because of a group: `user change --is-platform`")
    if wish.role in set(Role):
        return Role(wish.role), None
    found = ask.see(ROLES, wish.role, "role")
    if found.project_id not in ("", wish.project_id):
        raise Conflict("a role of a project is given in that project only", fields={"role": "of another project"})
    return None, RoleId(found.id)


@group_mappings.delete(verb="delete", least=Role.PLATFORM)
def delete_mapping(ask: Ask, mapping: GroupMapping) -> Plan:
    """Delete a mapping: what anybody had by it they have no longer."""
    return Plan(
        summary=f"let group {mapping.external_group} give nothing",
        changes=without_mapping(ask, mapping),
        undo="create it again; it counts when somebody signs in",
    )
