import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from pileus.machine.layout import Layout
from pileus.machine.supervised import Supervised


@pytest.fixture
def layout() -> Iterator[Layout]:
    """A data folder with a short path: then its run folder lies in it, and needs no root."""
    data = Path(tempfile.mkdtemp(prefix="pm"))
    layout = Layout.of(data)
    layout.make()
    yield layout
    shutil.rmtree(data)


@pytest.fixture
async def supervised(layout: Layout) -> AsyncIterator[Supervised]:
    supervised = Supervised(layout)
    yield supervised
    await supervised.drop_all()
