"""What administrators do with external networks as lines out of the cloud: take one out of use, and put it in again."""

from collections.abc import Iterator

import msgspec

from pileus.cloud.floatingips.model import FLOATING_IPS
from pileus.cloud.networks.model import ROUTERS, Network, NetworkKind
from pileus.cloud.networks.operations.networks import networks
from pileus.cloud.networks.uplinks import legs_of, preferred
from pileus.kernel.errors import Conflict
from pileus.operations.caller import Role
from pileus.operations.plan import Ask, Plan, Reason
from pileus.state.state import put


@networks.post("/{id}/disable", least=Role.PLATFORM)
def disable(ask: Ask, network: Network) -> Plan:
    """Have no router send out by an external network: what did goes by the router's next one that is in service.

    Nothing watches lines: one that failed is taken out of service by this, and put in again by `enable`.
    """
    _must_be_external(network)
    changed = msgspec.structs.replace(network, in_service=False)
    return Plan(
        summary=f"take external network {network.name} out of service",
        changes=(put(changed),),
        answers=changed,
        because=tuple(_without(ask, network)),
        undo="enable it",
    )


@networks.post("/{id}/enable", least=Role.PLATFORM)
def enable(ask: Ask, network: Network) -> Plan:
    """Have routers send out by an external network again."""
    del ask
    _must_be_external(network)
    changed = msgspec.structs.replace(network, in_service=True)
    return Plan(
        summary=f"put external network {network.name} in service",
        changes=(put(changed),),
        answers=changed,
        undo="disable it",
    )


def _must_be_external(network: Network) -> None:
    if network.kind is not NetworkKind.EXTERNAL:
        raise Conflict(f"network {network.name} is no external one: only those lead out")


def _without(ask: Ask, network: Network) -> Iterator[Reason]:
    """What becomes of those who go out by a network when it is out of service."""
    moved = left = 0
    for router in ask.state[ROUTERS].by("external_network", network.id):
        others = [leg for leg in legs_of(ask.state, router) if leg.network.id != network.id]
        ways = [preferred(others, version) for version in (4, 6)]
        moved += any(ways)
        left += not any(ways)
    if moved:
        says = f"{moved} send by their next external network; connections that are translated are cut off"
        yield Reason(about="routers", says=says)
    if left:
        yield Reason(about="routers", says=f"{left} have no way out")
    if floating := ask.state[FLOATING_IPS].count_by("network_id", network.id):
        yield Reason(about="floating IPs", says=f"{floating} are not answered")
