"""The small guest image that comes with Pileus, built from Debian packages."""

from pileus.guestimage.built import BuiltImage
from pileus.guestimage.image import build

__all__ = ["BuiltImage", "build"]
