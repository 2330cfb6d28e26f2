"""The way to OpenLDAP's C library: python-ldap, found and typed.

Like libvirt's binding it is compiled against the library that is installed, so distributions ship it (`python3-ldap`).
What is typed here is what Pileus calls, no more.
"""

import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Protocol, cast

from pileus.kernel.errors import Unavailable

_DEBIAN = Path("/usr/lib/python3/dist-packages")
_MODULES = frozenset({"_ldap", "ldap", "ldapurl", "ldif", "pyasn1", "pyasn1_modules"})
"""Only these: the whole folder on sys.path would put the distribution's packages beside ours."""

Entry = tuple[str | None, Mapping[str, Sequence[bytes]]]
"""A distinguished name with its attributes; without a name it is a referral, which is not followed."""


class Connection(Protocol):
    """`ldap.ldapobject.SimpleLDAPObject`: every call blocks."""

    def set_option(self, option: int, invalue: object) -> None: ...
    def start_tls_s(self) -> None: ...
    def simple_bind_s(self, who: str, cred: str) -> object: ...
    def search_ext_s(
        self,
        base: str,
        scope: int,
        filterstr: str,
        attrlist: Sequence[str],
        *,
        timeout: float,
        sizelimit: int,
    ) -> list[Entry]: ...
    def unbind_ext_s(self) -> None: ...


class Library(Protocol):
    """The module `ldap`."""

    LDAPError: type[Exception]
    BUSY: type[Exception]
    CONNECT_ERROR: type[Exception]
    INVALID_CREDENTIALS: type[Exception]
    SERVER_DOWN: type[Exception]
    SIZELIMIT_EXCEEDED: type[Exception]
    TIMEOUT: type[Exception]
    TIMELIMIT_EXCEEDED: type[Exception]
    UNAVAILABLE: type[Exception]
    DEREF_NEVER: int
    OPT_DEREF: int
    OPT_NETWORK_TIMEOUT: int
    OPT_OFF: int
    OPT_PROTOCOL_VERSION: int
    OPT_REFERRALS: int
    OPT_TIMEOUT: int
    OPT_X_TLS_CACERTFILE: int
    OPT_X_TLS_DEMAND: int
    OPT_X_TLS_NEWCTX: int
    OPT_X_TLS_PROTOCOL_MIN: int
    OPT_X_TLS_PROTOCOL_TLS1_2: int
    OPT_X_TLS_REQUIRE_CERT: int
    SCOPE_SUBTREE: int
    VERSION3: int

    def initialize(self, uri: str) -> Connection: ...


@cache
def load(distribution: Path = _DEBIAN) -> Library:
    """The binding.

    Raises:
        Unavailable: there is none for this Python; it says what to install.
    """
    if importlib.util.find_spec("ldap") is not None:
        return cast("Library", importlib.import_module("ldap"))  # an untyped library; Library names what we rely on
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    finder = _Finder(distribution)
    sys.meta_path.append(finder)
    try:
        return cast("Library", importlib.import_module("ldap"))
    except ImportError as missing:
        raise Unavailable(
            f"LDAP cannot be spoken here: install Debian's python3-ldap if Python {version} is Debian's own, else"
            " python-ldap into this environment",
            internal=str(missing),
        ) from missing
    finally:
        sys.meta_path.remove(finder)


class _Finder(MetaPathFinder):
    """Finds python-ldap and what it needs where a distribution puts them."""

    def __init__(self, distribution: Path) -> None:
        self._distribution = distribution

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if path is not None or fullname not in _MODULES:
            return None
        return PathFinder.find_spec(fullname, [str(self._distribution)], target)
