"""What one may do with images: importing this declares all of it, in the order in which it is told to people."""

# ruff: noqa: I001

from pileus.cloud.images.operations.noun import images
from pileus.cloud.images.operations import records
from pileus.cloud.images.operations import data
from pileus.cloud.images.operations import arrival
from pileus.cloud.images.operations import importing
from pileus.cloud.images.operations import building
from pileus.cloud.images.operations import delivery
from pileus.cloud.images.operations import storage
from pileus.cloud.images.operations import copies
from pileus.cloud.images.operations import prefetching

__all__ = [
    "arrival",
    "building",
    "copies",
    "data",
    "delivery",
    "images",
    "importing",
    "prefetching",
    "records",
    "storage",
]
