"""Asks directories: finds somebody by a search, and has the directory check the password by binding as them.

- An empty password is never sent: to bind with one succeeds without proving anything (RFC 4513, section 5.1.2).
- Whether there is such a person or not, a stranger waits for one search and one bind.
- Referrals are not followed, aliases not resolved: the password goes to the directory that was named, nowhere else.
- The library blocks, so it is called in threads of our own, few of them; each call, and all of them together, end.
"""

import asyncio
import secrets
import socket
import ssl
import tempfile
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final, TypeVar
from urllib.parse import urlsplit

from pileus.cloud.identityproviders.model import IdentityProvider
from pileus.cloud.identityproviders.port import Finding, Person
from pileus.federation.ldap.binding import Connection, Entry, Library, load
from pileus.federation.ldap.words import by_member, by_name, by_subject, person, wanted
from pileus.kernel.errors import SignInRefused, Unavailable

T = TypeVar("T")

_AT_ONCE: Final = 4
_WAITING: Final = 64
_ANSWER_S: Final = 5.0
_ALL_S: Final = 20.0
_LDAPS: Final = 636
_MOST_GROUPS: Final = 1000
_MACHINES_OWN: Final = "/etc/ssl/certs/ca-certificates.crt"
"""The authorities that a Debian machine trusts."""


class LdapDirectory:
    """`Directory` over LDAP."""

    def __init__(self, load: Callable[[], Library] = load) -> None:
        """Ask by python-ldap; it is looked for when somebody signs in, for a cloud may do without."""
        self._load = load
        self._threads = ThreadPoolExecutor(_AT_ONCE, "ldap")
        self._under_way = 0

    async def authenticate(self, provider: IdentityProvider, secret: str, name: str, password: str) -> Person:
        if not password:
            raise SignInRefused("the password is empty", tried=name)
        return await self._aside(lambda: _Asking(self._load(), provider, secret).authenticated(name, password))

    async def find(self, provider: IdentityProvider, secret: str, subject: str) -> Person | None:
        return await self._aside(lambda: _Asking(self._load(), provider, secret).found(subject))

    async def examine(
        self, provider: IdentityProvider, secret: str, name: str = ""
    ) -> tuple[Sequence[Finding], Person | None]:
        return await self._aside(lambda: _examined(self._load, provider, secret, name))

    async def _aside(self, ask: Callable[[], T]) -> T:
        if self._under_way >= _AT_ONCE + _WAITING:
            raise Unavailable("too many are waiting for the directory; try again later")
        self._under_way += 1
        try:
            async with asyncio.timeout(_ALL_S):
                return await asyncio.get_running_loop().run_in_executor(self._threads, ask)
        except TimeoutError:
            raise Unavailable("the directory does not answer in time") from None
        finally:
            self._under_way -= 1


