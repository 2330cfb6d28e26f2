import pytest

from pileus.cli.screens import harmless


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (b"plain\r\ntext\t1\n", "plain\ntext\t1\n"),
        (b"\x1b[31mred\x1b[0m \x1b]0;title\x07\x1bcend", "red end"),
        (b"\x1b]52;c;cGF5bG9hZA==\x1b\\x", "x"),
        (b"\x9b31m\xc2\x9b31m\x08\x00\x7f", "\ufffd31m31m"),
        (b"\x1b]never ended", ""),
        ("übel".encode(), "übel"),
    ],
)
def test_what_a_guest_said_does_not_steer_a_terminal(said: bytes, shown: str) -> None:
    assert harmless(said) == shown
