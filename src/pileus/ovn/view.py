"""The records that the network is made of, with their indexes, and which rows a change of one can concern."""

from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Any, NamedTuple, TypeGuard

from pileus.cloud.floatingips.model import FloatingIp
from pileus.cloud.nat.model import PortForwarding, SnatRule
from pileus.cloud.networks.model import Network, NetworkKind, Port, Router, Subnet
from pileus.cloud.networks.uplinks import Leg, legs
from pileus.cloud.peerings.model import Peering
from pileus.cloud.securitygroups.model import SecurityGroup, SecurityRule
from pileus.kernel.ids import HostId
from pileus.state.records import Record

NetworkRecord = (
    Network | Subnet | Router | Port | SecurityGroup | SecurityRule | FloatingIp | PortForwarding | SnatRule | Peering
)


class Kind(StrEnum):
    """What rows are made for. Those come first that others refer to."""

    NETWORK = "network"
    SUBNET = "subnet"
    ROUTER = "router"
    GROUP = "security_group"
    RULE = "security_rule"
    PORT = "port"
    FLOATING_IP = "floating_ip"
    PORT_FORWARDING = "port_forwarding"
    SNAT_RULE = "snat_rule"
    PEERING = "peering"
    NAME = "name"
    """A host name within a network: several ports may have the same."""


_KINDS: Mapping[type[Record], Kind] = {
    Network: Kind.NETWORK,
    Subnet: Kind.SUBNET,
    Router: Kind.ROUTER,
    SecurityGroup: Kind.GROUP,
    SecurityRule: Kind.RULE,
    Port: Kind.PORT,
    FloatingIp: Kind.FLOATING_IP,
    PortForwarding: Kind.PORT_FORWARDING,
    SnatRule: Kind.SNAT_RULE,
    Peering: Kind.PEERING,
}


class Owner(NamedTuple):
    """What rows are made for: a record, or a host name in the network that has this id."""

    kind: Kind
    id: str
    name: str = ""


