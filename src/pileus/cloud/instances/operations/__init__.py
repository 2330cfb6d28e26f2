"""What one may do with instances: importing this declares all of it, in the order in which it is told to people."""

# ruff: noqa: I001

from pileus.cloud.instances.operations.noun import instances
from pileus.cloud.instances.operations import creation
from pileus.cloud.instances.operations import change
from pileus.cloud.instances.operations import deletion
from pileus.cloud.instances.operations import leaving
from pileus.cloud.instances.operations import power
from pileus.cloud.instances.operations import recovery
from pileus.cloud.instances.operations import batch
from pileus.cloud.instances.operations import resize
from pileus.cloud.instances.operations import rebuild
from pileus.cloud.instances.operations import media
from pileus.cloud.instances.operations import limits
from pileus.cloud.instances.operations import console
from pileus.cloud.instances.operations import password

__all__ = [
    "batch",
    "change",
    "console",
    "creation",
    "deletion",
    "instances",
    "leaving",
    "limits",
    "media",
    "password",
    "power",
    "rebuild",
    "recovery",
    "resize",
]
