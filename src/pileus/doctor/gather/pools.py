"""The storage pools of this host: those that its agent is configured with, and those that it was told to serve."""

from pathlib import Path

from pileus.agent.daemon import AgentConfig, DirectoryConfig
from pileus.agent.storage.mounted import MountedFolders, served
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
    told = (
        Pool(name=spec.name, folder=folder, away=backings.missing(spec))
        for folder, spec in served(agent / "records").items()
    )
    return (*own, *told)
