"""What one may do with networks, subnets, routers and ports."""

from pileus.cloud.networks.operations.fields import Prefix
from pileus.cloud.networks.operations.networks import (
    ExternalNetworkCreate,
    create_external,
    default_network,
    networks,
)
from pileus.cloud.networks.operations.ports import ports
from pileus.cloud.networks.operations.routers import routers
from pileus.cloud.networks.operations.subnets import subnets

__all__ = [
    "ExternalNetworkCreate",
    "Prefix",
    "create_external",
    "default_network",
    "networks",
    "ports",
    "routers",
    "subnets",
]
