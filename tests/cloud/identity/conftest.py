from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pileus.kernel.clock import FrozenClock
from pileus.testing.cloud import SimulatedCloud, simulated_cloud
from pileus.testing.directories import SimulatedDirectory
from pileus.testing.invariants import dangling
from pileus.testing.memorystore import MemoryStore


@pytest.fixture
def clock() -> FrozenClock:
    return FrozenClock()


@pytest.fixture
def directory() -> SimulatedDirectory:
    return SimulatedDirectory()


@pytest.fixture
async def cloud(tmp_path: Path, clock: FrozenClock, directory: SimulatedDirectory) -> AsyncIterator[SimulatedCloud]:
    """A cloud without hosts, whose time stands still."""
    store = MemoryStore()
    async with simulated_cloud(tmp_path, store=store, hosts=0, clock=clock, directory=directory) as cloud:
        yield cloud
        assert dangling(cloud.state) == []
