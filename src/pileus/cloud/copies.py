"""Records as they are copied to hosts. Pure."""

from hashlib import blake2b

import msgspec

from pileus.link.copies import Copy
from pileus.state.records import Record
from pileus.state.state import State

_encode = msgspec.json.Encoder().encode


def copy_of(state: State, record: Record) -> Copy:
    """A copy of this record, as it is."""
    kind, body = state.kind_of(record), _encode(record)
    mark = blake2b(body, digest_size=12).hexdigest()
    return Copy(
        kind=kind.name, id=record.id, revision=record.revision, version=kind.version, mark=mark, body=msgspec.Raw(body)
    )
