"""Limits on what one guest, and all guests together, may ask of a host."""

import asyncio
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager

import msgspec

_GUESTS_REMEMBERED = 4096


class AtOnce:
    """Counts what is under way, for each guest and altogether."""

    def __init__(self, each: int, altogether: int) -> None:
        self._each, self._altogether = each, altogether
        self._counts: Counter[str] = Counter()
        self._count = 0

    @contextmanager
    def one_more(self, guest: str) -> Generator[bool]:
        """Count one more while this lasts; says whether it is within the limits."""
        self._counts[guest] += 1
        self._count += 1
        try:
            yield self._counts[guest] <= self._each and self._count <= self._altogether
        finally:
            self._count -= 1
            self._counts[guest] -= 1
            if not self._counts[guest]:
                del self._counts[guest]


class _Bucket(msgspec.Struct):
    tokens: float
    at: float


class Rate:
    """Lets each guest ask so often in a second, and `burst` times at once (a token bucket)."""

    def __init__(self, per_second: float, burst: float) -> None:
        self._per_second, self._burst = per_second, burst
        self._buckets: dict[str, _Bucket] = {}

    def allows(self, guest: str) -> bool:
        now = asyncio.get_running_loop().time()
        if len(self._buckets) > _GUESTS_REMEMBERED:
            self._buckets.clear()
        bucket = self._buckets.setdefault(guest, _Bucket(tokens=self._burst, at=now))
        bucket.tokens = min(self._burst, bucket.tokens + (now - bucket.at) * self._per_second)
        bucket.at = now
        if bucket.tokens < 1:
            return False
        bucket.tokens -= 1
        return True
