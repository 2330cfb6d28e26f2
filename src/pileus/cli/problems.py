"""Errors for people, for programs, and for the shell."""

from collections.abc import Mapping

import msgspec

from pileus.cli.options import option_of
from pileus.cli.terminal import Terminal
from pileus.client.errors import TaskFailed, TaskStuck, problem_of
from pileus.kernel.errors import PileusError

EXIT_CODES: Mapping[int, str] = {
    0: "done",
    1: "an internal error",
    2: "the command or the request is wrong",
    3: "refused: not signed in, not allowed, no quota, no room",
    4: "not found",
    5: "not possible in the present state, or changed by somebody else in the meantime",
    6: "the task failed, and what it had done is undone",
    7: "the task failed, and something of it is left: the controller goes on trying",
    8: "the controller does not answer, or not now",
}

_BY_STATUS = {400: 2, 413: 2, 401: 3, 403: 3, 405: 3, 429: 3, 507: 3, 404: 4, 409: 5, 412: 5, 503: 8}


def exit_code(error: PileusError) -> int:
    """What the shell is told."""
    if isinstance(error, TaskStuck):
        return 7
    if isinstance(error, TaskFailed):
        return 6
    return _BY_STATUS.get(error.status, 1)


def show(error: PileusError, terminal: Terminal, *, as_json: bool, of: str = "") -> None:
    """Say what went wrong, with which of several: in one line, then every wrong field, every reason, the request."""
    problem = problem_of(error)
    if as_json:
        terminal.say(msgspec.json.format(msgspec.json.encode(problem), indent=2).decode())
        return
    # An error that was made here may say more than the answer behind it.
    terminal.say(f"error: {of}: {error.detail}" if of else f"error: {error.detail}")
    for field, wrong in error.fields.items():
        terminal.say(f"  {option_of(field) if field.isidentifier() and field != 'body' else field}: {wrong}")
    for about, why in error.because.items():
        terminal.say(f"  {about}: {why}")
    if isinstance(error, TaskFailed):
        terminal.say(f"  look: pileus task show {error.task.id}")
    elif problem.request:
        terminal.say(f"  request: {problem.request}")
