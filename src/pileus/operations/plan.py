"""What a planner is asked, and what it answers."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

import msgspec

from pileus.kernel.errors import NotFound
from pileus.kernel.ids import new_id
from pileus.operations.caller import Caller
from pileus.state.kinds import Kind
from pileus.state.records import Record
from pileus.state.state import Change, State
from pileus.workflow.workflow import Begin

R = TypeVar("R", bound=Record)
V = TypeVar("V")


class Reason(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One reason of a choice: what it is about, what speaks for or against it."""

    about: str
    says: str
    chosen: bool = False


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What an operation would do. Made without doing anything; applied exactly as it is, or shown (dry run)."""

    summary: str
    """In words: `create instance hello on host-1`."""
    changes: Sequence[Change] = ()
    begin: Begin | None = None
    """The workflow that is to make it so."""
    answers: Record | msgspec.Struct | None = None
    """What the caller gets: the record as it is after the commit, or a document of its own."""
    because: Sequence[Reason] = ()
    undo: str = ""
    """In words, how it is taken back, or that it cannot be."""


class ShownChange(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One record that a plan would create, change or remove."""

    action: str
    kind: str
    id: str
    name: str = ""
    fields: Mapping[str, Any] = {}
    """What would be set; for a change, only what differs."""


class ShownPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What an operation would do, without doing it (`?dry_run=true`)."""

    summary: str
    changes: Sequence[ShownChange]
    because: Sequence[Reason]
    workflow: str | None
    undo: str
    price: str | None = None
    """None: this cloud has no prices yet."""


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What a planner has to go by."""

    state: State
    caller: Caller
    now: datetime
    views: Mapping[type, Any]
    dry_run: bool = False

    def new_id(self) -> str:
        return new_id()

    def view(self, kind: type[V]) -> V:
        """The one view of this type that is kept in step with the records."""
        found: V = self.views[kind]
        return found

    def may_see(self, record: Record) -> bool:
        """Whether a record is of the caller's project, or of nobody, or the caller an administrator of the cloud."""
        return self.caller.is_platform or getattr(record, "project_id", "") in ("", self.caller.project_id)

    def see(self, kind: Kind[R], id: str, field: str = "", *, of: str | None = None) -> R:
        """The record that a wish's `field` names, if the caller may know that it exists.

        Administrators of the cloud see every project; what they make must not join two of them all the same. So `of`
        names the project that what refers to the record is of: only its records will do then, and those of nobody.

        Raises:
            NotFound: it does not exist, or is not for this caller.
        """
        found = self.state[kind].find(id)
        if found is None or not self.may_see(found) or (of is not None and getattr(found, "project_id", of) != of):
            missing = f"there is no {kind.name.replace('_', ' ')} {id}"
            raise NotFound(missing, fields={field: "not found"} if field else None)
        return found
