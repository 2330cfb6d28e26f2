import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pileus.testing.links import LoopbackCloud


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[LoopbackCloud]:
    cloud = LoopbackCloud(tmp_path)
    async with cloud.server:
        yield cloud
    left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert not left, f"tasks left behind: {left}"
