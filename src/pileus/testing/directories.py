"""A directory in memory, of people with passwords."""

from collections.abc import Sequence

import msgspec

from pileus.cloud.identityproviders.model import IdentityProvider
from pileus.cloud.identityproviders.port import Finding, Person
from pileus.kernel.errors import SignInRefused, Unavailable


class SimulatedDirectory:
    """`Directory` without one: whoever was put into `people`, with their passwords."""

    def __init__(self, secret: str | None = None) -> None:
        """A directory that is searched with this secret, or with any."""
        self.people: dict[str, tuple[Person, str]] = {}
        """By subject."""
        self.secret = secret
        self.away = False
        """Whether it does not answer."""
        self.asked: list[str] = []
        """By the names of which providers."""

    def put(self, person: Person, password: str = "") -> None:
        """Somebody new, or somebody as they are now; without a password they keep theirs."""
        before = self.people.get(person.subject)
        self.people[person.subject] = person, password or (before[1] if before is not None else "")

    def change(self, subject: str, **what: object) -> None:
        person, password = self.people[subject]
        self.people[subject] = msgspec.structs.replace(person, **what), password

    async def authenticate(self, provider: IdentityProvider, secret: str, name: str, password: str) -> Person:
        self._ask(provider, secret)
        found = self._named(name)
        if not password or found is None or self.people[found.subject][1] != password:
            raise SignInRefused(f"{provider.name} refuses {name}", tried=name)
        return found

    async def find(self, provider: IdentityProvider, secret: str, subject: str) -> Person | None:
        self._ask(provider, secret)
        return self.people[subject][0] if subject in self.people else None

    async def examine(
        self, provider: IdentityProvider, secret: str, name: str = ""
    ) -> tuple[Sequence[Finding], Person | None]:
        try:
            self._ask(provider, secret)
        except Unavailable as refused:
            return [Finding(about="bind", says=refused.detail, good=False)], None
        findings = [Finding(about="bind", says="as whom it should be"), Finding(about="people", says="there are some")]
        found = self._named(name) if name else None
        if name:
            findings.append(Finding(about="user", says=repr(found), good=found is not None))
        return findings, found

    def _ask(self, provider: IdentityProvider, secret: str) -> None:
        self.asked.append(provider.name)
        if self.away or self.secret not in (None, secret):
            raise Unavailable("the directory cannot be asked; try again later")

    def _named(self, name: str) -> Person | None:
        return next((person for person, _ in self.people.values() if person.name.lower() == name.lower()), None)
