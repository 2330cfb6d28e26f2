"""The storage pools of this host: those that its agent is configured with, and those that it was told to serve."""

from pathlib import Path

from pileus.agent.daemon import AgentConfig, DirectoryConfig
from pileus.agent.records import pools_on_record
from pileus.agent.storage.mounted import MountedFolders
from pileus.doctor.facts import Pool


def pools(agent: Path, config: AgentConfig | None) -> tuple[Pool, ...]:
    """Those that are in folders.

    Args:
        agent: the agent's folder.
        config: what it is told there, if that can be read.
    """
    configured = config.pools if config is not None else {}
    own = (
        Pool(name=name, folder=Path(each.folder))
        for name, each in configured.items()
        if isinstance(each, DirectoryConfig)
    )
    backings = MountedFolders()
    served = (
        Pool(name=each.spec.name, folder=Path(each.spec.backing.path), away=backings.missing(each.spec))
        for each in pools_on_record(agent / "records")
        # One that was never opened here is on other hosts.
        if each.spec.backing is not None and each.accepted
    )
    return (*own, *served)
