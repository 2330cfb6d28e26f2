"""A PostgreSQL of the tests' own: made, started and thrown away, reachable by a socket in a folder of its own."""

import ctypes
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

_PROGRAMS = ("initdb", "postgres", "pg_isready", "createdb", "dropdb")
_PR_SET_PDEATHSIG = 1


class Missing(Exception):
    """What this machine lacks to run PostgreSQL."""


class Cluster:
    """A running server with databases that are made one by one."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self._folder = folder
        self._programs = programs
        self._numbers = itertools.count(1)

    @contextmanager
    def database(self) -> Generator[str]:
        """The address of a fresh database."""
        name = f"test{next(self._numbers)}"
        self._run("createdb", "--template=template0", "--strategy=file_copy", name)
        try:
            yield f"postgresql://pileus@/{name}?host={self._folder}"
        finally:
            self._run("dropdb", "--force", name)

    def _run(self, program: str, *arguments: str) -> None:
        where = (f"--host={self._folder}", "--username=pileus")
        subprocess.run([self._programs / program, *where, *arguments], check=True, timeout=60)


@contextmanager
def cluster(*, fsync: bool, folder: Path | None = None) -> Generator[Cluster]:
    """Run a server, its files in `folder`; without `fsync` it is quicker and forgets when the machine dies.

    Raises:
        Missing: PostgreSQL is not installed, or there is no user to run it as.
    """
    programs, owner = _find_programs(), _unprivileged()
    user, group, groups = (owner.pw_uid, owner.pw_gid, (owner.pw_gid,)) if owner else (None, None, None)
    home = Path(tempfile.mkdtemp(prefix="pileus-pg-", dir=folder))
    try:
        if owner:
            os.chown(home, owner.pw_uid, owner.pw_gid)
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(home),
            "fsync": "on" if fsync else "off",
            "full_page_writes": "on" if fsync else "off",
            "shared_buffers": "64MB",
            "max_wal_size": "1GB",
            "log_destination": "stderr",
        }
        made = [f"--pgdata={home / 'data'}", "--auth=trust", "--username=pileus", "--encoding=UTF8", "--locale=C"]
        subprocess.run(
            [programs / "initdb", "--no-sync", *made],
            check=True,
            capture_output=True,
            timeout=60,
            cwd=home,
            user=user,
            group=group,
            extra_groups=groups,
        )
        with (home / "log").open("wb") as log:
            server = subprocess.Popen(
                [
                    programs / "postgres",
                    "-D",
                    home / "data",
                    *(f"--{name}={value}" for name, value in settings.items()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=home,
                preexec_fn=_end_with_the_parent,  # noqa: PLW1509 - it calls the kernel alone, and takes no lock
                user=user,
                group=group,
                extra_groups=groups,
            )
        try:
            _wait_until_ready(server, programs, home)
            yield Cluster(home, programs)
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(30)
    finally:
        shutil.rmtree(home)


def _find_programs() -> Path:
    """The folder of the newest PostgreSQL: Debian keeps the server's programs out of PATH."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), reverse=True)
    on_path = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep)]
    for folder in (*versions, *on_path):
        if all((folder / program).exists() for program in _PROGRAMS):
            return folder
    raise Missing(f"PostgreSQL is not installed: no folder has {', '.join(_PROGRAMS)}")


def _unprivileged() -> pwd.struct_passwd | None:
    """Whom to run the server as, which refuses to be root; None for who we are."""
    if os.geteuid():
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise Missing("PostgreSQL does not run as root, and there is neither a user `postgres` nor `nobody`")


def _end_with_the_parent() -> None:
    """Have the kernel stop the server when the tests are killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT)


def _wait_until_ready(server: "subprocess.Popen[bytes]", programs: Path, folder: Path) -> None:
    deadline = time.monotonic() + 30
    while subprocess.run([programs / "pg_isready", "--quiet", f"--host={folder}"], check=False, timeout=60).returncode:
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"PostgreSQL does not start: {(folder / 'log').read_text()}")
        time.sleep(0.05)