class _Asking:
    """One directory, asked by one thread."""

    def __init__(self, library: Library, provider: IdentityProvider, secret: str) -> None:
        self._library = library
        self._provider = provider
        self._secret = secret

    def authenticated(self, name: str, password: str) -> Person:
        with self._connected() as connection:
            self._introduce(connection)
            entries = self._people(connection, by_name(self._provider, name))
            if len(entries) != 1:
                # As long as it takes with somebody who is there.
                self._is_let_in(connection, f"cn={secrets.token_hex(8)},{self._provider.base_dn}", password)
                raise SignInRefused(f"{self._provider.name} knows nobody of this name, or several", tried=name)
            if refused := self._is_let_in(connection, entries[0][0] or "", password):
                raise SignInRefused(f"{self._provider.name} refuses {entries[0][0]}: {refused}", tried=name)
            # Who signs in need not be allowed to see their own groups.
            self._introduce(connection)
            someone = self._person(connection, entries[0])
        if someone is None:
            lacking = f"{self._provider.subject_attribute} or {self._provider.name_attribute}"
            raise SignInRefused(f"{entries[0][0]} has no {lacking} that can be read, or several", tried=name)
        return someone

    def _is_let_in(self, connection: Connection, dn: str, password: str) -> str:
        """Bind as somebody, and say why the directory refuses; empty if it does not."""
        try:
            connection.simple_bind_s(dn, password)
        except self._unavailable:
            raise
        except self._library.LDAPError as refused:
            return said(refused)
        return ""

    def found(self, subject: str) -> Person | None:
        with self._connected() as connection:
            self._introduce(connection)
            return self._one(connection, by_subject(self._provider, subject))

    def named(self, connection: Connection, name: str) -> Person | None:
        """Who is called this; None if nobody is, or several are."""
        return self._one(connection, by_name(self._provider, name))

    def are_there(self, connection: Connection) -> bool:
        """Whether anybody is found where people should be."""
        try:
            return bool(self._search(connection, self._provider.base_dn, self._provider.user_filter, ["1.1"], most=1))
        except self._library.SIZELIMIT_EXCEEDED:
            return True

    def _one(self, connection: Connection, filter: str) -> Person | None:
        entries = self._people(connection, filter)
        return self._person(connection, entries[0]) if len(entries) == 1 else None

    def _people(self, connection: Connection, filter: str) -> list[Entry]:
        """Who matches; nobody, if there are so many that it does not matter any more."""
        try:
            return self._search(connection, self._provider.base_dn, filter, wanted(self._provider), most=2)
        except self._library.SIZELIMIT_EXCEEDED:
            return []

    def _person(self, connection: Connection, entry: Entry) -> Person | None:
        dn, attributes = entry
        groups: list[str] = []
        if self._provider.group_base_dn and dn is not None:
            filter = by_member(self._provider, dn)
            # More than are given out is an error: half the truth would take roles away.
            entries = self._search(connection, self._provider.group_base_dn, filter, ["1.1"], most=_MOST_GROUPS)
            groups = [name for name, _ in entries if name is not None]
        return person(self._provider, attributes, groups)

    def _search(
        self, connection: Connection, base: str, filter: str, attributes: Sequence[str], *, most: int
    ) -> list[Entry]:
        entries = connection.search_ext_s(
            base, self._library.SCOPE_SUBTREE, filter, attributes, timeout=_ANSWER_S, sizelimit=most
        )
        # Those without a name are referrals; and to bind without one succeeds for everybody.
        return [entry for entry in entries if entry[0]]

    def _introduce(self, connection: Connection) -> None:
        try:
            connection.simple_bind_s(self._provider.bind_dn, self._secret if self._provider.bind_dn else "")
        except self._library.INVALID_CREDENTIALS as refused:
            raise Unavailable(
                f"identity provider {self._provider.name} does not let this cloud search it",
                internal=f"{self._provider.bind_dn}: {said(refused)}",
            ) from None

    @contextmanager
    def connected(self) -> Generator[Connection]:
        """A connection, encrypted unless it stays on this machine; nobody has introduced themselves yet."""
        library, provider = self._library, self._provider
        connection = library.initialize(provider.url)
        options = {
            library.OPT_PROTOCOL_VERSION: library.VERSION3,
            library.OPT_REFERRALS: library.OPT_OFF,
            library.OPT_DEREF: library.DEREF_NEVER,
            library.OPT_NETWORK_TIMEOUT: _ANSWER_S,
            library.OPT_TIMEOUT: _ANSWER_S,
        }
        for option, value in options.items():
            connection.set_option(option, value)
        with tempfile.NamedTemporaryFile("w", suffix=".pem") as trusted:
            if provider.start_tls or provider.url.startswith("ldaps:"):
                trusted.write(provider.authority)
                trusted.flush()
                tls = {
                    library.OPT_X_TLS_REQUIRE_CERT: library.OPT_X_TLS_DEMAND,
                    library.OPT_X_TLS_PROTOCOL_MIN: library.OPT_X_TLS_PROTOCOL_TLS1_2,
                    library.OPT_X_TLS_CACERTFILE: trusted.name if provider.authority else _MACHINES_OWN,
                    library.OPT_X_TLS_NEWCTX: 0,  # last: it takes the others up
                }
                for option, value in tls.items():
                    connection.set_option(option, value)
            try:
                if provider.start_tls:
                    connection.start_tls_s()
                yield connection
            finally:
                connection.unbind_ext_s()

    @contextmanager
    def _connected(self) -> Generator[Connection]:
        """The same, with the library's errors told as ours."""
        try:
            with self.connected() as connection:
                yield connection
        except self._library.LDAPError as failed:
            raise Unavailable(
                f"identity provider {self._provider.name} cannot be asked; try again later",
                internal=said(failed),
            ) from failed

    @property
    def _unavailable(self) -> tuple[type[Exception], ...]:
        library = self._library
        return (
            library.BUSY,
            library.CONNECT_ERROR,
            library.SERVER_DOWN,
            library.TIMEOUT,
            library.TIMELIMIT_EXCEEDED,
            library.UNAVAILABLE,
        )


