"""How much of its quota each project uses: sums kept in step with the records."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pileus.kernel.errors import QuotaExceeded
from pileus.kernel.ids import ProjectId
from pileus.state.kinds import Kind, project_of
from pileus.state.records import Record
from pileus.state.state import Change, State

Limits = Callable[[State, ProjectId], Mapping[str, int]]
"""The limits of a project by what is counted; what is not named is not limited."""


class Usage:
    """A view of the state: what every project uses, by what is counted (`instances`, `vcpus`, `memory_mib`)."""

    def __init__(self, kinds: Iterable[Kind[Any]]) -> None:
        self._counts = {kind.name: kind.counts for kind in kinds if kind.counts is not None}
        self._used: dict[str, dict[str, int]] = {}

    def changed(self, kind: str, before: Record | None, after: Record | None) -> None:
        counts = self._counts.get(kind)
        if counts is None:
            return
        for record, sign in ((before, -1), (after, 1)):
            if record is not None and (taken := counts(record)):
                used = self._used.setdefault(project_of(record), {})
                for what, amount in taken.items():
                    used[what] = used.get(what, 0) + sign * amount

    def of(self, project: ProjectId) -> Mapping[str, int]:
        return self._used.get(project, {})

    def check(self, changes: Iterable[Change], state: State, limits: Limits) -> None:
        """Raises QuotaExceeded if these changes would take more of a project's quota than is left, naming all of it."""
        wanted: dict[str, dict[str, int]] = {}
        for change in changes:
            kind = state.kind_of(change.record)
            counts = kind.counts
            if counts is None:
                continue
            before = state.table(kind).find(change.record.id)
            after = None if change.removes else change.record
            for record, sign in ((before, -1), (after, 1)):
                if record is not None and (taken := counts(record)):
                    more = wanted.setdefault(project_of(record), {})
                    for what, amount in taken.items():
                        more[what] = more.get(what, 0) + sign * amount
        for project, more in wanted.items():
            if any(amount > 0 for amount in more.values()):
                self._check_one(ProjectId(project), more, limits(state, ProjectId(project)))

    def _check_one(self, project: ProjectId, more: Mapping[str, int], limits: Mapping[str, int]) -> None:
        used = self.of(project)
        over = {
            what: f"{used.get(what, 0)} of {limits[what]} used, {amount} more asked for"
            for what, amount in more.items()
            if amount > 0 and what in limits and used.get(what, 0) + amount > limits[what]
        }
        if over:
            what = "; ".join(f"{name}: {says}" for name, says in over.items())
            raise QuotaExceeded(f"the project's quota does not allow it: {what}", because=over)
