"""`pileus at TIME ...`: any command that reads, of the cloud as it was."""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from pileus.cli.session import Session
from pileus.client.client import Client, Reply
from pileus.client.config import Config
from pileus.client.document import Document
from pileus.kernel.errors import Invalid

_AGO = re.compile(r"-(\d{1,6})([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_TIMES = "a time is such as 2026-01-31T12:00 or 2026-01-31, or so long ago: -30s, -15m, -2h, -3d, -1w"


class PastClient(Client):
    """A client of the cloud as it was: what knows the past is read as of one moment, the rest as it is."""

    def __init__(self, config: Config, document: Document, moment: str, *, patience_s: float) -> None:
        super().__init__(config, patience_s=patience_s)
        self._document = document
        self._moment = moment

    async def get(self, path: str, query: Mapping[str, Any] | None = None) -> Reply:
        """Read something as it was. Raises PileusError."""
        if self._document.knows_the_past(path):
            query = {**(query or {}), "at": self._moment}
        return await super().get(path, query)


def moment(text: str, now: datetime) -> str:
    """The moment that is meant, as the API takes it; without an offset by this machine's clock. Raises Invalid."""
    try:
        if ago := _AGO.fullmatch(text):
            at = now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        else:
            at = datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise Invalid(f"{text!r} is no time: {_TIMES}", fields={"TIME": "not a time"}) from None
    return at.isoformat()


def turn_back(session: Session, arguments: Sequence[str]) -> Sequence[str]:
    """Have a session see the cloud as of the first argument; what is left is the command. Raises Invalid."""
    if not arguments:
        raise Invalid(f"pileus at TIME COMMAND: a command that lists or shows; {_TIMES}")
    session.at = moment(arguments[0], datetime.now(UTC))
    return arguments[1:]


def check_reads(session: Session, arguments: Sequence[str]) -> None:
    """Refuse whatever is not kept as of a moment. Raises Invalid."""
    noun = session.document.nouns.get(arguments[0]) if arguments else None
    operation = noun.operations.get(arguments[1]) if noun is not None and len(arguments) > 1 else None
    if operation is None or not operation.knows_the_past:
        raise Invalid("the past can only be looked at: `pileus at TIME` takes commands that list and show records")
