"""Commands that work on this machine, not through the API: they bring the server's code, so it is imported late."""

import asyncio
import sys
import time
from collections.abc import Coroutine, Sequence
from datetime import timedelta
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter

from pileus.kernel.errors import Invalid, PileusError

LOCAL = {
    "up": "pileus.cli.local:up",
    "controller": "pileus.cli.local:controller",
    "agent": "pileus.cli.local:agent",
    "sim": "pileus.cli.local:sim",
    "save": "pileus.cli.local:save",
    "restore": "pileus.cli.local:restore",
    "rebuild": "pileus.cli.local:rebuild",
    "rejoin": "pileus.cli.local:rejoin",
    "doctor": "pileus.cli.diagnosis:doctor",
}
"""By command, the function that is called with the arguments behind it and answers the exit status."""

ABOUT = {
    "up": "Have a whole cloud running on this machine; the first time with an instance in it.",
    "controller": "Run a controller in the foreground.",
    "agent": "Run this host's agent in the foreground.",
    "sim": "Run simulated hosts against a controller, until interrupted.",
    "save": "Write a copy of all that the controller needs to come back, while it runs: records, log, keys.",
    "restore": "Put what was saved in the place of what the controller has, which must be stopped.",
    "rebuild": "Make lost records again from what the hosts keep; guests go on running.",
    "rejoin": "Have this host trust the new authority of its cloud, as the host that it was; its guests run on.",
    "doctor": "Say what is wrong on this machine, why it matters, and the command that mends it.",
}
"""By command, what it does."""

DATA = Path("/var/lib/pileus")

Data = Annotated[Path, Parameter(help="The folder for everything.")]


def up(arguments: Sequence[str]) -> int:
    """`pileus up`."""
    app = _app("up")

    @app.default
    def run(
        *,
        data: Data = DATA,
        down: Annotated[bool, Parameter(negative="", help="Stop everything that up started; data stay.")] = False,
        purge: Annotated[
            bool, Parameter(negative="", help="Stop everything and remove it, all instances included.")
        ] = False,
        simulated: Annotated[
            int | None,
            Parameter(help="Instead: a cloud of so many simulated hosts, in this process. Needs no root."),
        ] = None,
        external: Annotated[
            str, Parameter(help="This machine's address on the external network, with the network's size.")
        ] = "172.31.255.1/24",
        physical_network: Annotated[
            tuple[str, ...],
            Parameter(
                negative="",
                help="NAME=DEVICE: a LAN that instances can be on, by a network card without addresses or a Linux"
                " bridge; kept until NAME= takes it back. Repeatable.",
            ),
        ] = (),
        api_port: Annotated[int, Parameter(help="Of a simulated cloud; 0 takes a free one.")] = 5870,
    ) -> None:
        if simulated is not None:
            from pileus.installation.simulated import simulated_up

            _run_on_uvloop(simulated_up(data, simulated, api_port, _Teller()))
            return
        from pileus.installation.down import down as take_down
        from pileus.installation.down import purge as take_away
        from pileus.installation.report import report
        from pileus.installation.up import told
        from pileus.installation.up import up as bring_up
        from pileus.machine.engines import EngineSettings

        wires = dict(_pair(each) for each in physical_network)
        settings, say = EngineSettings(external=_interface(external), physical_networks=wires), _Teller()
        if purge:
            asyncio.run(take_away(data, say, settings))
        elif down:
            asyncio.run(take_down(data, say, settings))
        else:
            report(asyncio.run(bring_up(data, say, settings)), say.passed_s)
            told(data)

    return _call(app, arguments)


def controller(arguments: Sequence[str]) -> int:
    """`pileus controller`."""
    app = _app("controller")

    @app.default
    def run(*, data: Annotated[Path, Parameter(help="The controller's folder.")] = DATA / "controller") -> None:
        from pileus.controller.daemon import main

        main(data)

    return _call(app, arguments)


def agent(arguments: Sequence[str]) -> int:
    """`pileus agent`."""
    app = _app("agent")

    @app.default
    def run(*, data: Annotated[Path, Parameter(help="The agent's folder.")] = DATA / "agent") -> None:
        from pileus.agent.daemon import run as run_agent
        from pileus.controller.daemon import log_as_a_daemon

        log_as_a_daemon()
        _run_on_uvloop(run_agent(data))

    return _call(app, arguments)


def sim(arguments: Sequence[str]) -> int:
    """`pileus sim`."""
    app = _app("sim")

    @app.default
    def run(
        hosts: Annotated[int, Parameter(help="How many.")],
        *,
        data: Annotated[Path, Parameter(help="Where their certificates are kept.")] = Path("simulated-hosts"),
    ) -> None:
        from pileus.installation.simulated import simulate_hosts

        _run_on_uvloop(simulate_hosts(hosts, data, _Teller()))

    return _call(app, arguments)


def save(arguments: Sequence[str]) -> int:
    """`pileus save`."""
    app = _app("save")

    @app.default
    def run(
        to: Annotated[Path, Parameter(help="The file to write.")],
        *,
        data: Annotated[Path, Parameter(help="The controller's folder.")] = DATA / "controller",
        passphrase_file: Annotated[
            Path | None, Parameter(help="Encrypt it with the passphrase that is the first line of this file.")
        ] = None,
    ) -> None:
        from pileus.installation.backups import back_up

        asyncio.run(back_up(data, to, passphrase=_first_line(passphrase_file)))

    return _call(app, arguments)


