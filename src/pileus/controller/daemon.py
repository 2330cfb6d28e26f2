"""The controller as a process: `pileus controller --data DIR`."""

import asyncio
import gc
import logging
import resource
import signal
import sys
from pathlib import Path

import msgspec
import structlog
import uvloop

from pileus.controller.compose import Settings, running
from pileus.kernel.errors import Invalid

log = structlog.stdlib.get_logger()

_FILES_WANTED = 65_536
"""Open files: one for each host, client and follower."""


def read_settings(data: Path) -> Settings:
    """Read `controller.json`; without one, what a controller does by default.

    Raises:
        Invalid: it is wrong.
    """
    file = data / "controller.json"
    try:
        return msgspec.json.decode(file.read_bytes(), type=Settings)
    except FileNotFoundError:
        return Settings()
    except msgspec.MsgspecError as wrong:
        raise Invalid(f"{file} is wrong: {wrong}") from wrong


async def run(data: Path) -> None:
    """Run the controller whose data is in this folder until SIGTERM or SIGINT; guests and their traffic go on."""
    settings = read_settings(data)
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    async with running(data, settings):
        await ended.wait()
        log.info("controller ends")


def main(data: Path) -> None:
    """Run the controller to its end."""
    log_as_a_daemon()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(_FILES_WANTED, hard) if hard != resource.RLIM_INFINITY else _FILES_WANTED
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    # The writer of the log is a thread: with Python's default of 5 ms it waits most of its time for its turn.
    sys.setswitchinterval(0.0005)
    # Records are not collected (see `pileus.state.records`), and little else lives long enough to be part of a cycle:
    # looking for cycles each 700 objects, as Python does by default, takes a tenth of the CPU of a create.
    gc.set_threshold(20_000)
    uvloop.run(run(data))


def log_as_a_daemon() -> None:
    """Events with fields, one JSON object a line, for journald or a file to keep."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(),
        cache_logger_on_first_use=True,
    )
