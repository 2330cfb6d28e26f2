"""Kinds of records: what a table needs to know of what it keeps."""

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, Generic, TypeVar

import msgspec

from pileus.kernel.errors import PileusError
from pileus.state.records import Record
from pileus.state.store import StoredRecord

R = TypeVar("R", bound=Record)

Upgrade = Callable[[dict[str, Any]], dict[str, Any]]
"""Turns the JSON of a record of one version into that of the next. Pure."""


class Unreadable(PileusError):
    """A kept record cannot be read: it is of a newer version than this program, or damaged."""

    code, title = "unreadable", "A kept record cannot be read"


class Kind(Generic[R]):
    """One kind of records: its name, its type, how it is found, what of a quota it takes, how old ones are read."""

    def __init__(
        self,
        name: str,
        record: type[R],
        *,
        indexes: Mapping[str, Callable[[R], Hashable | None]] | None = None,
        many: Mapping[str, Callable[[R], Iterable[Hashable]]] | None = None,
        unique: Mapping[str, Callable[[R], Hashable | None]] | None = None,
        counts: Callable[[R], Mapping[str, int]] | None = None,
        upgrades: tuple[Upgrade, ...] = (),
        keeps_before: bool = True,
        secret: bool = False,
    ) -> None:
        """Declare a kind.

        Args:
            name: singular, as the field says it: `instance`.
            record: the type of its records.
            indexes: by name, the key under which a record is found; None is not indexed.
            many: the same for records that are found under several keys.
            unique: by name, a key that no two records may share; None is free.
            counts: what a record takes of its project's quota; None if nothing.
            upgrades: the first turns version 1 into 2, and so on; the kind's version is one more than there are.
            keeps_before: whether events tell what a record was before.
            secret: whether nobody is shown its events.
        """
        self.name = name
        self.record = record
        self.indexes = dict(indexes or {})
        self.many = dict(many or {})
        self.unique = dict(unique or {})
        self.counts = counts
        self.upgrades = upgrades
        self.version = 1 + len(upgrades)
        self.keeps_before = keeps_before
        self.secret = secret
        self._decoder = msgspec.json.Decoder(record)

    def __repr__(self) -> str:
        return f"Kind({self.name!r})"

    def read(self, stored: StoredRecord) -> R:
        """The record as today's type, upgraded if it was kept by an older program.

        Raises:
            Unreadable: it is newer than this program, or not what its version promises.
        """
        try:
            if stored.version == self.version:
                return self._decoder.decode(stored.body)
            if stored.version > self.version:
                raise Unreadable(
                    f"{self.name} {stored.id} was written by a newer Pileus (version {stored.version} of its kind, "
                    f"this one knows {self.version})"
                )
            body = msgspec.json.decode(stored.body, type=dict[str, Any])
            for upgrade in self.upgrades[stored.version - 1 :]:
                body = upgrade(body)
            return msgspec.convert(body, self.record)
        except msgspec.MsgspecError as damaged:
            raise Unreadable(f"{self.name} {stored.id} cannot be read", internal=str(damaged)) from damaged


def project_of(record: Record) -> str:
    """The project that a record belongs to; empty for what belongs to the platform."""
    owner: str = getattr(record, "project_id", "")
    return owner
