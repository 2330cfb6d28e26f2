"""How long labs wait for what has to come true. It costs nothing when all is well, and a busy machine takes long."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

WITHIN_S = 180.0
"""For whatever is asynchronous, and for a program that is run."""
BOOTS_WITHIN_S = 400.0
"""For a guest to boot, without KVM and beside others."""


def until(ask: Callable[[], T | None], what: str, *, within_s: float = WITHIN_S) -> T:
    """The first true answer; fails saying what did not come true."""
    deadline = time.monotonic() + within_s
    while not (answer := ask()):
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(0.05)
    return answer


def read(file: Path) -> str:
    """What is in a file that others make and take away at any moment; nothing while it is not there."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""
