import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import pytest
import uvloop

from pileus.testing.links import LoopbackCloud


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[LoopbackCloud]:
    cloud = LoopbackCloud(tmp_path)
    async with cloud.server:
        yield cloud
    left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert not left, f"tasks left behind: {left}"


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Both loops: production runs on uvloop, whose TLS is another implementation."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
