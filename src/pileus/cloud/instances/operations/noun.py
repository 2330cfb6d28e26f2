"""The noun `instance`, which every module here adds operations to."""

from pileus.cloud.instances.model import INSTANCES, InstanceState
from pileus.operations.declare import Noun

instances = Noun(
    INSTANCES,
    plural="instances",
    columns=("name", "state", "vcpus", "memory_mib", "addresses", "floating_addresses"),
    about="Instances: virtual machines.",
)
instances.list(
    filters=("name", "state", "host_id", "image_id", "flavor_id", "pool_id", "labels"),
    sorts=("name", "state", "vcpus", "memory_mib"),
    hides=("state", InstanceState.DELETED),
)
instances.show()
