"""Plans as people read them."""

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pileus.cli.output import NO_NAMES, text_of
from pileus.cli.session import Session
from pileus.client.document import stem_of
from pileus.client.records import Change, Plan

if TYPE_CHECKING:
    from pileus.cli.names import Names

_SIGNS = {"create": "+", "change": "~", "remove": "-"}
_OWN_BUSINESS = frozenset({"id", "created_at", "revision", "project_id", "name", "generation"})
"""Fields of records that say nothing about what is planned."""


def show(plan: Plan, session: Session, names: Mapping[str, str] = NO_NAMES) -> None:
    """Print what would be done, why so, and how it would be taken back."""
    if session.printer.document(plan):
        return
    terminal = session.terminal
    terminal.out(f"would {plan.summary}")
    if plan.changes:
        terminal.out("\nchanges")
    for change in plan.changes:
        terminal.out(f"  {_SIGNS.get(change.action, '?')} {change.kind.replace('_', ' ')} {change.name or change.id}")
        if fields := _fields(change, names):
            terminal.out(f"      {fields}")
    if plan.because:
        width = max(len(reason.about) for reason in plan.because)
        terminal.out("\nwhy")
        for reason in plan.because:
            terminal.out(f"  {'*' if reason.chosen else ' '} {reason.about:<{width}}  {reason.says}".rstrip())
    terminal.out("")
    if plan.workflow:
        terminal.out(f"task   {plan.workflow}")
    if plan.price:
        terminal.out(f"price  {plan.price}")
    terminal.out(f"undo   {plan.undo or 'none'}")


async def names_in(plan: Plan, names: "Names") -> Mapping[str, str]:
    """The names of what a plan's records refer to; those that it would make are named by it."""
    new = {change.id: change.name for change in plan.changes if change.name}
    found = await asyncio.gather(
        *(names.of(change.kind.replace("_", "-"), [dict(change.fields)], change.fields) for change in plan.changes)
    )
    return {id: name for each in found for id, name in each.items()} | new


def _fields(change: Change, names: Mapping[str, str]) -> str:
    if change.action == "remove":
        return ""
    shown = {name: value for name, value in change.fields.items() if name not in _OWN_BUSINESS}
    return ", ".join(
        f"{stem_of(name).replace('_', ' ')} {text_of(name, value, names)}"
        for name, value in shown.items()
        if value not in (None, "", [], {}, False)
    )
