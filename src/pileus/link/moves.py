"""What controller and agent say to each other of volumes that move from one storage pool to another."""

from pileus.kernel.ids import VolumeId
from pileus.link.messages import Message


class VolumeMove(Message, frozen=True, kw_only=True, omit_defaults=True):
    """A volume that is to be in another storage pool of its host."""

    id: VolumeId
    generation: int
    """Of the volume when it is there, or stays where it is after all; the host has it at a lower one."""
    pool: str
    """Where it is."""
    to: str
    """Where it is to be."""
    secure: bool = False
    """Whether what is left of it in its old pool is overwritten before its space is given back."""


class VolumeMoveCopy(VolumeMove, frozen=True, kw_only=True, omit_defaults=True):
    """The same, and nothing of it is to be in its place yet: only ready to be."""
