"""Open vSwitch and OVN as daemons of ours: their databases under the data folder, their sockets in the run folder.

A host has a switch (ovsdb-server, ovs-vswitchd) and OVN's hand on it (ovn-controller). The central part is OVN's
northbound and southbound databases and what translates the one into the other (ovn-northd).
"""

import contextlib
import json
import socket
from collections.abc import Mapping, Sequence
from enum import StrEnum

import msgspec

from pileus.kernel.errors import PileusError, TimedOut
from pileus.kernel.programs import ProgramFailed, run
from pileus.machine.daemons import Daemon, answers, until
from pileus.machine.layout import Layout
from pileus.machine.ovnprefix import OvnPrograms

INTEGRATION_BRIDGE = "br-int"
EXTERNAL_BRIDGE = "br-ex"
TUNNEL_BRIDGE = "br-tun"
EXTERNAL_NETWORK = "external"
"""The name by which OVN knows the network behind the external bridge (`network_name` of a localnet port)."""
NORTHBOUND_PORT = 6641
SOUTHBOUND_PORT = 6642

_NETDEV_LINK = "ovs-netdev"
_KERNEL_DATAPATH = "ovs-system"
_PROBE_INTERVAL_MS = "60000"
_BRIDGES_WITHIN_S = 60.0
_CHASSIS_WITHIN_S = 120.0
# To standard error, which the supervisor keeps; not to files and a syslog of their own choice.
_LOGS = ("-vconsole:info", "-vfile:off", "-vsyslog:off")


class Datapath(StrEnum):
    """Where frames are switched; the values are those of a bridge's `datapath_type`."""

    SYSTEM = "system"
    NETDEV = "netdev"


class Sockets(msgspec.Struct, frozen=True, kw_only=True):
    """Where the databases listen, each as `unix:PATH`."""

    switch: str
    northbound: str
    southbound: str


class SwitchSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a host's switch is told."""

    chassis: str
    """The name of this host in OVN."""
    southbound: str
    """Where ovn-controller finds the southbound database."""
    tunnel_address: str
    """The address of this host to which others send tunnelled frames."""
    datapath: Datapath
    mappings: Mapping[str, str]
    """By the name of a physical network, the bridge that is on it."""


