"""Where an installation's things are: what every gatherer begins with."""

import shlex
from contextlib import suppress
from pathlib import Path

import msgspec

from pileus.agent.daemon import AgentConfig
from pileus.controller.compose import Settings
from pileus.controller.daemon import read_settings
from pileus.doctor.facts import Commands
from pileus.installation.places import DATA, Places
from pileus.installation.up import agent_config
from pileus.kernel.errors import PileusError
from pileus.machine.engines import EngineAddresses, Engines
from pileus.machine.external import DEFAULT_ADDRESS

AGENT_CERTIFICATE = "agent.pem"


class Site(msgspec.Struct, frozen=True, kw_only=True):
    """An installation, as far as this user may read what it is told."""

    places: Places
    engines: Engines
    addresses: EngineAddresses | None
    """None before the first `up`."""
    agent: AgentConfig | None
    settings: Settings

    @classmethod
    def of(cls, data: Path) -> "Site":
        """Read what is there; what cannot be read is as by default, and is missed later, where it is needed."""
        engines = Engines(data, say=lambda _: None)
        places = Places.of(data)
        agent, settings = None, Settings()
        with suppress(OSError, PileusError):
            agent, settings = agent_config(places), read_settings(places.controller)
        return cls(places=places, engines=engines, addresses=engines.addresses(), agent=agent, settings=settings)

    @property
    def external(self) -> str:
        """This machine's address on the external network."""
        if self.addresses is None:
            return str(DEFAULT_ADDRESS)
        return f"{self.addresses.external_gateway}/{self.addresses.external_cidr.partition('/')[2]}"

    @property
    def simulated_hosts(self) -> int:
        """How many hosts were simulated here."""
        return len(list((self.places.data / "hosts").glob(f"*/{AGENT_CERTIFICATE}")))

    def commands(self) -> Commands:
        """How commands for this installation are typed."""
        at = self.addresses
        programs: dict[str, str] = {}
        if at is not None:
            databases = {"ovs-vsctl": at.switch, "ovn-nbctl": at.northbound, "ovn-sbctl": at.southbound}
            for program, database in databases.items():
                try:
                    programs[program] = shlex.join((at.programs(program), f"--db={database}"))
                except PileusError:  # its folder is gone; `up` brings it back
                    continue
        return Commands(
            data=self.places.data,
            default=self.places.data == DATA,
            program=self.places.program,
            simulated=self.simulated_hosts if at is None else 0,
            external="" if self.external == str(DEFAULT_ADDRESS) else self.external,
            libvirt_uri=at.libvirt_uri if at is not None else "",
            programs=programs,
        )
