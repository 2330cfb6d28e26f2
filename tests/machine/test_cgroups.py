from pileus.machine.cgroups import hierarchies_of


def test_the_unified_hierarchy_counts_when_there_is_no_other() -> None:
    assert hierarchies_of("0::/user.slice\n") == [""]


def test_beside_hierarchies_of_version_1_the_unified_one_does_not_count() -> None:
    proc = "3:name=systemd:/\n2:cpu,cpuacct:/\n1:memory:/a/b\n0::/\n"
    assert hierarchies_of(proc) == ["none,name=systemd", "cpu,cpuacct", "memory"]