def restore(arguments: Sequence[str]) -> int:
    """`pileus restore`."""
    app = _app("restore")

    @app.default
    def run(
        backup: Annotated[Path, Parameter(help="The file to read.")],
        *,
        data: Annotated[Path, Parameter(help="The controller's folder.")] = DATA / "controller",
        passphrase_file: Annotated[
            Path | None, Parameter(help="The passphrase that it is encrypted with is the first line of this file.")
        ] = None,
    ) -> None:
        from pileus.installation.backups import put_back

        asyncio.run(put_back(backup, data, passphrase=_first_line(passphrase_file)))

    return _call(app, arguments)


def _first_line(file: Path | None) -> str | None:
    """The secret in a file. Raises Invalid if there is none."""
    if file is None:
        return None
    try:
        found = file.read_text().partition("\n")[0]
    except (OSError, UnicodeDecodeError) as wrong:
        raise Invalid(f"{file} cannot be read: {wrong}", fields={"passphrase_file": "not readable"}) from wrong
    if not found:
        raise Invalid(f"the first line of {file} is empty", fields={"passphrase_file": "empty"})
    return found


def rebuild(arguments: Sequence[str]) -> int:
    """`pileus rebuild`."""
    app = _app("rebuild")

    @app.default
    def run(
        *,
        from_agents: Annotated[bool, Parameter(negative="", help="From what the hosts' agents keep.")],
        data: Data = DATA,
        hosts: Annotated[int | None, Parameter(help="How many hosts there are: go on as soon as all answered.")] = None,
        within_s: Annotated[int, Parameter(help="How long to wait for hosts at most, in seconds.")] = 120,
        new_authority: Annotated[
            bool, Parameter(negative="", help="The authority is lost: make a new one, which every host joins again.")
        ] = False,
    ) -> None:
        from pileus.installation.rebuild import in_words, rebuild_installation

        if not from_agents:
            raise Invalid("there is nothing else to rebuild from", fields={"--from-agents": "missing"})
        say = _Teller()
        within = timedelta(seconds=within_s)
        done = asyncio.run(rebuild_installation(data, hosts=hosts, within=within, new_authority=new_authority, say=say))
        for line in in_words(done):
            print(line)  # noqa: T201

    return _call(app, arguments)


def rejoin(arguments: Sequence[str]) -> int:
    """`pileus rejoin`."""
    app = _app("rejoin")

    @app.default
    def run(
        controller: Annotated[str, Parameter(help="Where the cloud is rebuilt, as that says: ADDRESS:PORT.")],
        token: Annotated[str, Parameter(help="What that says besides.")],
        *,
        data: Annotated[Path, Parameter(help="The agent's folder.")] = DATA / "agent",
    ) -> None:
        from pileus.installation.rejoining import rejoin_at

        host = asyncio.run(rejoin_at(data, controller, token))
        print(f"this is host {host} again; its agent dials with its new certificate")  # noqa: T201

    return _call(app, arguments)


def _app(name: str) -> App:
    return App(name=f"pileus {name}", help=ABOUT[name], version_flags=[], result_action="return_value")


def _call(app: App, arguments: Sequence[str]) -> int:
    try:
        app(list(arguments), exit_on_error=False)
    except KeyboardInterrupt:
        return 130
    except CycloptsError:  # said already
        return 2
    except PileusError as refused:
        return _refused(refused)
    except ExceptionGroup as several:
        meant, others = several.split(PileusError)
        if meant is None or others is not None:
            raise
        return _refused(_first(meant))
    return 0


def _first(group: ExceptionGroup[PileusError]) -> PileusError:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, ExceptionGroup) else first


def _refused(error: PileusError) -> int:
    print(f"{error.title}: {error.detail}", file=sys.stderr)  # noqa: T201 - what a command line is for
    for what, says in (*error.fields.items(), *error.because.items()):
        print(f"  {what}: {says}", file=sys.stderr)  # noqa: T201
    if error.internal:
        print(f"  {error.internal}", file=sys.stderr)  # noqa: T201
    return 2 if isinstance(error, Invalid) else 1


class _Teller:
    """Prints what happens, each line with the seconds since the beginning."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def passed_s(self) -> float:
        return time.monotonic() - self._began

    def __call__(self, sentence: str) -> None:
        print(f"[{self.passed_s():5.1f} s] {sentence}", flush=True)  # noqa: T201


def _interface(text: str) -> IPv4Interface:
    try:
        return IPv4Interface(text)
    except ValueError as wrong:
        raise Invalid(f"--external: {wrong}") from wrong


def _pair(text: str) -> tuple[str, str]:
    name, equals, device = text.partition("=")
    if not name or not equals:
        raise Invalid(f"--physical-network: {text!r} is not NAME=DEVICE")
    return name, device


def _run_on_uvloop(work: Coroutine[None, None, None]) -> None:
    import uvloop

    uvloop.run(work)
