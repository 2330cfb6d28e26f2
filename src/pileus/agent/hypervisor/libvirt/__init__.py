"""Guests on QEMU, by libvirt: `driver` is the port, `domain` what a guest looks like, `binding` finds the library."""
