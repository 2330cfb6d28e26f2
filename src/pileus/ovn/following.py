"""Keeps a Northbound told of what the cloud's records are, once they are on disk."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from pileus.cloud.floatingips.model import FLOATING_IPS
from pileus.cloud.hosts.model import HOSTS
from pileus.cloud.nat.model import PORT_FORWARDINGS, SNAT_RULES
from pileus.cloud.networks.model import NETWORKS, PORTS, ROUTERS, SUBNETS
from pileus.cloud.peerings.model import PEERINGS
from pileus.cloud.securitygroups.model import SECURITY_GROUPS, SECURITY_RULES
from pileus.kernel.ids import HostId
from pileus.ovn.port import Northbound
from pileus.state.kinds import Kind
from pileus.state.state import Change, State, put, remove
from pileus.state.store import Event

# Any: kinds of several records, of which all that is asked here is true of every record.
_KINDS: Mapping[str, Kind[Any]] = {
    kind.name: kind
    for kind in (
        NETWORKS,
        SUBNETS,
        ROUTERS,
        PEERINGS,
        SECURITY_GROUPS,
        SECURITY_RULES,
        PORTS,
        FLOATING_IPS,
        PORT_FORWARDINGS,
        SNAT_RULES,
    )
}

GATEWAY = "gateway"
"""The role of hosts that have a way out."""


def follow(state: State, northbound: Northbound) -> Callable[[], None]:
    """Load everything, then tell of every change; call what is returned to stop."""
    northbound.load((record for kind in _KINDS.values() for record in state[kind]), gateways=_gateways(state))

    def take(events: Sequence[Event]) -> None:
        northbound.changed(list(_changes(state, events)))
        if any(event.kind == HOSTS.name for event in events):
            northbound.gateways_are(_gateways(state))

    return state.listen(take)


def _changes(state: State, events: Iterable[Event]) -> Iterator[Change]:
    for event in events:
        if (kind := _KINDS.get(event.kind)) is None:
            continue
        if not event.after:
            yield remove(msgspec.json.decode(event.before, type=kind.record))
            continue
        now = state[kind].find(event.id)
        if now is None or now.revision != event.revision:
            now = msgspec.json.decode(event.after, type=kind.record)
        yield put(now)  # the state's own, if that is the same: a copy of every port would cost as much again


def _gateways(state: State) -> list[HostId]:
    return sorted(HostId(host.id) for host in state[HOSTS] if GATEWAY in host.roles)
