import pytest

from pileus.agent.hypervisor.libvirt.states import DomainState, Lifecycle, Order, Recalled, Shutoff, judge, recall
from pileus.agent.hypervisor.port import GuestState

RAN = Recalled(running=True)
# virDomainEventStoppedDetailType
STOPPED_SHUTDOWN, STOPPED_CRASHED, STOPPED_FAILED = 0, 2, 5


def off(reason: Shutoff, recalled: Recalled = RAN) -> tuple[GuestState, bool]:
    state, cause = judge(DomainState.SHUTOFF, reason, recalled)
    return state, bool(cause)


@pytest.mark.parametrize("state", DomainState)
@pytest.mark.parametrize("reason", range(16))
def test_every_state_and_reason_has_a_meaning(state: DomainState, reason: int) -> None:
    for recalled in (Recalled(), RAN, Recalled(ordered=Order.STOP), Recalled(ordered=Order.SHUT_DOWN)):
        assert judge(state, reason, recalled)[0] in GuestState


def test_a_guest_on_its_way_down_still_runs() -> None:
    assert judge(DomainState.SHUTDOWN, 0, RAN) == (GuestState.RUNNING, "")


def test_a_killed_process_is_a_crash_with_its_cause() -> None:
    assert off(Shutoff.CRASHED) == (GuestState.CRASHED, True)


def test_a_guest_that_could_not_be_started_has_crashed() -> None:
    assert off(Shutoff.FAILED, Recalled()) == (GuestState.CRASHED, True)


def test_a_guest_that_was_never_started_has_no_cause() -> None:
    assert off(Shutoff.UNKNOWN, Recalled()) == (GuestState.SHUT_DOWN, False)


def test_a_guest_that_shut_itself_down_says_so() -> None:
    assert off(Shutoff.SHUTDOWN) == (GuestState.SHUT_DOWN, True)


def test_an_end_that_we_asked_for_needs_no_cause() -> None:
    assert off(Shutoff.SHUTDOWN, Recalled(ordered=Order.SHUT_DOWN)) == (GuestState.SHUT_DOWN, False)
    assert off(Shutoff.DESTROYED, Recalled(ordered=Order.STOP)) == (GuestState.SHUT_DOWN, False)


def test_a_process_that_dies_as_it_is_stopped_was_stopped() -> None:
    assert off(Shutoff.CRASHED, Recalled(ordered=Order.STOP)) == (GuestState.SHUT_DOWN, False)


def test_a_crash_is_a_crash_also_while_we_wait_for_the_guest_to_shut_down() -> None:
    assert off(Shutoff.CRASHED, Recalled(ordered=Order.SHUT_DOWN)) == (GuestState.CRASHED, True)


def test_a_guest_stopped_behind_our_back_says_so() -> None:
    assert off(Shutoff.DESTROYED) == (GuestState.SHUT_DOWN, True)


def test_a_guest_halted_by_its_disk_says_so() -> None:
    state, cause = judge(DomainState.PAUSED, 5, RAN)
    assert (state, bool(cause)) == (GuestState.PAUSED, True)


def test_the_reason_of_an_end_is_remembered_when_libvirt_has_forgotten_it() -> None:
    shut_down = recall(RAN, Lifecycle.STOPPED, STOPPED_SHUTDOWN)
    assert off(Shutoff.UNKNOWN, shut_down) == off(Shutoff.SHUTDOWN)
    # Of a process that was killed libvirt's event says that it failed, and its state that it crashed.
    killed = recall(RAN, Lifecycle.STOPPED, STOPPED_FAILED)
    assert judge(DomainState.SHUTOFF, Shutoff.UNKNOWN, killed) == judge(DomainState.SHUTOFF, Shutoff.CRASHED, RAN)


def test_a_failed_start_is_not_remembered_as_a_crash() -> None:
    failed = recall(Recalled(), Lifecycle.STOPPED, STOPPED_FAILED)
    assert failed.ended is Shutoff.FAILED


def test_a_guest_that_ran_and_is_off_for_no_known_reason_has_crashed() -> None:
    assert off(Shutoff.UNKNOWN, RAN) == (GuestState.CRASHED, True)


def test_a_start_forgets_all_that_was_before() -> None:
    before = recall(Recalled(running=True, ordered=Order.STOP), Lifecycle.STOPPED, STOPPED_CRASHED)
    assert recall(before, Lifecycle.STARTED, 0) == RAN


def test_other_events_change_nothing_that_is_remembered() -> None:
    before = Recalled(running=True, ordered=Order.SHUT_DOWN)
    assert recall(before, Lifecycle.SUSPENDED, 0) == before
