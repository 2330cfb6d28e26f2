"""Records as they are copied to hosts. Pure."""

from hashlib import sha256

import msgspec

from pileus.link.copies import Copy
from pileus.state.records import Record
from pileus.state.state import State

_encode = msgspec.json.Encoder().encode
_MARK = 24
"""Digits of a digest: nobody gains by two records of one mark, so they need only be rare."""


def copy_of(state: State, record: Record) -> Copy:
    """A copy of this record, as it is."""
    kind, body = state.kind_of(record), _encode(record)
    mark = sha256(body).hexdigest()[:_MARK]
    return Copy(
        kind=kind.name, id=record.id, revision=record.revision, version=kind.version, mark=mark, body=msgspec.Raw(body)
    )
