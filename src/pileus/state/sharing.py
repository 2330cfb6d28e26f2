"""Lets records share equal texts: half of what a loaded cloud would hold are copies of the ids of other records."""

from typing import Any, cast

import msgspec


class Shared:
    """The texts of the records that are being loaded, each once."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def share(self, record: msgspec.Struct) -> None:
        """Have a record use the texts of those before it. It is changed in place: nobody else may know it yet."""
        known = self._known
        values: tuple[Any, ...] = msgspec.structs.astuple(record)
        for name, value in zip(record.__struct_fields__, values, strict=True):
            if type(value) is str:
                if (same := known.setdefault(value, value)) is not value:
                    msgspec.structs.force_setattr(record, name, same)
            elif isinstance(value, tuple) and value:
                msgspec.structs.force_setattr(record, name, tuple(map(self._item, cast("tuple[Any, ...]", value))))
            elif isinstance(value, msgspec.Struct):
                self.share(value)

    def _item(self, item: Any) -> Any:  # noqa: ANN401 - of a tuple of whatever
        if type(item) is str:
            return self._known.setdefault(item, item)
        if isinstance(item, msgspec.Struct):
            self.share(item)
        return item
