"""`pileus up --down` and `--purge`: the machine as it was before; with the data, or without."""

import asyncio
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

from pileus.agent.daemon import OvnConfig, SimulatedConfig, hypervisor_of, network_of
from pileus.agent.hypervisor.port import GuestState, Hypervisor
from pileus.agent.metadata import Metadata
from pileus.agent.storage.mounted import served
from pileus.installation.places import Places
from pileus.installation.up import AGENT, CONTROLLER, agent_config, another_run
from pileus.kernel.errors import Conflict, PileusError
from pileus.kernel.ids import InstanceId
from pileus.machine.engines import Engines, EngineSettings

_ENDS_WITHIN_S = 30.0
_LOOK_S = 0.5


async def down(data: Path, say: Callable[[str], None], settings: EngineSettings) -> None:
    """Stop everything that `up` started, guests too; they start again with the next `up`. All data stay."""
    places = Places.of(data)
    engines = Engines(data, say=say, settings=settings)
    await engines.daemons.drop([AGENT])
    await _end_guests(places, say)
    await _disconnect(places, say)
    another_run(places)
    await engines.daemons.drop([CONTROLLER])
    await engines.down()
    say(f"everything is stopped; {places.data} is kept")


async def purge(data: Path, say: Callable[[str], None], settings: EngineSettings) -> None:
    """Stop everything and remove it, with all instances and their disks, but not what storage pools elsewhere keep.

    Raises:
        Conflict: something of it is left on the machine; the detail names it.
    """
    places = Places.of(data)
    engines = Engines(data, say=say, settings=settings)
    await engines.daemons.drop([AGENT, CONTROLLER])
    await _disconnect(places, say)
    await engines.purge()
    kept = await asyncio.to_thread(kept_elsewhere, places)
    await asyncio.to_thread(shutil.rmtree, places.data, ignore_errors=True)
    if left := await engines.leftovers():
        raise Conflict(f"still on this machine: {', '.join(left)}")
    for folder in kept:
        say(f"what a storage pool has in {folder} is left there; `rm -r {shlex.quote(str(folder))}/*` removes it")
    say(f"nothing {'else ' if kept else ''}is left on this machine; {places.data} is gone")


def kept_elsewhere(places: Places) -> list[Path]:
    """Where storage pools keep volumes and backups outside the data folder: backups there may be all that is left."""
    return [each for each in served(places.agent / "records") if not each.is_relative_to(places.data)]


async def _end_guests(places: Places, say: Callable[[str], None]) -> None:
    """Ask all guests to end, as a machine that shuts down does, and end those that do not."""
    config = agent_config(places)
    if config is None:
        return
    hypervisor = hypervisor_of(config.hypervisor)
    try:
        running = await _running(hypervisor)
        if not running:
            return
        say(f"asking {len(running)} guests to end")
        for id in running:
            await hypervisor.shut_down(id)
        try:
            async with asyncio.timeout(_ENDS_WITHIN_S):
                while await _running(hypervisor):  # noqa: ASYNC110 - whoever watches guests has been stopped
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError:
            for id in await _running(hypervisor):
                say(f"guest {id} did not end when asked, and is ended")
                await hypervisor.stop(id)
    except PileusError as refused:
        say(f"guests could not be asked to end: {refused.detail}")
    finally:
        await hypervisor.close()


async def _disconnect(places: Places, say: Callable[[str], None]) -> None:
    """Take the devices and namespaces of guests' networks from the machine; the agent makes them anew."""
    config = agent_config(places)
    if config is None or _is_down(config.network):
        return
    network = network_of(config.network)
    try:
        await network.serve({}, Metadata(tuple))
        for port in await network.list():
            await network.unplug(port)
    except PileusError as refused:
        say(f"networks could not be taken down: {refused.detail}")
    finally:
        await network.close()


def _is_down(network: OvnConfig | SimulatedConfig) -> bool:
    """Whether the switch has been stopped, as by a `down` before: with it went what was plugged into it."""
    return isinstance(network, OvnConfig) and not Path(network.switch.removeprefix("unix:")).exists()


async def _running(hypervisor: Hypervisor) -> list[InstanceId]:
    return [id for id, guest in (await hypervisor.list()).items() if guest.state is GuestState.RUNNING]
