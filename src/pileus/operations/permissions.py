"""What can be permitted: operations as they are declared, by id, and patterns over them (`instance.*`, `*.list`)."""

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from pileus.operations.caller import Role, allows
from pileus.operations.declare import Noun, Operation

PATTERN = r"^(\*|[a-z][a-z_]*)\.(\*|[a-z][a-z_]*)$"
"""A permission: an operation's id, or one whose noun or verb is any (`*`)."""


class Permissions:
    """The permissions that there are. They follow from the declarations alone, and so do what built-in roles have."""

    def __init__(self, nouns: Iterable[Noun[Any]]) -> None:
        self._operations = {
            operation.id: operation for noun in nouns for operation in noun.declared if operation.least is not None
        }
        self._of_role = {role: frozenset(self._for(role)) for role in Role}
        self._matching = lru_cache(4096)(self._match)

    def __iter__(self) -> Iterator[Operation]:
        return iter(self._operations.values())

    def of_role(self, role: Role) -> frozenset[str]:
        """What a built-in role may do."""
        return self._of_role[role]

    def of_patterns(self, patterns: tuple[str, ...]) -> frozenset[str]:
        """What these patterns permit, over the whole cloud."""
        return self._matching(patterns)

    def in_a_project(self, patterns: tuple[str, ...]) -> frozenset[str]:
        """What these patterns permit to whoever has them in a project: nothing that is for the whole cloud's sake."""
        return self._matching(patterns) & self._of_role[Role.ADMIN]

    def wrong(self, patterns: Iterable[str], *, within: Role) -> Mapping[str, str]:
        """Those patterns that permit nothing which this role may do, with why."""
        found: dict[str, str] = {}
        for pattern in patterns:
            matching = self._matching((pattern,))
            if not matching:
                found[pattern] = "there is no such operation"
            elif not matching & self._of_role[within]:
                found[pattern] = "only administrators of the cloud may do this; no role in a project can have it"
        return found

    def _for(self, role: Role) -> Iterable[str]:
        return (id for id, each in self._operations.items() if each.least is not None and allows(role, each.least))

    def _match(self, patterns: tuple[str, ...]) -> frozenset[str]:
        tests = [re.compile(re.escape(pattern).replace(r"\*", "[a-z_]+")) for pattern in patterns]
        return frozenset(id for id in self._operations if any(test.fullmatch(id) for test in tests))
