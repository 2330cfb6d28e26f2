"""Labs come first; and what labs of the libvirt driver begin with."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from libvirt_host import LibvirtHost, libvirt_host

from pileus.agent.hypervisor.libvirt import binding
from pileus.agent.hypervisor.libvirt.driver import LibvirtHypervisor


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where tests run in several processes, the many quick ones are left for the end: they keep every process busy."""
    items.sort(key=_place)


def _place(item: pytest.Item) -> int:
    # Labs stay in the order that they were written in: some are stories.
    if item.path.is_relative_to(Path(__file__).parent):
        return 0
    return 1 if item.get_closest_marker("slow") else 2


@pytest.fixture(scope="module")
def host() -> Iterator[LibvirtHost]:
    """A libvirtd of the module's own."""
    with libvirt_host() as host:
        yield host


@pytest.fixture
async def hypervisor(host: LibvirtHost) -> AsyncIterator[LibvirtHypervisor]:
    """A driver of it; the guests that it has made are gone afterwards."""
    hypervisor = LibvirtHypervisor(binding.load(), uri=host.uri, ground=host.ground, accelerator_reason="for the lab")
    yield hypervisor
    for id in await hypervisor.list():
        await hypervisor.undefine(id)
    await hypervisor.close()
