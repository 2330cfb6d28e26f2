"""What is checked, in the order in which it is told: what others stand on comes first."""

from collections.abc import Callable, Sequence

from pileus.doctor.checks import certificates, cloud, daemons, drift, machine, network, secrets, storage
from pileus.doctor.facts import Facts
from pileus.doctor.findings import Finding

Check = Callable[[Facts], list[Finding]]

CHECKS: Sequence[Check] = (
    machine.packages,
    machine.binding,
    machine.accelerator,
    machine.devices,
    machine.datapath,
    daemons.installed,
    daemons.supervisor,
    daemons.running,
    daemons.answering,
    cloud.api,
    cloud.own_agent,
    cloud.other_hosts,
    certificates.remaining,
    cloud.clock,
    storage.space,
    storage.inodes,
    storage.promises,
    storage.database,
    storage.backup,
    storage.event_log,
    secrets.permissions,
    secrets.first_password,
    network.forwarding,
    network.external,
    network.lines,
    network.firewall,
    network.guards,
    network.chassis,
    network.ports,
    cloud.tasks,
    drift.guests,
    drift.processes,
    drift.devices,
    drift.pools,
    drift.volumes,
    drift.logical_ports,
    machine.unseen,
)


def judged(facts: Facts) -> list[Finding]:
    """What all checks find."""
    return [finding for check in CHECKS for finding in check(facts)]
