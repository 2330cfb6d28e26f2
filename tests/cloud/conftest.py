from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pileus.testing.cloud import SimulatedCloud, simulated_cloud
from pileus.testing.memorystore import MemoryStore


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[SimulatedCloud]:
    async with simulated_cloud(tmp_path, store=MemoryStore()) as cloud:
        yield cloud
