"""How much of the time of a snapshot, an attachment and a clone is ours: against virsh and qemu-img, in the same run.

Run it by `PYTHONPATH=src:labs python benchmarks/volumes.py`.

A whole cloud by `pileus up` on the machine of the labs (see `labs/cloud_host.py`; needs root), with a guest that runs.
Each thing is done by Pileus, from the request to the end of its task, and in turn by hand, to the same guest or a file
of the same content. Prints medians, and their ratio. What virsh takes to start, some 30 ms, is in its time.
"""

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cloud_host import CloudHost, cloud_host, missing, until
from test_cloud import guest, instance

from pileus.agent.hypervisor.libvirt.domain import domain_name
from pileus.kernel.ids import InstanceId
from pileus.kernel.units import GIB, MIB
from pileus.machine import libvirtd

_TIMES = 7
_DATA_BYTES = 256 * MIB

Deed = Callable[[], object]


class Bench:
    """A cloud with a guest, and both ways to it."""

    def __init__(self, host: CloudHost) -> None:
        self.host = host
        self.instance: str = instance(host, "hello")["id"]
        self.domain = domain_name(InstanceId(self.instance))
        self.by_hand = host.data / "volumes" / "by-hand.raw"

    def virsh(self, *command: str) -> None:
        self.host.run("virsh", "--connect", libvirtd.uri(self.host.layout), "--quiet", *command)

    def done(self, path: str, **wish: object) -> dict[str, Any]:
        """Ask for something, and wait for the end of its task."""
        begun = self.host.post(path, wish)
        task = {"ended_at": None}
        while task["ended_at"] is None:
            # It answers as soon as there is anything new.
            task = self.host.get(f"/v1/tasks/{begun['task_id']}?wait_s=15")
        assert task["state"] == "done", task
        return begun

    def file_of(self, volume: str) -> Path:
        return self.host.data / "volumes" / "volumes" / volume / "disk.raw"


def timed(deed: Deed) -> float:
    began = time.monotonic()
    deed()
    return time.monotonic() - began


def tell(what: str, ours: list[float], by_hand: list[float], program: str) -> None:
    us, them = statistics.median(ours), statistics.median(by_hand)
    print(
        f"{what:24} {us * 1e3:7.0f} ms   {program} {them * 1e3:7.0f} ms   ratio {us / them:5.2f}"
        f"   ours {max(us - them, 0) / us:4.0%}",
        flush=True,
    )


def snapshots(bench: Bench) -> None:
    """A snapshot of the running guest, its file systems held still if it can."""
    ours, by_hand = list[float](), list[float]()
    layer = bench.host.data / "volumes" / "by-hand.qcow2"
    for at in range(_TIMES):
        ours.append(timed(lambda at=at: bench.done("/v1/snapshots", name=f"at-{at}", instance_id=bench.instance)))
        bench.host.cli(f"snapshot delete at-{at}")
        to = ("--disk-only", "--atomic", "--no-metadata", "--quiesce", "--diskspec", f"vda,file={layer}")
        by_hand.append(timed(lambda to=to: bench.virsh("snapshot-create-as", bench.domain, *to)))
        bench.virsh("blockcommit", bench.domain, "vda", "--active", "--pivot", "--wait")
        layer.unlink()
    tell("snapshot", ours, by_hand, "virsh   ")


def attachments(bench: Bench) -> None:
    """A volume that is plugged into the running guest, and pulled out of it."""
    volume: str = bench.host.post("/v1/volumes", {"name": "plugged", "size_gib": 1})["id"]
    with bench.by_hand.open("wb") as file:
        file.truncate(GIB)
    into, out, into_by_hand, out_by_hand = list[float](), list[float](), list[float](), list[float]()
    for _ in range(_TIMES):
        into.append(timed(lambda: bench.done(f"/v1/volumes/{volume}/attach", instance_id=bench.instance)))
        out.append(timed(lambda: bench.done(f"/v1/volumes/{volume}/detach")))
        disk = (bench.domain, str(bench.by_hand), "vdp", "--targetbus", "virtio", "--live")
        into_by_hand.append(timed(lambda disk=disk: bench.virsh("attach-disk", *disk)))
        out_by_hand.append(timed(lambda: bench.virsh("detach-disk", bench.domain, "vdp", "--live")))
        until(lambda: not _plugged(bench), "the guest has let go of it")
    tell("attach", into, into_by_hand, "virsh   ")
    tell("detach", out, out_by_hand, "virsh   ")


def _plugged(bench: Bench) -> bool:
    listed = bench.host.run("virsh", "--connect", libvirtd.uri(bench.host.layout), "domblklist", bench.domain)
    return "vdp" in listed.stdout


def clones(bench: Bench) -> None:
    """A copy of a volume with 256 MiB of data in 1 GiB."""
    volume: str = bench.host.post("/v1/volumes", {"name": "full", "size_gib": 1})["id"]
    bench.done(f"/v1/volumes/{volume}/attach", instance_id=bench.instance)
    bench.done(f"/v1/volumes/{volume}/detach")
    source = bench.file_of(volume)
    with source.open("r+b") as file:
        for _ in range(_DATA_BYTES // MIB):
            file.write(os.urandom(MIB))
        os.fsync(file.fileno())
    ours, by_hand = list[float](), list[float]()
    for at in range(_TIMES):
        ours.append(timed(lambda at=at: bench.done(f"/v1/volumes/{volume}/clone", name=f"copy-{at}")))
        bench.host.cli(f"volume delete copy-{at}")
        # As of ours, the copy is to have reached the disk.
        convert = ("qemu-img", "convert", "-t", "writeback", "-O", "raw", str(source), str(bench.by_hand))
        by_hand.append(timed(lambda convert=convert: bench.host.run(*convert)))
    tell("clone of 256 MiB", ours, by_hand, "qemu-img")


def main() -> None:
    if (lack := missing()) is not None:
        raise SystemExit(lack)
    with cloud_host() as host:
        host.up()
        guest(host, "hello").awake(within_s=240)
        bench = Bench(host)
        snapshots(bench)
        attachments(bench)
        clones(bench)


if __name__ == "__main__":
    main()
