"""Where the records and the engines of this host differ. What is just being made or removed is left out."""

import shlex

from pileus.doctor.facts import Facts, Found, InstanceSeen, Records
from pileus.doctor.findings import Finding, broken, ok, warning


def guests(facts: Facts) -> list[Finding]:
    """Whether libvirt has the instances, as they ought to be, and no others."""
    if facts.records is None or facts.found is None or facts.found.guests is None:
        return []
    records, found = facts.records, facts.found.guests
    differ = [_instance(each, found.get(each.id), facts) for each in _here(records, facts.found)]
    strangers = [
        broken(
            f"libvirt has a guest that no record knows: {id}",
            why="it takes memory, processor and perhaps addresses that are given to another",
            mend=_forget(id, facts, facts.found, runs=runs),
        )
        for id, runs in found.items()
        if id not in records.known
    ]
    return [*(each for each in differ if each is not None), *strangers] or [
        ok("guests", f"libvirt has what the records have: {len(found)}")
    ]


def _instance(instance: InstanceSeen, runs: bool | None, facts: Facts) -> Finding | None:
    stop, start = (facts.commands.cloud(f"instance {verb} {instance.id}") for verb in ("stop", "start"))
    if runs is None:
        return broken(
            f"instance {instance.name} ({instance.id}) is {instance.state}, and libvirt has no such guest",
            why="the agent makes it again unless something is in its way",
            mend=f"{stop}; {start}" if instance.state == "running" else start,
        )
    if instance.state == "running" and not runs:
        return broken(
            f"instance {instance.name} ({instance.id}) ought to run, and does not",
            why="the agent starts it again unless something is in its way",
            mend=f"{stop}; {start}",
        )
    if instance.state == "stopped" and runs:
        return broken(
            f"instance {instance.name} ({instance.id}) ought to be stopped, and runs",
            why="it takes what was promised to others",
            mend=facts.commands.virsh(f"shutdown {instance.id}"),
        )
    return None


def _forget(id: str, facts: Facts, found: Found, *, runs: bool) -> str:
    """End a guest, and have libvirt and the agent forget it; its disks stay."""
    parts: list[str] = []
    if id in found.told:
        pid = facts.supervision.pid("agent") if facts.supervision is not None else None
        parts += [f"rm {shlex.quote(str(facts.commands.data / 'agent/records/guests' / f'{id}.json'))}"]
        parts += [f"kill -9 {pid}"] if pid is not None else []
    parts += [facts.commands.virsh(f"destroy {id}")] if runs else []
    return " && ".join((*parts, facts.commands.virsh(f"undefine {id} --nvram")))


def processes(facts: Facts) -> list[Finding]:
    """Whether every process of QEMU is a guest that libvirt has."""
    if facts.found is None or facts.found.processes is None or facts.found.guests is None:
        return []
    known = facts.found.guests
    return [
        broken(
            f"process {each.pid} of QEMU is the guest {each.guest}, which libvirt says does not run",
            why="it may write to a disk that another process has as well",
            mend=f"kill -9 {each.pid}",
        )
        for each in facts.found.processes
        if each.guest not in facts.found.others and not known.get(each.guest, False)
    ] or [ok("processes of QEMU", f"{len(facts.found.processes)}, all known to libvirt")]


def devices(facts: Facts) -> list[Finding]:
    """Whether the tap devices are those of the ports here."""
    if facts.records is None or facts.found is None or facts.found.devices is None:
        return []
    records, there = facts.records, facts.found.devices
    strangers = [
        warning(
            f"the network device {device} is of the port {port}, which no record knows",
            why="whatever is behind it is connected to a network",
            mend=f"{facts.commands.control('ovs-vsctl', f'--if-exists del-port {device}')}; ip link delete {device}",
        )
        for device, port in there.items()
        if port not in records.known
    ]
    running = {each.id: each for each in _here(records, facts.found) if each.state == "running"}
    lost = [
        broken(
            f"instance {running[port.instance_id].name} has no network device for its port {port.id}",
            why="it has no network; mending it starts the instance anew",
            mend="; ".join(facts.commands.cloud(f"instance {verb} {port.instance_id}") for verb in ("stop", "start")),
        )
        for port in records.ports
        if port.instance_id in running and port.id not in there.values()
    ]
    return [*strangers, *lost] or [ok("network devices", f"{len(there)}, all of ports that are on record")]


def pools(facts: Facts) -> list[Finding]:
    """Whether the storage pools that this host had are to be had."""
    there = () if facts.found is None else facts.found.pools
    away = [
        broken(
            f"the storage pool {each.name} is not to be had on this host: {each.away}",
            why="instances with volumes in it cannot start, and nothing is made there",
            mend=f"mount {shlex.quote(str(each.folder))}",
        )
        for each in there
        if each.away
    ]
    if away or not there:
        return away
    return [ok("storage pools", f"{len(there)}, all to be had")]


def volumes(facts: Facts) -> list[Finding]:
    """Whether the volumes on record are there, and no others."""
    if facts.records is None or facts.found is None or facts.found.volumes is None:
        return []
    records, there = facts.records, facts.found.volumes
    away = {each.name for each in facts.found.pools if each.away}
    strangers = [
        warning(
            f"there is a volume that no record knows: {folder}",
            why="it takes room; if the records were restored from a backup, this may be the only copy: look first",
            mend=f"rm -r {shlex.quote(str(folder))}",
        )
        for id, folder in there.items()
        if id not in records.known
    ]
    lost = [
        broken(
            f"the volume {each.name or each.id} ({each.id}) is not on this host's disk",
            why="its data are lost, unless they are in a backup",
            mend=facts.commands.cloud(
                f"instance delete {each.instance_id}" if each.instance_id else f"volume show {each.id}"
            ),
        )
        for each in records.volumes
        if each.host_id == facts.found.host
        and each.state == "in-use"
        and each.id not in there
        and each.storage_pool not in away
    ]
    return [*strangers, *lost] or [ok("volumes", f"{len(there)}, all on record")]


def logical_ports(facts: Facts) -> list[Finding]:
    """Whether OVN's northbound database has the ports on record, and no others."""
    if facts.records is None or facts.ovn is None or facts.ovn.ports is None:
        return []
    records, there = facts.records, {each.name for each in facts.ovn.ports}
    strangers = [
        warning(
            f"OVN has a port that no record knows: {name}",
            why="it may hold an address that is given to another",
            mend=facts.commands.control("ovn-nbctl", f"lsp-del {shlex.quote(name)}"),
        )
        for name in sorted(there - records.known)
    ]
    pid = facts.supervision.pid("controller") if facts.supervision is not None else None
    lost = [
        broken(
            f"OVN has no port {each.id}",
            why="the controller has not written it: whatever has the port has no network",
            mend=facts.commands.up if pid is None else f"kill {pid} && {facts.commands.up}",
        )
        for each in records.ports
        if each.id not in there
    ]
    return [*strangers, *lost] or [ok("ports in OVN", f"{len(there)}, all on record")]


def _here(records: Records, found: Found) -> list[InstanceSeen]:
    return [each for each in records.instances if each.host_id == found.host]
