"""How the API's errors become exceptions: those of `pileus.kernel.errors`, by their code."""

import msgspec

from pileus.client.records import Problem, Task
from pileus.kernel.errors import PileusError, error_class

_problem = msgspec.json.Decoder(Problem)


class NoSuchMethod(PileusError):
    """Client and controller are of versions that do not fit."""

    status, code, title = 405, "method-not-allowed", "Not a method of this path"


class TaskFailed(PileusError):
    """A task failed, and all that it had done was undone."""

    code, title = "task-failed", "The task failed and was undone"

    def __init__(self, task: Task) -> None:
        cause = task.cause
        detail = "it was cancelled" if task.cancelled else cause.detail if cause else "it does not say why"
        super().__init__(f"{task.title} failed: {detail}", because=cause.because if cause else None)
        self.task = task


class TaskStuck(TaskFailed):
    """A task failed, and something of it is left until it can be undone. The controller goes on trying."""

    code, title = "task-stuck", "The task failed and something of it is left"

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.detail = f"{task.title} is stuck: {task.stuck_because or self.detail}"


def succeeded(task: Task) -> Task:
    """The task, if it was done. Raises TaskFailed or TaskStuck."""
    if task.state == "done":
        return task
    raise TaskStuck(task) if task.state == "stuck" else TaskFailed(task)


class Refusal(Exception):
    """The problem document behind an error, as that error's cause."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem


def problem_of(error: PileusError) -> Problem:
    """An error as the document that the API sent, or would send if it were the API's."""
    if isinstance(error.__cause__, Refusal):
        return error.__cause__.problem
    return Problem(
        type=f"/problems/{error.code}",
        title=error.title,
        status=error.status,
        detail=error.detail,
        fields=error.fields,
        because=error.because,
    )


def refused(status: int, body: bytes, request: str = "") -> PileusError:
    """The exception for an answer that is an error; `problem_of` gives back what was said."""
    try:
        problem = _problem.decode(body)
    except (msgspec.DecodeError, ValueError):
        problem = Problem()
    if not problem.detail:
        problem = Problem(status=status, detail=f"the answer has status {status}", request=request)
    return error_of(problem, class_of(status))


def error_of(problem: Problem, otherwise: type[PileusError] = PileusError) -> PileusError:
    """The exception for a problem document; of the class `otherwise` if it does not say what it is."""
    error = (error_class(problem.code) if problem.code else otherwise)(
        problem.detail, fields=problem.fields, because=problem.because
    )
    error.__cause__ = Refusal(problem)
    return error


def class_of(status: int) -> type[PileusError]:
    """The error of a status; PileusError itself for one that has none."""
    return next((each for each in PileusError.__subclasses__() if each.status == status), PileusError)
