"""The storage pools of this host: those that its agent is configured with, and those that it was told to serve."""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from pileus.agent.daemon import AgentConfig, DirectoryConfig
from pileus.agent.records import PoolRecord
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
        for each in _told(agent / "records" / "pools")
        # One that was never opened here is on other hosts.
        if each.spec.backing is not None and each.accepted
    )
    return (*own, *served)


def _told(records: Path) -> Iterator[PoolRecord]:
    decoder = msgspec.json.Decoder(PoolRecord)
    for file in sorted(records.glob("*.json")):
        try:
            yield decoder.decode(file.read_bytes())
        except (OSError, msgspec.DecodeError):  # it has just gone, or the agent sets it aside
            continue
