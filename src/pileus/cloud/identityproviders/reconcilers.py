"""Keeps users what their directories say, also of those who do not sign in: asks again and again."""

import asyncio
from datetime import timedelta

import msgspec
import structlog

from pileus.cloud.identity.model import USERS
from pileus.cloud.identity.sealing import Sealer
from pileus.cloud.identityproviders.admission import followed
from pileus.cloud.identityproviders.model import (
    IDENTITY_PROVIDERS,
    PROVIDER_SECRETS,
    IdentityProvider,
    ProviderKind,
)
from pileus.cloud.identityproviders.port import Directory, Person
from pileus.kernel.clock import Clock
from pileus.kernel.errors import PileusError
from pileus.kernel.ids import ProjectId, UserId
from pileus.operations.caller import Caller
from pileus.operations.plan import Ask
from pileus.state.state import Change, Origin, State, put

log = structlog.stdlib.get_logger()

ORIGIN = Origin(actor="system", operation="identity_provider.follow")
_NOBODY = Caller(user_id=UserId(""), user_name="system", project_id=ProjectId(""), role=None)


class FollowDirectories:
    """Looks users up: whom a directory no longer has, or has disabled, is barred until it is otherwise."""

    every = timedelta(hours=1)

    def __init__(self, state: State, directory: Directory, sealer: Sealer, clock: Clock) -> None:
        self._state = state
        self._directory = directory
        self._sealer = sealer
        self._clock = clock

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(self.every.total_seconds())
            await self.once()

    async def once(self) -> None:
        """Look at every user of every directory that is in use and answers."""
        for provider in self._state[IDENTITY_PROVIDERS].by("kind", ProviderKind.LDAP):
            if not provider.enabled:
                continue
            try:
                await self._follow(provider)
            except PileusError as refused:
                if self._state.broken is not None:
                    raise
                log.warning(
                    "directory not followed", provider=provider.name, reason=refused.detail, internal=refused.internal
                )

    async def _follow(self, provider: IdentityProvider) -> None:
        kept = self._state[PROVIDER_SECRETS].find(provider.id)
        secret = self._sealer.open(kept.sealed, of=provider.id) if kept is not None else ""
        for id in tuple(self._state[USERS].ids_by("provider", provider.id)):
            user = self._state[USERS].find(id)
            if user is None or not user.subject:
                continue
            person = await self._directory.find(provider, secret, user.subject)
            if self._state[IDENTITY_PROVIDERS].find(provider.id) is not provider:
                return  # it was changed, or is gone: what it was asked for may be true no longer
            if changes := self._changes(provider, id, person):
                await self._state.commit(changes, ORIGIN)

    def _changes(self, provider: IdentityProvider, id: str, person: Person | None) -> list[Change]:
        user = self._state[USERS].find(id)
        if user is None:
            return []
        if person is None:
            if user.barred:
                return []
            log.info("directory knows a user no longer", provider=provider.name, user=id)
            return [put(msgspec.structs.replace(user, barred=True))]
        ask = Ask(state=self._state, caller=_NOBODY, now=self._clock.now(), views={})
        return followed(ask, provider, user, person)
