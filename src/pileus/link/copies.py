"""Copies of the controller's records that hosts keep for it: what a lost database is made again from.

An agent keeps them as they come and reads nothing in them. Beside what it was told of its guests and volumes they are
what is left of a cloud whose controller has lost everything.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

from pileus.link.guests import GuestSpec, Power
from pileus.link.messages import Message
from pileus.link.volumes import VolumeSpec

PAGE_BYTES: Final = 256 * 1024
"""Of one answer, about: a frame takes 1 MiB, and one guest's user data may be 64 KiB."""


class Copy(Message, frozen=True, kw_only=True, omit_defaults=True):
    """A record of the controller's."""

    kind: str
    id: str
    revision: int
    version: int
    """Of the kind, so that it can be upgraded when it is read."""
    mark: str
    """Tells two contents from each other, also if they are of the same revision in two lives of a cloud."""
    body: msgspec.Raw


class CopiesKept(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Which copies an agent has: their marks by id."""

    marks: Mapping[str, str] = {}


class CopiesUpdate(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Copies to keep from now on, and ids to keep no longer."""

    keep: tuple[Copy, ...] = ()
    forget: tuple[str, ...] = ()


class KeptGuest(Message, frozen=True, kw_only=True, omit_defaults=True):
    """A guest as its host was told to have it."""

    spec: GuestSpec
    power: Power
    """What it is to be now, whatever it was told."""


class Recall(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Ask a host for everything that it keeps, page by page."""

    after: str = ""
    """The `next` of the page before."""


class Recalled(Message, frozen=True, kw_only=True, omit_defaults=True):
    """A page of what a host keeps."""

    copies: tuple[Copy, ...] = ()
    guests: tuple[KeptGuest, ...] = ()
    volumes: tuple[VolumeSpec, ...] = ()
    next: str = ""
    """Empty at the end."""
