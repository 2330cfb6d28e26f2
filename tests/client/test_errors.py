import msgspec
import pytest

from pileus.client.client import CONTROLLER_NAME
from pileus.client.errors import NoSuchMethod, TaskFailed, TaskStuck, class_of, problem_of, refused, succeeded
from pileus.client.records import Cause, Task
from pileus.kernel import errors
from pileus.kernel.clock import FrozenClock
from pileus.link import certificates
from pileus.operations.http import problem


@pytest.mark.parametrize(
    "error",
    [errors.Invalid, errors.QuotaExceeded, errors.NotFound, errors.Stale, errors.TimedOut, errors.NoCapacity],
)
def test_an_error_arrives_as_it_was_raised(error: type[errors.PileusError]) -> None:
    raised = error("why", fields={"name": "too long"}, because={"host-1": "full"})
    arrived = refused(raised.status, msgspec.json.encode(problem(raised, "request-1")))
    assert type(arrived) is error
    assert (arrived.detail, arrived.fields, arrived.because) == ("why", {"name": "too long"}, {"host-1": "full"})
    assert problem_of(arrived).request == "request-1"


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"detail": 7}', b"\xff"])
def test_an_answer_that_is_no_problem_document_is_an_error_by_its_status(body: bytes) -> None:
    arrived = refused(503, body, "request-2")
    assert isinstance(arrived, errors.Unavailable)
    assert "503" in arrived.detail
    assert problem_of(arrived).request == "request-2"
    assert type(refused(418, body)) is errors.PileusError


def test_a_method_that_is_none_is_known() -> None:
    assert class_of(405) is NoSuchMethod


def test_a_task_that_failed_says_why_and_one_that_is_stuck_why_it_is() -> None:
    now = FrozenClock().now()
    task = Task(
        id="1",
        created_at=now,
        workflow="instance.create",
        subject_kind="instance",
        subject_id="2",
        subject_name="hello",
        actor="system",
        request="",
        state="undone",
        steps=(),
        running=None,
        cause=Cause(code="conflict", detail="no luck", because={"host-1": "sulks"}),
        stuck_because="",
        cancelled=False,
        ended_at=now,
    )
    with pytest.raises(TaskFailed, match="hello failed: no luck") as failed:
        succeeded(task)
    assert failed.value.because == {"host-1": "sulks"}
    with pytest.raises(TaskStuck) as stuck:
        succeeded(msgspec.structs.replace(task, state="stuck", stuck_because="the disk is busy"))
    assert "the disk is busy" in stuck.value.detail
    with pytest.raises(TaskFailed, match="cancelled"):
        succeeded(msgspec.structs.replace(task, cancelled=True))


def test_the_controllers_name_is_the_one_in_its_certificates() -> None:
    assert CONTROLLER_NAME == certificates.CONTROLLER_NAME
