"""The small guest image that comes with Pileus, built from Debian packages."""

from pileus.guestimage.image import BuiltImage, build

__all__ = ["BuiltImage", "build"]
