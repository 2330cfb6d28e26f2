from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from argon2 import PasswordHasher

from pileus.cloud.identity import passwords
from pileus.testing.cloud import SimulatedCloud, simulated_cloud
from pileus.testing.invariants import dangling
from pileus.testing.memorystore import MemoryStore
from pileus.testing.people import People


@pytest.fixture(scope="session", autouse=True)
def cheap_passwords() -> Iterator[None]:
    """Passwords that are hashed in a moment: the real parameters are made to take a while."""
    real: PasswordHasher = passwords._hasher  # pyright: ignore[reportPrivateUsage]
    assert (real.memory_cost, real.time_cost) == (65_536, 3), "RFC 9106, section 4, the second recommended option"
    cheap = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passwords, "_hasher", cheap)
        nobodys = cheap.hash("nobody's")
        patch.setattr(passwords, "_nobodys", lambda: nobodys)
        yield


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
