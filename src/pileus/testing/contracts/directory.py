"""What every directory promises: whom it vouches for, and whom it does not.

Subclasses bring two fixtures: `directory`, and `provider`, by which it is asked with the secret `searching`. It holds
`ann` with the password `correct horse battery`, the display name `Ann Arbor`, the address `ann@example.com` and a
member of the group OPERATORS; and `bob` with the password `staple`, who is in no group. `forget` takes bob away.
"""

from collections.abc import Awaitable, Callable

import pytest

from pileus.cloud.identityproviders.model import IdentityProvider
from pileus.cloud.identityproviders.port import Directory
from pileus.kernel.errors import SignInRefused, Unavailable

SECRET = "searching"  # noqa: S105 - of a directory of the tests
OPERATORS = "cn=operators,ou=groups,dc=example,dc=com"
ANN = "correct horse battery"


class DirectoryContract:
    """The promises of `Directory`."""

    async def test_the_right_password_tells_who_somebody_is(
        self, directory: Directory, provider: IdentityProvider
    ) -> None:
        ann = await directory.authenticate(provider, SECRET, "ann", ANN)
        assert (ann.name, ann.display_name, ann.mail, ann.enabled) == ("ann", "Ann Arbor", "ann@example.com", True)
        assert [provider.group(name) for name in ann.groups] == [OPERATORS]
        bob = await directory.authenticate(provider, SECRET, "bob", "staple")
        assert bob.groups == ()
        assert bob.subject != ann.subject

    @pytest.mark.parametrize("password", ["wrong", "", " ", "correct horse battery ", "\0", "staple"])
    async def test_no_other_password_does(
        self, directory: Directory, provider: IdentityProvider, password: str
    ) -> None:
        with pytest.raises(SignInRefused):
            await directory.authenticate(provider, SECRET, "ann", password)

    @pytest.mark.parametrize(
        "name",
        ["nobody", "*", "a*", "ann)(uid=*", "*)(uid=*))(|(uid=*", "ann\0", "\\61nn", "", "ann,ou=people", "a" * 255],
    )
    async def test_a_name_is_never_more_than_a_name(
        self, directory: Directory, provider: IdentityProvider, name: str
    ) -> None:
        with pytest.raises(SignInRefused):
            await directory.authenticate(provider, SECRET, name, ANN)

    async def test_somebody_is_the_same_however_the_name_is_typed(
        self, directory: Directory, provider: IdentityProvider
    ) -> None:
        ann = await directory.authenticate(provider, SECRET, "ANN", ANN)
        assert ann == await directory.authenticate(provider, SECRET, "ann", ANN)

    async def test_who_is_gone_is_not_found(
        self, directory: Directory, provider: IdentityProvider, forget: Callable[[], Awaitable[None]]
    ) -> None:
        bob = await directory.authenticate(provider, SECRET, "bob", "staple")
        assert await directory.find(provider, SECRET, bob.subject) == bob
        await forget()
        assert await directory.find(provider, SECRET, bob.subject) is None

    async def test_who_may_not_search_is_told_so_and_nobody_is_taken_for_gone(
        self, directory: Directory, provider: IdentityProvider
    ) -> None:
        ann = await directory.authenticate(provider, SECRET, "ann", ANN)
        with pytest.raises(Unavailable):
            await directory.find(provider, "another", ann.subject)
        with pytest.raises(Unavailable):
            await directory.authenticate(provider, "another", "ann", ANN)

    async def test_examining_says_how_far_one_comes(self, directory: Directory, provider: IdentityProvider) -> None:
        found, ann = await directory.examine(provider, SECRET, "ann")
        assert all(each.good for each in found)
        assert ann is not None
        assert {"bind", "people", "user"} <= {each.about for each in found}
        found, nobody = await directory.examine(provider, "another", "ann")
        assert (found[-1].about, found[-1].good, nobody) == ("bind", False, None)
