"""What changed since the rows were last written, and so the difference that is to be written next."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pileus.kernel.ids import HostId
from pileus.ovn.projection import project
from pileus.ovn.rows import Difference, Fact, difference, facts
from pileus.ovn.view import Kind, Owner, View
from pileus.state.state import Change

_ORDER = {kind: at for at, kind in enumerate(Kind)}


class Part(NamedTuple):
    """What one owner projected when that was last written, and what it projects now."""

    owner: Owner
    written: Sequence[Fact]
    wanted: Sequence[Fact]


def joined(parts: Sequence[Part]) -> Difference:
    """The difference that these make together."""
    return difference(
        facts(fact for part in parts for fact in part.written), facts(fact for part in parts for fact in part.wanted)
    )


class Pending:
    """Takes in changed records, and remembers of each owner concerned what it projected when that was last written.

    So nothing is kept of what did not change, and of a record that changes ten times only the last state is written.
    """

    def __init__(self, view: View) -> None:
        self.view = view
        self._written: dict[Owner, Sequence[Fact]] = {}

    def __bool__(self) -> bool:
        return bool(self._written)

    def take(self, changes: Iterable[Change]) -> None:
        """Change the view by this; changes of other records are nothing to us."""
        for change in changes:
            record = change.record
            if not self.view.knows(record):
                continue
            self._remember(self.view.affected(record, removes=change.removes))
            if change.removes:
                self.view.remove(record)
            else:
                self.view.put(record)

    def gateways_are(self, hosts: Iterable[HostId]) -> None:
        """Change the view by these gateways."""
        gateways = tuple(hosts)
        if gateways != self.view.gateways:
            self._remember(self.view.affected_by_gateways())
            self.view.gateways = gateways

    def owners(self) -> list[Owner]:
        """The owners that something is remembered of, those first that others refer to."""
        return sorted(self._written, key=lambda owner: _ORDER[owner.kind])

    def pop(self) -> list["Part"]:
        """What is to be written, after which nothing is pending."""
        owners = self.owners()
        wanted = [tuple(project(self.view, owner)) for owner in owners]
        # A fact that went from one owner to another, as an address does from name to name, is changed by the new one:
        # parts may be written one after the other, in any order.
        taken_by = {fact.key: at for at, facts_now in enumerate(wanted) for fact in facts_now}
        written: list[list[Fact]] = [[] for _ in owners]
        for at, owner in enumerate(owners):
            for fact in self._written[owner]:
                written[taken_by.get(fact.key, at)].append(fact)
        self._written.clear()
        return [part for part in map(Part, owners, written, wanted) if facts(part.written) != facts(part.wanted)]

    def written_by(self, owner: Owner) -> Sequence[Fact]:
        """What this owner projected when nothing was pending."""
        written = self._written.get(owner)
        return tuple(project(self.view, owner)) if written is None else written

    def clear(self) -> None:
        self._written.clear()

    def _remember(self, owners: Iterable[Owner]) -> None:
        for owner in owners:
            if owner not in self._written:
                self._written[owner] = tuple(project(self.view, owner))
