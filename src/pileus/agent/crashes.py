"""How soon a guest that crashed, or could not be started, is tried again."""

from typing import Final

_DELAYS_S: Final = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0)
_LOOP: Final = 3
"""Crashes in a row from which on it is a loop."""
CALM_S: Final = 300.0
"""Seconds of running after which earlier crashes no longer count."""


class Crashes:
    """The failures in a row of one guest. Times are seconds of a monotonic clock."""

    def __init__(self) -> None:
        self.due: float | None = None
        """When it is to be tried again; None while nothing is wrong."""
        self._in_a_row = 0
        self._tried_at: float | None = None

    def failed(self, now: float) -> float:
        """It crashed or could not be started: how many seconds to wait."""
        if self._tried_at is not None and now - self._tried_at >= CALM_S:
            self._in_a_row = 0
        delay = _DELAYS_S[min(self._in_a_row, len(_DELAYS_S) - 1)]
        self._in_a_row += 1
        self.due = now + delay
        return delay

    def trying(self, now: float) -> None:
        """It is being started."""
        self.due = None
        self._tried_at = now

    def words(self, cause: str, delay_s: float) -> str:
        """What is told of the last failure."""
        again = f"starting it again in {delay_s:g} s" if delay_s else "starting it again"
        if self._in_a_row >= _LOOP:
            return f"crash loop, {self._in_a_row} in a row: {cause}; {again}"
        return f"{cause}; {again}"