class View:
    """The records that the network is made of, with the indexes that projecting them needs. Records are shared."""

    def __init__(self, records: Iterable[NetworkRecord] = (), *, gateways: Iterable[HostId] = ()) -> None:
        self.networks: dict[str, Network] = {}
        self.subnets: dict[str, Subnet] = {}
        self.routers: dict[str, Router] = {}
        self.groups: dict[str, SecurityGroup] = {}
        self.rules: dict[str, SecurityRule] = {}
        self.ports: dict[str, Port] = {}
        self.floating_ips: dict[str, FloatingIp] = {}
        self.port_forwardings: dict[str, PortForwarding] = {}
        self.snat_rules: dict[str, SnatRule] = {}
        self.peerings: dict[str, Peering] = {}
        self.gateways = tuple(gateways)
        """The hosts with a way out: the bridge of the external networks."""
        self._tables: Mapping[Kind, dict[str, Any]] = {  # Any: each holds records of its own kind, which put() keeps to
            Kind.NETWORK: self.networks,
            Kind.SUBNET: self.subnets,
            Kind.ROUTER: self.routers,
            Kind.GROUP: self.groups,
            Kind.RULE: self.rules,
            Kind.PORT: self.ports,
            Kind.FLOATING_IP: self.floating_ips,
            Kind.PORT_FORWARDING: self.port_forwardings,
            Kind.SNAT_RULE: self.snat_rules,
            Kind.PEERING: self.peerings,
        }
        self._index: dict[_IndexKey, set[str]] = {}
        for record in records:
            self.put(record)

    def knows(self, record: Record) -> TypeGuard[NetworkRecord]:
        """Whether the network is made of records like this."""
        return type(record) in _KINDS

    def put(self, record: NetworkRecord) -> None:
        self.remove(record)
        if _is_unmanaged(record):
            return
        self._tables[_KINDS[type(record)]][record.id] = record
        for key in _indexed_by(record):
            self._index.setdefault(key, set()).add(record.id)

    def remove(self, record: NetworkRecord) -> None:
        """Forget the record of this kind and id; what else it says does not matter."""
        before: NetworkRecord | None = self._tables[_KINDS[type(record)]].pop(record.id, None)
        if before is None:
            return
        for key in _indexed_by(before):
            ids = self._index[key]
            ids.discard(record.id)
            if not ids:
                del self._index[key]

    def subnets_in(self, network: str) -> list[Subnet]:
        """The subnets of a network, in the order of their ids."""
        return [self.subnets[id] for id in sorted(self._ids("subnet-network", network))]

    def ports_named(self, network: str, name: str) -> list[Port]:
        """The ports of a network that have this host name, in the order of their ids."""
        return [self.ports[id] for id in sorted(self._ids("port-name", network, name))]

    def sources_of(self, router: str, network: str) -> set[str]:
        """What goes out through a router to this external network by rules of its own, as prefixes."""
        rules = (self.snat_rules[id] for id in self._ids("snat-router", router))
        return {rule.source for rule in rules if rule.network_id == network}

    def legs(self, router: Router) -> list[Leg]:
        """The router's ways out, in its order."""
        return legs(router, self.networks.get, self.subnets_in)

    def owners(self) -> Iterator[Owner]:
        """Whatever rows are made for, those first that others refer to."""
        for kind, table in self._tables.items():
            for id in table:
                yield Owner(kind, id)
        for relation, id, name in self._index:
            if relation == "port-name":
                yield Owner(Kind.NAME, id, name)

    def affected(self, record: NetworkRecord, *, removes: bool = False) -> Iterator[Owner]:
        """The owners whose rows may differ when this record is put or removed; to be asked before it is."""
        before: NetworkRecord | None = self._tables[_KINDS[type(record)]].get(record.id)
        after = None if removes or _is_unmanaged(record) else record
        existence = before is None or after is None
        yield Owner(_KINDS[type(record)], record.id)
        for each in (before, after):
            if each is not None:
                yield from self._depending_on(each, existence=existence)
        if isinstance(before, Subnet) and isinstance(after, Subnet) and before.is_served is not after.is_served:
            yield from self._owners(Kind.PORT, "port-network", after.network_id)

    def affected_by_gateways(self) -> Iterator[Owner]:
        """The owners whose rows may differ when other hosts are gateways."""
        yield from (Owner(Kind.ROUTER, id) for id in self.routers)
        yield from (Owner(Kind.FLOATING_IP, id) for id in self.floating_ips)

    def _depending_on(  # noqa: C901 - one case for each kind
        self, record: NetworkRecord, *, existence: bool
    ) -> Iterator[Owner]:
        match record:
            case Network():
                yield from self._owners(Kind.SUBNET, "subnet-network", record.id)
                yield from self._routers("router-external", record.id)
                for subnet in self._ids("subnet-network", record.id):
                    yield from self._routers("router-subnet", subnet)
                if existence:
                    yield from self._owners(Kind.FLOATING_IP, "floating-network", record.id)
                    for port in self._ids("port-network", record.id):
                        yield Owner(Kind.PORT, port)
                        yield from self._depending_on(self.ports[port], existence=False)
            case Subnet():
                yield Owner(Kind.NETWORK, record.network_id)
                yield from self._routers("router-subnet", record.id)
                yield from self._routers("router-external", record.network_id)
                if existence:
                    yield from self._owners(Kind.PORT, "port-network", record.network_id)
            case Router():
                yield from self._translations(record.id)
                yield from self._owners(Kind.PEERING, "peering-router", record.id)
            case SecurityGroup():
                if existence:
                    yield from self._owners(Kind.RULE, "rule-group", record.id)
                    yield from self._owners(Kind.RULE, "rule-remote", record.id)
                    yield from self._owners(Kind.PORT, "port-group", record.id)
            case Port():
                if record.hostname:
                    yield Owner(Kind.NAME, record.network_id, record.hostname.lower())
                yield from self._owners(Kind.FLOATING_IP, "floating-port", record.id)
            case SnatRule():
                yield Owner(Kind.ROUTER, record.router_id)  # whose own translation it may replace
            case SecurityRule() | FloatingIp() | PortForwarding() | Peering():
                pass

    def _routers(self, relation: str, id: str) -> Iterator[Owner]:
        for router in self._ids(relation, id):
            yield Owner(Kind.ROUTER, router)
            yield from self._translations(router)
            yield from self._owners(Kind.PEERING, "peering-router", router)

    def _translations(self, router: str) -> Iterator[Owner]:
        yield from self._owners(Kind.FLOATING_IP, "floating-router", router)
        yield from self._owners(Kind.PORT_FORWARDING, "forwarding-router", router)
        yield from self._owners(Kind.SNAT_RULE, "snat-router", router)

    def _ids(self, relation: str, id: str, name: str = "") -> set[str]:
        return self._index.get((relation, id, name), set())

    def _owners(self, kind: Kind, relation: str, id: str) -> Iterator[Owner]:
        return (Owner(kind, each) for each in self._ids(relation, id))


_IndexKey = tuple[str, str, str]
"""The relation, the id on its other side, and for `port-name` the name."""


def _is_unmanaged(record: NetworkRecord) -> bool:
    """Whether this is a network that others serve: nothing is made of it, nor of its ports, without it."""
    return isinstance(record, Network) and record.kind is NetworkKind.UNMANAGED


def _indexed_by(record: NetworkRecord) -> Iterator[_IndexKey]:  # noqa: C901 - one case for each kind
    match record:
        case Subnet():
            yield "subnet-network", record.network_id, ""
        case Router():
            for subnet in record.subnet_ids:
                yield "router-subnet", subnet, ""
            for uplink in record.uplinks:
                yield "router-external", uplink.network_id, ""
        case Port():
            yield "port-network", record.network_id, ""
            for group in record.security_group_ids:
                yield "port-group", group, ""
            if record.hostname:
                yield "port-name", record.network_id, record.hostname.lower()
        case SecurityRule():
            yield "rule-group", record.group_id, ""
            if record.remote_group_id is not None:
                yield "rule-remote", record.remote_group_id, ""
        case FloatingIp():
            if record.port_id is not None:
                yield "floating-port", record.port_id, ""
            yield "floating-network", record.network_id, ""
            if record.router_id is not None:
                yield "floating-router", record.router_id, ""
        case PortForwarding():
            yield "forwarding-router", record.router_id, ""
        case SnatRule():
            yield "snat-router", record.router_id, ""
        case Peering():
            for router in record.routers:
                yield "peering-router", router, ""
        case Network() | SecurityGroup():
            pass
