"""What stands between sign-in and those who vouch for people.

There are two ports: for those who are asked by name and password, and for those at whom people sign in in a browser.
"""

from collections.abc import Sequence
from typing import Protocol

import msgspec

from pileus.cloud.identityproviders.model import IdentityProvider


class Person(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody, as a provider knows them."""

    subject: str
    """Theirs for good, and nobody else's at this provider."""
    name: str
    """By which they sign in; it may become somebody else's."""
    display_name: str = ""
    mail: str = ""
    groups: tuple[str, ...] = ()
    enabled: bool = True
    """Whether the provider itself lets them in."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was tried with a provider, and what came of it."""

    about: str
    says: str
    good: bool = True


class Directory(Protocol):
    """Providers that are asked by name and password (`ProviderKind.LDAP`).

    `secret` is what the directory is searched with. No call changes anything there.
    """

    async def authenticate(self, provider: IdentityProvider, secret: str, name: str, password: str) -> Person:
        """Who this is.

        Raises:
            SignInRefused: the directory has no such person, or the password is wrong; it says which, for the audit.
            Unavailable: the directory cannot be asked.
        """
        ...

    async def find(self, provider: IdentityProvider, secret: str, subject: str) -> Person | None:
        """Who has this subject; None if nobody has, as far as the search goes.

        Raises:
            Unavailable: the directory cannot be asked.
        """
        ...

    async def examine(
        self, provider: IdentityProvider, secret: str, name: str = ""
    ) -> tuple[Sequence[Finding], Person | None]:
        """What comes of asking, step by step up to the first that fails; and who has this name, if one is given."""
        ...


class SignInRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What one signing in in a browser is known by; each part is new each time, and random."""

    redirect_uri: str
    """Where the browser goes with the provider's answer."""
    state: str
    """Comes back with the answer: it is one to this request."""
    nonce: str
    """Comes back in the token: it was made for this request."""
    verifier: str
    """What must be shown for the answer to be redeemed (RFC 7636)."""


class OpenIdProviders(Protocol):
    """Providers by which people sign in in a browser (`ProviderKind.OIDC`)."""

    async def begin(self, provider: IdentityProvider, request: SignInRequest) -> str:
        """Where a browser is to go. Raises Unavailable if the provider cannot be asked."""
        ...

    async def redeem(
        self, provider: IdentityProvider, secret: str, request: SignInRequest, code: str, issuer: str
    ) -> Person:
        """Who came back with this code, and from whom as far as the answer says (`iss`; RFC 9207).

        Raises:
            SignInRefused: it proves nothing; why is told to the audit.
            Unavailable: the provider cannot be asked.
        """
        ...

    async def examine(self, provider: IdentityProvider) -> Sequence[Finding]:
        """What comes of asking, step by step up to the first that fails."""
        ...
