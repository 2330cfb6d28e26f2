"""What the first instance costs, and how much of a create is ours.

Run it by `PYTHONPATH=src:labs python benchmarks/first_instance.py`.

A whole cloud by `pileus up` on the machine of the labs (see `labs/cloud_host.py`; needs root), with everything cached
that is fetched or built once. Prints seconds and processor time from `up` to the guest's answer by SSH, then the course
of further creates: from the request to the answer, QEMU's process, the task's end, the guest's first words.
"""

import os
import resource
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from cloud_host import CloudHost, cloud_host, missing, until

from pileus.agent.hypervisor.libvirt.domain import domain_name
from pileus.kernel.ids import InstanceId
from pileus.machine import libvirtd

_CREATES = 5
_TICKS = os.sysconf("SC_CLK_TCK")
_KINDS = (
    ("guest (QEMU)", "qemu-system"),
    ("controller", "pileus controller"),
    ("agent", "pileus agent"),
    ("OVS and OVN", "ovs"),
    ("OVS and OVN", "ovn"),
    ("libvirt", "libvirtd"),
    ("libvirt", "virtlogd"),
)


def _busy_s(host: CloudHost) -> Mapping[str, float]:
    """Processor seconds of everything on the machine so far, with those of commands that have ended."""
    found: dict[str, float] = defaultdict(float)
    script = "cd /proc; for each in [0-9]*; do echo $(tr '\\0' ' ' < $each/cmdline); cat $each/stat; done"
    lines = iter(host.run("sh", "-c", script, accept=(0, 1)).stdout.splitlines())
    for command, stat in zip(lines, lines, strict=False):
        fields = stat[stat.rindex(")") + 2 :].split()
        kind = next((name for name, word in _KINDS if word in command), "all else")
        found[kind] += sum(int(each) for each in fields[11:15]) / _TICKS
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    found["`pileus up` and other commands"] = ended.ru_utime + ended.ru_stime
    return found


def _create(host: CloudHost, at: int) -> dict[str, float]:
    """The course of one create: seconds since the request, by what had happened then."""
    course: dict[str, float] = {}
    image, flavor = (
        host.records(plural, f"name={name}")[0]["id"] for plural, name in (("images", "mini"), ("flavors", "tiny"))
    )
    began = time.time()
    begun: dict[str, Any] = host.post("/v1/instances", {"name": f"more-{at}", "image_id": image, "flavor_id": flavor})
    course["answer of the API"] = time.time() - began
    name = domain_name(InstanceId(begun["instance"]["id"]))
    console = host.layout.log / f"instances/{name}.log"

    def note(what: str, holds: Callable[[], object]) -> None:
        until(holds, what, within_s=180)
        course[what] = time.time() - began

    note("QEMU's process", (host.layout.run / f"libvirt/qemu/{name}.pid").exists)
    note("end of the task", lambda: host.get(f"/v1/tasks/{begun['task_id']}")["ended_at"])
    note("guest's first words", lambda: console.exists() and console.stat().st_size)
    note("guest is ready", lambda: b"pileus-guest: ready" in console.read_bytes())
    for step in host.get(f"/v1/tasks/{begun['task_id']}")["steps"]:
        course[f"step {step['name']} alone"] = _between_s(step)
    if at == _CREATES - 1:
        course["libvirt and QEMU alone, by virsh"] = _start_by_virsh(host, name, begun["instance"]["id"])
    host.cli(f"instance purge more-{at}")
    return course


def _start_by_virsh(host: CloudHost, domain: str, instance: str) -> float:
    """What the same start takes without us; with the start of virsh."""
    virsh = ("virsh", "--connect", libvirtd.uri(host.layout))
    host.run(*virsh, "destroy", domain)
    until(lambda: host.get(f"/v1/instances/{instance}")["state"] == "stopped", "the agent has seen it")
    began = time.monotonic()
    host.run(*virsh, "start", domain)
    return time.monotonic() - began


def _between_s(step: Mapping[str, str]) -> float:
    return (datetime.fromisoformat(step["ended_at"]) - datetime.fromisoformat(step["started_at"])).total_seconds()


def main() -> None:
    if (lack := missing()) is not None:
        raise SystemExit(lack)
    with cloud_host() as host:
        before, began = _busy_s(host), time.monotonic()
        host.up()
        passed_s, busy = time.monotonic() - began, _busy_s(host)
        print(f"from `up` to the first guest's answer by SSH: {passed_s:.1f} s")
        for kind, seconds in sorted(busy.items(), key=lambda each: -each[1]):
            print(f"  processor seconds of {kind}: {seconds - before.get(kind, 0):.1f}")
        courses = [_create(host, at) for at in range(_CREATES)]
        print(f"a create, medians of {_CREATES}:")
        for what in courses[-1]:
            print(f"  {what}: {statistics.median(each[what] for each in courses if what in each):.3f} s")


if __name__ == "__main__":
    main()
