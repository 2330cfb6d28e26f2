"""Tables: all records of one kind in memory, with the indexes that queries need. Reading never does I/O."""

from bisect import bisect_left, insort
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

from pileus.kernel.errors import NotFound
from pileus.state.kinds import Kind
from pileus.state.records import Record

R = TypeVar("R", bound=Record)


class Table(Generic[R]):
    """The records of one kind. Only `State` writes here."""

    def __init__(self, kind: Kind[R]) -> None:
        self.kind = kind
        self._records: dict[str, R] = {}
        self._order: list[str] = []
        self._indexes: dict[str, dict[Hashable, list[str]]] = {name: {} for name in (*kind.indexes, *kind.many)}
        self._unique: dict[str, dict[Hashable, str]] = {name: {} for name in kind.unique}

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[R]:
        """All records, oldest first."""
        return map(self._records.__getitem__, self._order)

    def __contains__(self, id: str) -> bool:
        return id in self._records

    def find(self, id: str) -> R | None:
        return self._records.get(id)

    def get(self, id: str) -> R:
        """Raises NotFound."""
        found = self._records.get(id)
        if found is None:
            raise NotFound(f"there is no {self.kind.name} {id}")
        return found

    def by(self, index: str, key: Hashable) -> list[R]:
        """The records under this key of an index, oldest first."""
        return [self._records[id] for id in self._indexes[index].get(key, ())]

    def ids_by(self, index: str, key: Hashable) -> Sequence[str]:
        """Their ids, sorted; a view, not to be kept over a change."""
        return self._indexes[index].get(key, ())

    @property
    def ids(self) -> Sequence[str]:
        """All ids, sorted; a view, not to be kept over a change."""
        return self._order

    def count_by(self, index: str, key: Hashable) -> int:
        return len(self._indexes[index].get(key, ()))

    def one(self, unique: str, key: Hashable) -> R | None:
        """The record that holds this unique key, if there is one."""
        id = self._unique[unique].get(key)
        return None if id is None else self._records[id]

    def holder(self, unique: str, key: Hashable) -> str | None:
        return self._unique[unique].get(key)

    def write(self, id: str, after: R | None) -> R | None:
        """Set or (None) remove a record, keep the indexes, and return what was there."""
        before = self._records.get(id)
        if after is not None:
            self._records[id] = after
            if before is None:
                _insert(self._order, id)
        elif before is not None:
            del self._records[id]
            _remove(self._order, id)
        self._index(id, before, after)
        return before

    def _index(self, id: str, before: R | None, after: R | None) -> None:
        """Keep the indexes; a key that stays the same, as most do, costs nothing but the comparison."""
        kind = self.kind
        for name, key_of in kind.indexes.items():
            old = None if before is None else key_of(before)
            new = None if after is None else key_of(after)
            if old != new:
                self._move(name, id, () if old is None else (old,), () if new is None else (new,))
        for name, keys_of in kind.many.items():
            olds = set[Hashable]() if before is None else set(keys_of(before))
            news = set[Hashable]() if after is None else set(keys_of(after))
            if olds != news:
                self._move(name, id, olds - news, news - olds)
        for name, key_of in kind.unique.items():
            old = None if before is None else key_of(before)
            new = None if after is None else key_of(after)
            if old != new and old is not None and self._unique[name].get(old) == id:
                del self._unique[name][old]
            if new is not None:
                self._unique[name][new] = id

    def _move(self, name: str, id: str, away_from: Iterable[Hashable], to: Iterable[Hashable]) -> None:
        index = self._indexes[name]
        for key in away_from:
            ids = index[key]
            _remove(ids, id)
            if not ids:
                del index[key]
        for key in to:
            if (ids := index.get(key)) is None:
                index[key] = [id]
            else:
                _insert(ids, id)


def _remove(ids: list[str], id: str) -> None:
    del ids[bisect_left(ids, id)]


def _insert(ids: list[str], id: str) -> None:
    # Ids are ordered by time, so that nearly every insertion is at the end.
    if not ids or id > ids[-1]:
        ids.append(id)
    else:
        insort(ids, id)
