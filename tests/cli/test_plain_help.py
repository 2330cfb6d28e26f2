"""Help without colours: what goes on below is indented further, and no line is longer than asked for."""

from pathlib import Path

_HELP = (Path(__file__).parents[1] / "golden" / "cli" / "help.txt").read_text().splitlines()
_COLUMNS = 100


def test_no_line_is_longer_than_what_it_is_printed_for() -> None:
    assert [line for line in _HELP if len(line) > _COLUMNS and not line.startswith(("$ ", "Usage: "))] == []


def test_what_goes_on_below_an_entry_is_indented_further_than_the_entry() -> None:
    entries = [at for at, line in enumerate(_HELP) if line.startswith("  -") and ": " in line]
    below = [_HELP[at + 1] for at in entries]
    assert len(below) > 1000
    assert [line for line in below if line and not line.startswith("  ")] == []
