"""All engines of one host as one thing: up, down, purge, status."""

import os
import shutil
from collections.abc import Callable, Mapping
from ipaddress import IPv4Interface
from pathlib import Path

import msgspec

from pileus.kernel.errors import Forbidden
from pileus.kernel.files import write_atomically
from pileus.machine import cgroups, kvm, libvirtd, mounts, packages
from pileus.machine.daemons import Daemons, DaemonStatus
from pileus.machine.enclosure import Kvm
from pileus.machine.external import DEFAULT_ADDRESS, ExternalNetwork
from pileus.machine.kvm import Accelerator, Verdict
from pileus.machine.layout import Layout
from pileus.machine.openvswitch import (
    EXTERNAL_BRIDGE,
    EXTERNAL_NETWORK,
    INTEGRATION_BRIDGE,
    Datapath,
    OpenVSwitch,
    SwitchSettings,
    other_switch_runs,
    switch_links,
)
from pileus.machine.ovnprefix import OvnPrograms, known_programs, ovn_programs
from pileus.machine.processes import end, identify, processes_below
from pileus.machine.supervised import Supervised
from pileus.machine.systemd import Systemd
from pileus.machine.tunnel import Tunnel, tunnel_up
from pileus.machine.wires import Wires

_GUEST_ENDS_WITHIN_S = 5.0
_ALONE = "127.0.0.1"


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What may differ from host to host."""

    external: IPv4Interface = DEFAULT_ADDRESS
    """The address of this machine on the external network, which is its gateway; and the size of that network."""
    tunnel: Tunnel | None = None
    """What leads to the other hosts; None: this host is alone."""
    listen: str | None = None
    """The address on which OVN's databases listen for other hosts; None: on this machine only."""
    southbound: str | None = None
    """OVN's southbound database, if another host has OVN's central part: `tcp:ADDRESS:6642`."""
    physical_networks: Mapping[str, str] = {}
    """Further wires that the host is on: by name, the device that leads there; an empty one takes it back."""


class EngineAddresses(msgspec.Struct, frozen=True, kw_only=True):
    """Where the engines are, and what they turned out to be."""

    libvirt_uri: str
    guest_user: str
    accelerator: Verdict
    switch: str
    """Open vSwitch's database, as `unix:PATH`; so are the next two, unless they are on another host."""
    northbound: str | None
    """OVN's northbound database, if this host has OVN's central part."""
    southbound: str
    chassis: str
    """The name of this host in OVN."""
    datapath: Datapath
    """With `netdev`, each port of a guest needs `external.guard`."""
    datapath_reason: str
    integration_bridge: str
    external_bridge: str
    external_network: str
    """The `network_name` of a localnet port that leads to the external network."""
    external_cidr: str
    external_gateway: str
    programs: OvnPrograms


