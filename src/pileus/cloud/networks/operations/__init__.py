"""What one may do with networks, subnets, routers and ports."""

from pileus.cloud.networks.operations.fields import Prefix
from pileus.cloud.networks.operations.lines import disable, enable
from pileus.cloud.networks.operations.networks import (
    ExternalNetworkCreate,
    create_external,
    default_network,
    must_administer,
    networks,
)
from pileus.cloud.networks.operations.physical import FlatNetworkCreate, create_flat
from pileus.cloud.networks.operations.ports import ports
from pileus.cloud.networks.operations.reach import reach
from pileus.cloud.networks.operations.routers import RouterCreate, create_router, delete_router, routers
from pileus.cloud.networks.operations.subnets import SubnetCreate, create_subnet, delete_subnet, subnets
from pileus.cloud.networks.operations.traffic import traffic
from pileus.cloud.networks.operations.usage import usage
from pileus.cloud.networks.operations.waysout import uplinks

__all__ = [
    "ExternalNetworkCreate",
    "FlatNetworkCreate",
    "Prefix",
    "RouterCreate",
    "SubnetCreate",
    "create_external",
    "create_flat",
    "create_router",
    "create_subnet",
    "default_network",
    "delete_router",
    "delete_subnet",
    "disable",
    "enable",
    "must_administer",
    "networks",
    "ports",
    "reach",
    "routers",
    "subnets",
    "traffic",
    "uplinks",
    "usage",
]
