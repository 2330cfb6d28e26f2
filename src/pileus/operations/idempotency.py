"""Idempotency keys: a request that is sent again, because its answer got lost, is not done again.

The answer is kept with the change itself, in one transaction. Header `Idempotency-Key`, as in the IETF's
draft-ietf-httpapi-idempotency-key-header.
"""

from hashlib import sha256

from pileus.kernel.errors import Conflict
from pileus.kernel.ids import ProjectId
from pileus.operations.caller import Caller
from pileus.state.kinds import Kind
from pileus.state.records import Record
from pileus.state.state import State


class KeptAnswer(Record, frozen=True, kw_only=True):
    """The answer to a request that carried an idempotency key."""

    project_id: ProjectId
    fingerprint: str
    status: int
    body: str


KEPT_ANSWERS = Kind("kept_answer", KeptAnswer, keeps_before=False, secret=True)


def key_id(caller: Caller, key: str) -> str:
    """Keys are the caller's own: nobody can guess his way to another's answer."""
    return sha256(f"{caller.user_id}\0{caller.project_id}\0{key}".encode()).hexdigest()


def fingerprint(operation: str, target: str, body: bytes) -> str:
    return sha256(b"\0".join((operation.encode(), target.encode(), body))).hexdigest()


def kept(state: State, id: str, fingerprint: str) -> KeptAnswer | None:
    """The answer that this key has got already. Raises Conflict if it was to another request."""
    found = state[KEPT_ANSWERS].find(id)
    if found is not None and found.fingerprint != fingerprint:
        raise Conflict("this idempotency key was used for another request")
    return found