def _examined(
    load: Callable[[], Library], provider: IdentityProvider, secret: str, name: str
) -> tuple[Sequence[Finding], Person | None]:
    findings: list[Finding] = []

    def tell(about: str, says: str, *, good: bool = True) -> None:
        findings.append(Finding(about=about, says=says, good=good))

    someone: Person | None = None
    try:
        library = load()
    except Unavailable as missing:
        return [Finding(about="library", says=missing.detail, good=False)], None
    if wrong := _wrong_with_certificate(provider):
        return [Finding(about="connection", says=wrong, good=False)], None
    asking, about = _Asking(library, provider, secret), "connection"
    try:
        with asking.connected() as connection:
            about = "bind"
            connection.simple_bind_s(provider.bind_dn, secret if provider.bind_dn else "")
            tell("connection", f"{provider.url} answers")
            tell(about, f"as {provider.bind_dn}" if provider.bind_dn else "without a name")
            about, where = "people", f"below {provider.base_dn} that {provider.user_filter} matches"
            found = asking.are_there(connection)
            tell(about, f"there are some {where}" if found else f"there is nobody {where}", good=found)
            if name:
                about = "user"
                someone = asking.named(connection, name)
                tell(about, _told(someone) if someone else f"there is no {name}, or several", good=someone is not None)
                findings += [Finding(about="group", says=group) for group in (someone.groups if someone else ())]
    except library.LDAPError as failed:
        tell(about, said(failed), good=False)
    return findings, someone


def _wrong_with_certificate(provider: IdentityProvider) -> str:
    """Why the directory's certificate is no good, of which the library says nothing; empty if it is, or not needed."""
    parts = urlsplit(provider.url)
    if parts.scheme != "ldaps":
        return ""
    context = ssl.create_default_context(cadata=provider.authority or None)
    try:
        with (
            socket.create_connection((parts.hostname or "", parts.port or _LDAPS), timeout=_ANSWER_S) as connection,
            context.wrap_socket(connection, server_hostname=parts.hostname),
        ):
            return ""
    except ssl.SSLCertVerificationError as wrong:
        return f"the directory's certificate is not trusted: {wrong.verify_message}"
    except OSError as failed:
        return f"{provider.url} does not answer: {failed}"


def _told(someone: Person) -> str:
    state = "" if someone.enabled else ", disabled there"
    return f"{someone.name} ({someone.display_name}, {someone.mail}), subject {someone.subject}{state}"


def said(error: Exception) -> str:
    """What the directory or the library said, in one line."""
    told: object = error.args[0] if error.args else ""
    if not isinstance(told, dict):
        return str(error) or type(error).__name__
    parts = [str(told[key]) for key in ("desc", "info") if told.get(key)]  # pyright: ignore[reportUnknownArgumentType, reportUnknownMemberType] - python-ldap's, untyped
    return "".join(letter for letter in ": ".join(parts) if letter.isprintable())[:500]
