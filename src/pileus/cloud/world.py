"""What the steps of workflows reach into: the hosts, by their agents, and the networks."""

from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from pileus.cloud.imageexports.files import ExportFiles
from pileus.cloud.images.files import ImageFiles
from pileus.cloud.images.web import Web
from pileus.kernel.clock import Clock
from pileus.kernel.ids import HostId, ImageId
from pileus.link.messages import Message, Method
from pileus.state.state import State

T = TypeVar("T")


class Hosts(Protocol):
    """The agents. What is asked of one host is asked of its agent; both may be away."""

    async def ask(self, host: HostId, method: Method, body: Message, answer: type[T], *, timeout_s: float) -> T:
        """Ask a host's agent; what it tells of its progress is the progress of the running step.

        Raises:
            Unavailable: it is not connected, or did not answer in `timeout_s` seconds.
            PileusError: what the agent raised.
        """
        ...


class Networks(Protocol):
    """What makes the networks be as the records say."""

    async def settled(self, *, timeout_s: float = 10.0) -> None:
        """Come back when every change committed so far is known to the switches. Raises Unavailable."""
        ...


class ImageUrls(Protocol):
    """Tells hosts where to fetch images, and where to send them."""

    def url(self, image: ImageId, host: HostId) -> str:
        """A path of the API, with what lets this host fetch this image for a while."""
        ...

    def arrival_url(self, image: ImageId, host: HostId) -> str:
        """A path of the API, with what lets this host send this image for a while."""
        ...


@dataclass(frozen=True)
class World:
    """All that a step may use."""

    state: State
    hosts: Hosts
    networks: Networks
    images: ImageUrls
    files: ImageFiles
    exports: ExportFiles
    web: Web
    clock: Clock


Nothing: type[Any] = type(None)
"""The answer of a request that answers nothing."""
