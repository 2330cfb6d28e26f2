"""Lets records share equal values: half of what a loaded cloud would hold are copies of the ids of other records."""

from datetime import datetime
from typing import Any, Final, cast

import msgspec

_NOTHING: Final = dict[Any, Any]()
"""In the place of every empty mapping: what is in a record is never changed."""


class Shared:
    """The texts, times and lists of texts of the records that are being loaded, each once."""

    def __init__(self) -> None:
        self._known: dict[str | datetime, str | datetime] = {}
        self._texts: dict[tuple[type, str, tuple[str, ...]], tuple[str, ...]] = {}
        """By record and field as well: a text equals the member of an enumeration that is written so."""

    def share(self, record: msgspec.Struct) -> None:
        """Have a record use the values of those before it. It is changed in place: nobody else may know it yet."""
        known = self._known
        values: tuple[Any, ...] = msgspec.structs.astuple(record)
        for name, value in zip(record.__struct_fields__, values, strict=True):
            if type(value) is str or type(value) is datetime:
                if (same := known.setdefault(value, value)) is not value:
                    msgspec.structs.force_setattr(record, name, same)
            elif isinstance(value, tuple) and value:
                items = tuple(map(self._item, cast("tuple[Any, ...]", value)))
                if all(isinstance(item, str) for item in items):
                    items = self._texts.setdefault((type(record), name, items), items)
                msgspec.structs.force_setattr(record, name, items)
            elif isinstance(value, dict) and not value:
                msgspec.structs.force_setattr(record, name, _NOTHING)
            elif isinstance(value, msgspec.Struct):
                self.share(value)

    def _item(self, item: Any) -> Any:  # noqa: ANN401 - of a tuple of whatever
        if type(item) is str:
            return self._known.setdefault(item, item)
        if isinstance(item, msgspec.Struct):
            self.share(item)
        return item
