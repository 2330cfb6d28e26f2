from pathlib import Path

import pytest

from pileus.machine.packages import Package, has_systemd, not_installed, services_stay_off, sizes

without_systemd = pytest.mark.skipif(has_systemd(), reason="with systemd, services are the distribution's business")


def test_a_package_that_was_removed_but_not_purged_is_missing() -> None:
    wanted = (Package("here", ""), Package("removed", ""), Package("unknown", ""))
    assert not_installed(wanted, "here installed\nremoved config-files\n") == list(wanted[1:])


def test_what_apt_says_about_sizes_is_said_on() -> None:
    said = (
        "Reading package lists\nNeed to get 22.5 MB of archives.\n"
        "After this operation, 112 MB of additional disk space will be used.\n"
    )
    assert sizes(said) == (
        "Need to get 22.5 MB of archives; After this operation, 112 MB of additional disk space will be used"
    )


@without_systemd
def test_no_service_starts_while_packages_are_installed_and_nothing_stays_behind(tmp_path: Path) -> None:
    policy = tmp_path / "policy-rc.d"
    with services_stay_off(policy):
        assert policy.stat().st_mode & 0o111
        assert "exit 101" in policy.read_text()
    assert list(tmp_path.iterdir()) == []


@without_systemd
def test_a_policy_of_somebody_elses_is_left_alone(tmp_path: Path) -> None:
    policy = tmp_path / "policy-rc.d"
    policy.write_text("theirs")
    with services_stay_off(policy):
        assert policy.read_text() == "theirs"
    assert policy.read_text() == "theirs"
    assert [each.name for each in tmp_path.iterdir()] == ["policy-rc.d"]


@without_systemd
def test_a_policy_of_ours_from_an_installation_that_was_cut_off_is_removed(tmp_path: Path) -> None:
    policy = tmp_path / "policy-rc.d"
    with services_stay_off(policy):
        cut_off = policy.read_text()
    policy.write_text(cut_off)
    with services_stay_off(policy):
        assert policy.exists()
    assert not policy.exists()
