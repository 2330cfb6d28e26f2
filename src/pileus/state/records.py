"""What every record is."""

from datetime import datetime

import msgspec


class Record(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One thing that the cloud remembers. Immutable: a change is a new record with the next revision.

    Out of the garbage collector's sight (`gc=False`): what is made of plain values has no cycles, and a full collection
    would otherwise walk through the whole cloud. So no record may hold anything that could lead back to it.

    The record is also what the API shows: what callers may not see (a password's hash) is a record of its own.
    """

    id: str
    created_at: datetime
    revision: int = 0
    """How often it was written; 0 before the first commit. A commit expects the revision that it read."""
