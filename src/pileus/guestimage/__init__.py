"""The small guest image that comes with Pileus, built from Debian packages."""
