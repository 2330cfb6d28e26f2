"""What one may do with volumes."""

from pileus.cloud.volumes.model import VOLUMES
from pileus.operations.declare import Noun

volumes = Noun(
    VOLUMES, plural="volumes", columns=("name", "size_gib", "state", "instance_id"), about="Volumes: block devices."
)
volumes.list(filters=("name", "state", "instance_id", "host_id"), sorts=("name", "size_gib"))
volumes.show()
