"""Where a command reads from and writes to."""

import asyncio
import os
import shutil
import sys
import threading
from collections.abc import Mapping
from typing import TextIO

import msgspec

_PIPED_COLUMNS = 100


class Terminal(msgspec.Struct, frozen=True, kw_only=True):
    """The streams and the environment of one invocation; tests bring their own."""

    stdin: TextIO
    stdout: TextIO
    stderr: TextIO
    environ: Mapping[str, str]
    patience_s: float = 5.0
    """How long to ask again when the controller does not answer."""

    @property
    def columns(self) -> int:
        """How wide text may be: as the terminal is, and the same everywhere if it is none."""
        return shutil.get_terminal_size().columns if self.stdout.isatty() else _PIPED_COLUMNS

    def out(self, text: str = "") -> None:
        """A line of what was asked for."""
        self.stdout.write(text + "\n")
        self.stdout.flush()

    def say(self, text: str) -> None:
        """A line about how it goes."""
        self.stderr.write(text + "\n")
        self.stderr.flush()

    def typed(self) -> "asyncio.Queue[bytes]":
        """The bytes of the input as they come, then an empty one. To be called once, in a running loop.

        A thread reads, because an input may be a file, a pipe or a terminal and not all of them can be polled; it is a
        daemon, because a read cannot be called off.
        """
        loop = asyncio.get_running_loop()
        queue = asyncio.Queue[bytes]()
        descriptor = self.stdin.fileno()

        def read() -> None:
            while True:
                try:
                    data = os.read(descriptor, 4096)
                except OSError:
                    data = b""
                try:
                    loop.call_soon_threadsafe(queue.put_nowait, data)
                except RuntimeError:  # the loop is closed: nobody listens any more
                    return
                if not data:
                    return

        threading.Thread(target=read, daemon=True, name="input").start()
        return queue


def of_process() -> Terminal:
    """The streams and environment of this process."""
    return Terminal(stdin=sys.stdin, stdout=sys.stdout, stderr=sys.stderr, environ=os.environ)