class OpenVSwitch:
    """The switch of one host, and OVN's central part where the host has it."""

    def __init__(self, layout: Layout, programs: OvnPrograms, *, by_units: bool) -> None:
        """Nothing is started yet.

        Args:
            layout: the host's folders.
            programs: which Open vSwitch and OVN.
            by_units: whether the distribution's systemd units run them; then their sockets are the distribution's.
        """
        self.by_units = by_units
        self._layout = layout
        self._programs = programs
        self._run = layout.run / "ovs"
        self.sockets = (
            Sockets(
                switch="unix:/run/openvswitch/db.sock",
                northbound="unix:/run/ovn/ovnnb_db.sock",
                southbound="unix:/run/ovn/ovnsb_db.sock",
            )
            if by_units
            else Sockets(
                switch=f"unix:{self._run}/db.sock",
                northbound=f"unix:{self._run}/nb.sock",
                southbound=f"unix:{self._run}/sb.sock",
            )
        )

    async def make_databases(self, *, central: bool) -> None:
        """Make the databases that are not there yet, and bring old ones to the schema of the present version.

        Units of the distribution do that by themselves.
        """
        if self.by_units:
            return
        self._run.mkdir(exist_ok=True)
        await self._make_database("conf", "openvswitch/vswitch.ovsschema", self.sockets.switch)
        if central:
            await self._make_database("nb", "ovn/ovn-nb.ovsschema", self.sockets.northbound)
            await self._make_database("sb", "ovn/ovn-sb.ovsschema", self.sockets.southbound)

    async def _make_database(self, name: str, schema: str, server: str) -> None:
        if await answers(server):
            return
        tool, file = self._programs("ovsdb-tool"), self._layout.switch / f"{name}.db"
        wanted = f"{self._programs.schemas}/{schema}"
        if not file.exists():
            fresh = file.with_suffix(".new")
            fresh.unlink(missing_ok=True)
            await run(tool, "create", str(fresh), wanted)
            fresh.rename(file)
        elif (await run(tool, "needs-conversion", str(file), wanted)).strip() == "yes":
            await run(tool, "convert", str(file), wanted)

    def central(self) -> Sequence[Daemon]:
        """OVN's databases, and what translates between them."""
        return [
            self._database(
                "ovn-nb",
                "nb",
                self.sockets.northbound,
                "db:OVN_Northbound,NB_Global,connections",
                "ovn-central.service",
            ),
            self._database(
                "ovn-sb",
                "sb",
                self.sockets.southbound,
                "db:OVN_Southbound,SB_Global,connections",
                "ovn-central.service",
            ),
            Daemon(
                name="ovn-northd",
                command=(
                    self._programs("ovn-northd"),
                    *_LOGS,
                    f"--unixctl={self._run}/ovn-northd.ctl",
                    f"--ovnnb-db={self.sockets.northbound}",
                    f"--ovnsb-db={self.sockets.southbound}",
                ),
                environment=self._environment,
                ready=f"unix:{self._run}/ovn-northd.ctl",
                unit="ovn-central.service",
            ),
        ]

    def database(self) -> Sequence[Daemon]:
        """The switch and its database; what it is told has to be written before ovs-vswitchd starts."""
        return [self._database("ovs-db", "conf", self.sockets.switch, None, "openvswitch-switch.service")]

    def forwarding(self) -> Sequence[Daemon]:
        """ovs-vswitchd, then ovn-controller."""
        return [
            Daemon(
                name="ovs-vswitchd",
                command=(
                    self._programs("ovs-vswitchd"),
                    *_LOGS,
                    f"--unixctl={self._run}/ovs-vswitchd.ctl",
                    f"--pidfile={self._run}/ovs-vswitchd.pid",
                    self.sockets.switch,
                ),
                environment=self._environment,
                ready=f"unix:{self._run}/ovs-vswitchd.ctl",
                unit="openvswitch-switch.service",
            ),
            Daemon(
                name="ovn-controller",
                command=(
                    self._programs("ovn-controller"),
                    *_LOGS,
                    f"--pidfile={self._run}/ovn-controller.pid",
                    self.sockets.switch,
                ),
                environment=self._environment,
                unit="ovn-host.service",
            ),
        ]

    def _database(self, name: str, file: str, address: str, more_remotes: str | None, unit: str) -> Daemon:
        remotes = (f"--remote=p{address}", *((f"--remote={more_remotes}",) if more_remotes else ()))
        return Daemon(
            name=name,
            command=(
                self._programs("ovsdb-server"),
                *_LOGS,
                f"--unixctl={self._run}/{name}.ctl",
                *remotes,
                str(self._layout.switch / f"{file}.db"),
            ),
            environment=self._environment,
            ready=address,
            unit=unit,
        )

    @property
    def _environment(self) -> dict[str, str]:
        return {"OVS_RUNDIR": str(self._run), "OVN_RUNDIR": str(self._run), "OVS_DBDIR": str(self._layout.switch)}

    async def probe_datapath(self) -> tuple[Datapath, str]:
        """Whether the kernel can switch frames, and the reason in words."""
        try:
            await run(self._programs("ovs-dpctl"), "dump-dps", timeout_s=10)
        except ProgramFailed:
            return Datapath.NETDEV, "this kernel has no Open vSwitch datapath: frames are switched in user space"
        return Datapath.SYSTEM, "the kernel switches frames"

    async def tell(self, settings: SwitchSettings) -> None:
        """Write what Open vSwitch and OVN are to know of this host; read by them at any time."""
        ids = {
            "system-id": settings.chassis,
            "hostname": socket.gethostname(),
            "ovn-remote": settings.southbound,
            "ovn-remote-probe-interval": _PROBE_INTERVAL_MS,
            "ovn-monitor-all": "true",
            # Geneve alone: one chassis that merely offers VXLAN takes all of them down to 4,095 networks.
            "ovn-encap-type": "geneve",
            "ovn-encap-ip": settings.tunnel_address,
            "ovn-bridge": INTEGRATION_BRIDGE,
            "ovn-bridge-datapath-type": settings.datapath.value,
            "ovn-bridge-mappings": ",".join(f"{name}:{bridge}" for name, bridge in settings.mappings.items()),
        }
        config = {"n-handler-threads": "1", "n-revalidator-threads": "1"} if settings.datapath == "netdev" else {}
        if settings.datapath is Datapath.NETDEV:
            # Without it guests would have to compute the checksums that their drivers leave to the network card.
            config["userspace-tso-enable"] = "true"
        await self.vsctl(
            "--no-wait",
            *("init", "--", "set", "Open_vSwitch", "."),
            *(f"external_ids:{name}={_quoted(value)}" for name, value in ids.items()),
            *(f"other_config:{name}={value}" for name, value in config.items()),
        )

    async def make_bridges(self, datapath: Datapath) -> None:
        """Have the integration and the external bridge; returns once they are links of the machine."""
        await self.make_bridge(EXTERNAL_BRIDGE, datapath)
        await self.make_bridge(INTEGRATION_BRIDGE, datapath, "--", "set-fail-mode", INTEGRATION_BRIDGE, "secure")

    async def make_bridge(self, bridge: str, datapath: Datapath, *more: str) -> None:
        """Have a bridge; returns once it is a link of the machine.

        Args:
            bridge: its name.
            datapath: where it switches.
            more: further commands for ovs-vsctl, in the same transaction.
        """
        await self.vsctl(
            *("--may-exist", "add-br", bridge),
            *("--", "set", "Bridge", bridge, f"datapath_type={datapath}", *more),
        )

        async def made() -> bool:
            return bridge in {name for _, name in socket.if_nameindex()}

        # ovs-vsctl waits for new bridges only; those that the database knew are made when ovs-vswitchd comes to it.
        if not await until(made, within_s=_BRIDGES_WITHIN_S):
            raise TimedOut(f"Open vSwitch did not make {bridge} within {_BRIDGES_WITHIN_S:g} s")

    async def vsctl(self, *arguments: str) -> str:
        """Run ovs-vsctl on this switch."""
        return await run(self._programs("ovs-vsctl"), f"--db={self.sockets.switch}", "--timeout=25", *arguments)

    async def listen(self, address: str) -> None:
        """Have the central databases listen on an address of this machine, for other hosts."""
        for program, database, port in (
            ("ovn-nbctl", self.sockets.northbound, NORTHBOUND_PORT),
            ("ovn-sbctl", self.sockets.southbound, SOUTHBOUND_PORT),
        ):
            control = (self._programs(program), f"--db={database}", "--no-leader-only", "--timeout=25")
            target = f"ptcp:{port}:{address}"
            if target not in (await run(*control, "get-connection")).split():
                await run(*control, "--", "set-connection", target)
                await run(*control, "set", "Connection", ".", f"inactivity_probe={_PROBE_INTERVAL_MS}")

    async def await_chassis(self, chassis: str, *, southbound: str) -> None:
        """Wait until OVN's southbound database knows this host.

        Raises:
            TimedOut: it does not, after two minutes.
        """
        control = (self._programs("ovn-sbctl"), f"--db={southbound}", "--no-leader-only", "--timeout=20")
        find = ("--bare", "--columns=_uuid", "find", "Chassis", f"name={chassis}")

        async def registered() -> bool:
            with contextlib.suppress(PileusError):
                return bool((await run(*control, *find)).strip())
            return False

        if not await until(registered, within_s=_CHASSIS_WITHIN_S):
            raise TimedOut(f"OVN does not know this host as {chassis} after {_CHASSIS_WITHIN_S:g} s")

    async def internal_links(self) -> list[str]:
        """The links that the switch has made on this machine, as far as its database can be asked."""
        if not await answers(self.sockets.switch):
            return []
        return (await self.vsctl("--bare", "--columns=name", "find", "Interface", "type=internal")).split()

    async def remove_bridges(self, *more: str) -> None:
        """Take our bridges, and these besides, from a switch that is the machine's."""
        if await answers(self.sockets.switch):
            bridges = (("--", "--if-exists", "del-br", each) for each in (INTEGRATION_BRIDGE, EXTERNAL_BRIDGE, *more))
            await self.vsctl(*[word for each in bridges for word in each][1:])

    async def remove_datapath(self, links: Sequence[str]) -> None:
        """Take from the machine what ovs-vswitchd leaves there when it ends, so that it can be started again."""
        with contextlib.suppress(ProgramFailed):
            await run(self._programs("ovs-dpctl"), "del-dp", f"system@{_KERNEL_DATAPATH}", timeout_s=10)
        for each in {*links, *await switch_links()}:
            with contextlib.suppress(ProgramFailed):
                await run("ip", "link", "delete", each)


async def switch_links() -> list[str]:
    """The links in this network namespace that are of our switch."""
    ours = {_NETDEV_LINK, _KERNEL_DATAPATH, EXTERNAL_BRIDGE, INTEGRATION_BRIDGE, TUNNEL_BRIDGE}
    found: list[dict[str, object]] = json.loads(await run("ip", "-json", "link"))
    return [str(each["ifname"]) for each in found if each["ifname"] in ours]


async def other_switch_runs() -> bool:
    """Whether a switch that is not ours has the kernel's datapath; two of them would fight over it."""
    return await answers("unix:/run/openvswitch/db.sock")


def _quoted(value: str) -> str:
    return json.dumps(value)
