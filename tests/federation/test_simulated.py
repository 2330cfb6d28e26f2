"""The simulated directory keeps the promises of a real one."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import pytest

from pileus.cloud.identityproviders.fields import DEFAULTS
from pileus.cloud.identityproviders.model import IdentityProvider, ProviderKind
from pileus.cloud.identityproviders.port import Person
from pileus.testing.contracts.directory import ANN, OPERATORS, SECRET, DirectoryContract
from pileus.testing.directories import SimulatedDirectory


class TestSimulatedDirectory(DirectoryContract):
    @pytest.fixture
    def provider(self) -> IdentityProvider:
        return IdentityProvider(
            id="one",
            created_at=datetime(2026, 1, 1, tzinfo=UTC),
            name="staff",
            kind=ProviderKind.LDAP,
            url="ldaps://directory.example.com",
            base_dn="dc=example,dc=com",
            **DEFAULTS[ProviderKind.LDAP],
        )

    @pytest.fixture
    def directory(self) -> SimulatedDirectory:
        directory = SimulatedDirectory(SECRET)
        ann = Person(
            subject="1", name="ann", display_name="Ann Arbor", mail="ann@example.com", groups=(OPERATORS.upper(),)
        )
        directory.put(ann, ANN)
        directory.put(Person(subject="2", name="bob"), "staple")
        return directory

    @pytest.fixture
    def forget(self, directory: SimulatedDirectory) -> Callable[[], Awaitable[None]]:
        async def forget() -> None:
            del directory.people["2"]

        return forget
