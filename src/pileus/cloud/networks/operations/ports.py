"""What one may do with ports."""

from pileus.cloud.networks.model import PORTS
from pileus.operations.declare import Noun

ports = Noun(
    PORTS,
    plural="ports",
    columns=("name", "mac", "addresses", "instance_id"),
    about="Ports: connections of instances to networks.",
)
ports.list(filters=("name", "network_id", "instance_id", "host_id"), sorts=("name",))
ports.show()
