from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pileus.testing.cloud import SimulatedCloud, simulated_cloud
from pileus.testing.invariants import dangling
from pileus.testing.memorystore import MemoryStore
from pileus.testing.people import People


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[SimulatedCloud]:
    """A cloud of three hosts, in which nothing may be left half made."""
    async with simulated_cloud(tmp_path, store=MemoryStore()) as cloud:
        yield cloud
        assert dangling(cloud.state) == []


@pytest.fixture
async def people(cloud: SimulatedCloud) -> AsyncIterator[People]:
    async with People(cloud) as people:
        yield people
