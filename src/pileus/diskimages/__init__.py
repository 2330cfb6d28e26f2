"""Disk images from strangers: what their headers say, and programs that read them behind walls.

Both sides need it: the controller, which takes images in, and the agents, which make disks of them.
"""
