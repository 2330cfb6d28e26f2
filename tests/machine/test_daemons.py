import pytest

from pileus.kernel.errors import Invalid
from pileus.machine.daemons import Daemon, deaths_in_a_row, delay_before_restart_s, merge


def daemon(name: str, *command: str) -> Daemon:
    return Daemon(name=name, command=command or ("true",))


def test_a_daemon_that_died_once_is_started_again_at_once() -> None:
    assert delay_before_restart_s(1) == 0


def test_a_daemon_that_dies_again_and_again_is_started_ever_more_seldom() -> None:
    delays = [delay_before_restart_s(deaths) for deaths in range(1, 30)]
    assert delays == sorted(delays)
    assert delays[-1] == 30


def test_a_steady_life_wipes_out_earlier_deaths() -> None:
    assert deaths_in_a_row(5, lived_s=0.1) == 6
    assert deaths_in_a_row(5, lived_s=60) == 1


def test_known_daemons_stay_in_their_place_and_new_ones_come_last() -> None:
    kept = [daemon("a"), daemon("b")]
    assert merge(kept, [daemon("c"), daemon("a", "false")]) == [daemon("a", "false"), daemon("b"), daemon("c")]


def test_two_daemons_of_one_name_are_refused() -> None:
    with pytest.raises(Invalid):
        merge([], [daemon("a"), daemon("a")])
