from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pileus.kernel.clock import FrozenClock
from pileus.testing.cloud import SimulatedCloud, simulated_cloud
from pileus.testing.invariants import dangling
from pileus.testing.memorystore import MemoryStore


@pytest.fixture
def clock() -> FrozenClock:
    return FrozenClock()


@pytest.fixture
async def cloud(tmp_path: Path, clock: FrozenClock) -> AsyncIterator[SimulatedCloud]:
    """A cloud without hosts, whose time stands still."""
    async with simulated_cloud(tmp_path, store=MemoryStore(), hosts=0, clock=clock) as cloud:
        yield cloud
        assert dangling(cloud.state) == []