class Engines:
    """libvirt, Open vSwitch, OVN and the external network of the host whose data folder this is. Needs root."""

    def __init__(
        self,
        data: Path,
        *,
        say: Callable[[str], None],
        settings: EngineSettings = EngineSettings(),  # noqa: B008
    ) -> None:
        """Nothing is done or looked at yet.

        Args:
            data: the folder for everything that this host keeps.
            say: told, in whole sentences, what is installed, fetched, changed on the machine and found out.
            settings: what is particular to this host.
        """
        self.layout = Layout.of(data)
        self._say = say
        self._settings = settings
        self._external = ExternalNetwork(self.layout, settings.external, say)
        self._wires = Wires(self.layout, settings.physical_networks, say)
        self.daemons = self._daemons()
        """What keeps daemons running on this machine; the controller and the agent may be kept by it as well."""

    def _daemons(self) -> Daemons:
        supervised = Supervised(self.layout)
        return Systemd(self.layout, supervised) if packages.has_systemd() else supervised

    async def up(self) -> EngineAddresses:
        """Have everything installed, running and ready; quick if it is already.

        Raises:
            Forbidden: we are not root.
            Conflict: the machine uses the external network's addresses, or the device of a physical network, for
                something else.
            Unavailable: a package cannot be had, or a daemon does not become ready; the detail says which and why.
        """
        if os.geteuid() != 0:
            raise Forbidden("the engines of a host need root")
        await packages.install(await packages.missing(), self._say)
        await self._external.check()
        await self._wires.check()
        self.layout.make()
        programs = await ovn_programs(self.layout.cache, self._say)
        accelerator = await kvm.accelerator(self.layout.run)
        user = libvirtd.guest_user(self.layout)
        await self._libvirt_up(accelerator, user)
        switch = self._switch(programs)
        datapath, reason = await self._switch_up(switch)
        await self._external.up()
        await switch.await_chassis(self.layout.identity(), southbound=self._southbound(switch))
        addresses = EngineAddresses(
            libvirt_uri=libvirtd.SYSTEM_URI if packages.has_systemd() else libvirtd.uri(self.layout),
            guest_user=user.name,
            accelerator=accelerator,
            switch=switch.sockets.switch,
            northbound=None if self._settings.southbound else switch.sockets.northbound,
            southbound=self._southbound(switch),
            chassis=self.layout.identity(),
            datapath=datapath,
            datapath_reason=reason,
            integration_bridge=INTEGRATION_BRIDGE,
            external_bridge=EXTERNAL_BRIDGE,
            external_network=EXTERNAL_NETWORK,
            external_cidr=str(self._settings.external.network),
            external_gateway=str(self._settings.external.ip),
            programs=programs,
        )
        if addresses != self.addresses():
            if not self.layout.run.is_relative_to(self.layout.data):
                self._say(f"sockets are in {self.layout.run}: the path of the data folder is too long for them")
            if user.reason:
                self._say(f"guests run as {user.name}: {user.reason}")
            self._say(f"guests run on {accelerator.accelerator.name}: {accelerator.reason}")
            self._say(f"Open vSwitch {programs.ovs} and OVN {programs.ovn}: {reason}")
            write_atomically(self._addresses, msgspec.json.encode(addresses), mode=0o644)
        return addresses

    async def _libvirt_up(self, verdict: Verdict, user: libvirtd.GuestUser) -> None:
        device = Kvm.HIDDEN
        if verdict.accelerator is Accelerator.KVM:
            device = Kvm.AS_IT_IS if kvm.open_to_guests() else Kvm.GIVEN
        libvirtd.configure(self.layout, user)
        if mounts.share():
            self._say("disks that are mounted later are seen by guests too (mount --make-rshared /)")
        await self.daemons.keep(libvirtd.daemons(self.layout, kvm=device))

    async def _switch_up(self, switch: OpenVSwitch) -> tuple[Datapath, str]:
        central = self._settings.southbound is None
        await switch.make_databases(central=central)
        await self.daemons.keep([*switch.database(), *(switch.central() if central else ())])
        datapath, reason = await switch.probe_datapath()
        if datapath is Datapath.SYSTEM and not switch.by_units and await other_switch_runs():
            datapath, reason = Datapath.NETDEV, "another Open vSwitch has the kernel's datapath; ours is in user space"
        await switch.tell(
            SwitchSettings(
                chassis=self.layout.identity(),
                southbound=self._southbound(switch),
                tunnel_address=_ALONE if self._settings.tunnel is None else str(self._settings.tunnel.address.ip),
                datapath=datapath,
                mappings={EXTERNAL_NETWORK: EXTERNAL_BRIDGE, **self._wires.mappings()},
            )
        )
        await self.daemons.keep(switch.forwarding())
        await switch.make_bridges(datapath)
        await self._wires.up(switch, datapath)
        if self._settings.tunnel is not None:
            await tunnel_up(switch, self._settings.tunnel, datapath)
        if central and self._settings.listen is not None:
            await switch.listen(self._settings.listen)
        return datapath, reason

    def _switch(self, programs: OvnPrograms) -> OpenVSwitch:
        return OpenVSwitch(self.layout, programs, by_units=packages.has_systemd() and not programs.own)

    def _southbound(self, switch: OpenVSwitch) -> str:
        return self._settings.southbound or switch.sockets.southbound

    @property
    def _addresses(self) -> Path:
        return self.layout.machine / "engines.json"

    def addresses(self) -> EngineAddresses | None:
        """What the last `up` answered; None if there was none."""
        try:
            return msgspec.json.decode(self._addresses.read_bytes(), type=EngineAddresses)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None

    async def status(self) -> list[DaemonStatus]:
        """The daemons that are kept, in the order in which they start."""
        return await self.daemons.status()

    async def down(self) -> None:
        """Stop all daemons and take every change to the machine back; data stay, and so do guests that still run."""
        programs = await known_programs(self.layout.cache)
        links: list[str] = []
        if programs is not None:
            switch = self._switch(programs)
            links = await switch.internal_links()
            if switch.by_units:
                await switch.remove_bridges(*self._wires.mappings().values())
        await self.daemons.drop_all()
        if programs is not None and not self._switch(programs).by_units:
            await self._switch(programs).remove_datapath(links)
        await self._wires.down()
        await self._external.down()

    async def purge(self) -> None:
        """Take down, end guests that still run, and remove all that the engines have kept but what was fetched."""
        await self.down()
        group = libvirtd.cgroup(self.layout)
        for pid in cgroups.processes_in(group):
            guest = identify(pid)
            if guest is not None:
                await end(guest, within_s=_GUEST_ENDS_WITHIN_S)
        await cgroups.folders(group, remove=True)
        layout = self.layout
        for folder in (layout.run, layout.machine, layout.log, layout.libvirt, layout.switch, layout.cache / "libvirt"):
            shutil.rmtree(folder, ignore_errors=True)

    async def leftovers(self) -> list[str]:
        """What there is on the machine, outside the data folder, of this host: nothing after a purge."""
        layout, group = self.layout, libvirtd.cgroup(self.layout)
        pids = {*processes_below(layout.data), *processes_below(layout.run), *cgroups.processes_in(group)}
        return [
            *(f"process {pid}" for pid in sorted(pids)),
            *(f"link {name}" for name in await switch_links()),
            *await self._wires.leftovers(),
            *await self._external.leftovers(),
            *(f"control group {folder}" for folder in await cgroups.folders(group, remove=False)),
            *(f"mount {each}" for each in _mounts() if Path(each).is_relative_to(layout.data)),
            *([f"folder {layout.run}"] if layout.run.exists() else []),
        ]


def _mounts() -> list[str]:
    return [line.split()[4] for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()]
