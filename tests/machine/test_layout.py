from pathlib import Path

from pileus.kernel.files import write_atomically
from pileus.machine.layout import Layout


def test_a_short_data_folder_has_its_sockets_inside() -> None:
    assert Layout.of(Path("/var/lib/pileus")).run == Path("/var/lib/pileus/run")


def test_a_long_data_folder_has_its_sockets_where_their_path_is_short() -> None:
    data = Path("/srv") / ("long" * 20)
    run = Layout.of(data).run
    assert run.parent == Path("/run")
    assert run == Layout.of(data).run
    assert run != Layout.of(data / "other").run


def test_a_run_folder_from_before_the_last_boot_is_emptied(tmp_path: Path) -> None:
    layout = Layout(tmp_path, tmp_path / "run", "tag")
    layout.make()
    (layout.run / "stale").touch()
    layout.make()
    assert (layout.run / "stale").exists()
    (layout.run / "boot").write_text("another boot")
    layout.make()
    assert not (layout.run / "stale").exists()


def test_a_file_written_atomically_leaves_nothing_beside_it(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", b"old")
    write_atomically(tmp_path / "file", b"new", mode=0o600)
    assert (tmp_path / "file").read_bytes() == b"new"
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
