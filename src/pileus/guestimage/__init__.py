"""The small guest image and the appliance that come with Pileus, built from Debian packages."""

from pileus.guestimage.appliance import build_appliance
from pileus.guestimage.built import BuiltImage
from pileus.guestimage.image import build

__all__ = ["BuiltImage", "build", "build_appliance"]
