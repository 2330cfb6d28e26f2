"""What a flavor is: a size of instances. No I/O."""

from pileus.state.kinds import Kind
from pileus.state.records import Record


class Flavor(Record, frozen=True, kw_only=True):
    """A size that instances are made in. Instances keep their size when a flavor goes."""

    name: str
    vcpus: int
    memory_mib: int
    disk_gib: int
    description: str = ""


FLAVORS = Kind("flavor", Flavor, unique={"name": lambda flavor: flavor.name})
