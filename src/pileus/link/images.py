"""What controller and agent say to each other of images: where to get them, which are kept, what is made of volumes.

The host packs a volume as it was at a snapshot, and sends what it packed to the controller by HTTPS, with a ticket.
What is packed stays on the host until it is forgotten: whoever dies meanwhile, it is sent on where it stopped.
"""

from datetime import datetime

from pileus.kernel.ids import ImageId, SnapshotId, VolumeId
from pileus.link.messages import Message


class ImageSource(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Where an agent gets an image that it does not have yet."""

    id: ImageId
    sha256: str
    size_bytes: int
    virtual_size_bytes: int
    format: str
    """`raw` or `qcow2`."""
    url: str
    """HTTPS, with a ticket in it; path only, if it is to be had from the controller that sent this."""


class MediumSpec(Message, frozen=True, kw_only=True, omit_defaults=True):
    """An image that is to be ready on a host for the drives of its guests."""

    image: ImageSource
    pool: str = "local"


class ImagePack(Message, frozen=True, kw_only=True, omit_defaults=True):
    """A volume, as it was at a snapshot, that is to be packed as a disk image."""

    image: ImageId
    volume: VolumeId
    snapshot: SnapshotId
    pool: str = "local"


class ImagePacked(Message, frozen=True, kw_only=True, omit_defaults=True):
    """A disk image that was packed, in format qcow2."""

    size_bytes: int
    virtual_size_bytes: int
    sha256: str


class ImageSend(Message, frozen=True, kw_only=True, omit_defaults=True):
    """An image that was packed, which is to be sent to the controller."""

    image: ImageId
    url: str
    """Where to, with a ticket in it: a path of the controller's API."""
    pool: str = "local"


class ImageForget(Message, frozen=True, kw_only=True, omit_defaults=True):
    """An image that was packed, or is being packed or sent, and need not be here any more."""

    image: ImageId
    pool: str = "local"


class ImageCopy(Message, frozen=True, kw_only=True):
    """An image that a host keeps a copy of."""

    image: ImageId
    pool: str
    allocated_bytes: int
    used_at: datetime
    """When it was brought, or a volume was last made from it."""
    in_drives: bool
    """Whether guests may have it in their drives."""


class PackedImage(Message, frozen=True, kw_only=True, omit_defaults=True):
    """An image that is packed on a host, for somebody to send."""

    image: ImageId
    pool: str = "local"


class ImageCopies(Message, frozen=True, kw_only=True):
    """All that a host keeps copies of, and what is packed there."""

    images: tuple[ImageCopy, ...]
    packed: tuple[PackedImage, ...] = ()


class ImageBring(Message, frozen=True, kw_only=True, omit_defaults=True):
    """An image of which a host is to have a copy before anything is made from it."""

    image: ImageSource
    pool: str = "local"


class ImagesDrop(Message, frozen=True, kw_only=True):
    """Images of which a host need not keep, or bring, copies any more."""

    images: tuple[ImageId, ...]
