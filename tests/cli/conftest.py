import io
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TextIO

import msgspec
import pytest
import pytest_asyncio

from pileus.cli.main import invoke
from pileus.cli.terminal import Terminal
from pileus.client import config as configuration
from pileus.client.config import Config
from pileus.controller.compose import Settings, serving
from pileus.testing.cloud import SETTINGS, SimulatedCloud, simulated_cloud
from pileus.testing.memorystore import MemoryStore


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """What one invocation of the command line left behind."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.out)


class CommandLine:
    """Calls the command line as a function, with streams of its own, as a user with a configuration of its own."""

    def __init__(self, home: Path, config: Config, cloud: SimulatedCloud) -> None:
        self.cloud = cloud
        self.config = config
        self.patience_s = 60.0
        """For how long a controller that does not answer is asked again."""
        self.environ = {"HOME": str(home), "PILEUS_CONFIG": str(home / "config.json")}
        configuration.save(config, self.environ)

    async def __call__(self, *arguments: str, stdin: str = "") -> Said:
        terminal = Terminal(
            stdin=io.StringIO(stdin),
            stdout=io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True),
            stderr=io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True),
            environ=self.environ,
            patience_s=self.patience_s,
        )
        status = await invoke(arguments, terminal)
        return Said(status=status, out=written(terminal.stdout), err=written(terminal.stderr))

    async def ok(self, *arguments: str, stdin: str = "") -> Said:
        """The same, when nothing may go wrong."""
        said = await self(*arguments, stdin=stdin)
        assert said.status == 0, said.err
        return said

    def as_another(self, home: Path, **changes: Any) -> "CommandLine":
        """Somebody else's command line."""
        return CommandLine(home, msgspec.structs.replace(self.config, **changes), self.cloud)


def written(stream: TextIO) -> str:
    """What was written to a stream over a BytesIO, so far."""
    target = stream.buffer
    assert isinstance(target, io.BytesIO)
    return target.getvalue().decode()


@asynccontextmanager
async def command_line(folder: Path, settings: Settings = SETTINGS) -> AsyncGenerator[CommandLine]:
    """The command line of the administrator of a cloud with three hosts."""
    async with simulated_cloud(folder / "controller", store=MemoryStore(), settings=settings) as cloud:
        controller = cloud.controller
        async with serving(controller.api, settings, controller.identity.api_context()) as port:
            assert controller.first is not None
            config = Config(
                url=f"https://127.0.0.1:{port}",
                authority=controller.authority.pem.decode(),
                token=controller.first.token,
            )
            (folder / "home").mkdir()
            yield CommandLine(folder / "home", config, cloud)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pileus(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[CommandLine]:
    """One that the tests of a module share; what is deleted is gone at once."""
    async with command_line(tmp_path_factory.mktemp("cloud")) as pileus:
        yield pileus
