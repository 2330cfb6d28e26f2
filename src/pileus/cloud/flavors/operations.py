"""What one may do with flavors."""

from typing import Annotated

from pydantic import Field

from pileus.cloud.flavors.model import FLAVORS, Flavor
from pileus.cloud.instances.limiting import InstanceLimits, limits_of
from pileus.cloud.instances.model import Limits
from pileus.operations.caller import Role
from pileus.operations.declare import Noun
from pileus.operations.plan import Ask, Plan
from pileus.operations.wire import Description, Name
from pileus.state.state import put, remove

Vcpus = Annotated[int, Field(ge=1, le=1024)]
MaxVcpus = Annotated[int, Field(ge=1, le=255)]
"""What a guest can have plugged in at the most: more take another interrupt controller."""
MemoryMib = Annotated[int, Field(ge=64, le=32 * 1024 * 1024)]
DiskGib = Annotated[int, Field(ge=1, le=65_536)]


class FlavorCreate(InstanceLimits):
    name: Name
    vcpus: Vcpus
    memory_mib: MemoryMib
    disk_gib: DiskGib
    description: Description = ""


flavors = Noun(
    FLAVORS, plural="flavors", columns=("name", "vcpus", "memory_mib", "disk_gib"), about="Flavors: sizes of instances."
)
flavors.list(filters=("name",), sorts=("name", "vcpus", "memory_mib"))
flavors.show()


@flavors.post(least=Role.PLATFORM)
def create(ask: Ask, wish: FlavorCreate) -> Plan:
    """Create a flavor. What it limits counts for instances that are created or resized by it from then on."""
    limits = limits_of(wish)
    flavor = Flavor(
        id=ask.new_id(),
        created_at=ask.now,
        name=wish.name,
        vcpus=wish.vcpus,
        memory_mib=wish.memory_mib,
        disk_gib=wish.disk_gib,
        description=wish.description,
        limits=limits if limits != Limits() else None,
    )
    return Plan(summary=f"create flavor {wish.name}", changes=(put(flavor),), answers=flavor, undo="delete the flavor")


@flavors.delete(least=Role.PLATFORM)
def delete(ask: Ask, flavor: Flavor) -> Plan:
    """Delete a flavor. Instances keep the size that they have."""
    return Plan(summary=f"delete flavor {flavor.name}", changes=(remove(flavor),), undo="create the flavor again")
