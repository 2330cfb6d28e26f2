from pileus.machine.packages import Package, not_installed, sizes


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
