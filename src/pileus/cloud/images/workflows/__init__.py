"""The tasks that bring, check, convert and build the data of images."""

from typing import Any

from pileus.cloud.images.workflows.arrival import FinishUpload, ImportImage, finish_upload, import_image
from pileus.cloud.images.workflows.building import BuildImage, build_image
from pileus.cloud.images.workflows.prefetching import PrefetchImage, prefetch_image
from pileus.cloud.world import World
from pileus.workflow.workflow import Workflow

__all__ = [
    "WORKFLOWS",
    "BuildImage",
    "FinishUpload",
    "ImportImage",
    "PrefetchImage",
    "build_image",
    "finish_upload",
    "import_image",
    "prefetch_image",
]

WORKFLOWS: tuple[Workflow[World, Any], ...] = (finish_upload, import_image, build_image, prefetch_image)
