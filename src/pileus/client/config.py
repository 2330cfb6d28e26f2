"""Where a client finds its cloud, whom it trusts there, and who it is: one small file."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from pileus.kernel.errors import Invalid, Unauthenticated
from pileus.kernel.files import write_atomically

OF_THE_MACHINE = Path("/var/lib/pileus/cli.json")
"""What `pileus up` leaves for the administrators of the machine that it ran on."""


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """What a client must know."""

    url: str
    """Of the API: `https://192.0.2.1:5870`."""
    authority: str = ""
    """The cloud's own certificate authority, as PEM or as the path of a file that holds it; empty trusts those that
    the machine trusts."""
    token: str = ""
    project: str = ""
    """Id or name of the project to act in, if that is not the token's own."""

    def authority_pem(self) -> str:
        """The certificate of the authority. Raises Invalid if its file cannot be read."""
        if not self.authority or self.authority.startswith("-----"):
            return self.authority
        try:
            return Path(self.authority).expanduser().read_text()
        except OSError as failed:
            raise Invalid(f"the authority's certificate cannot be read: {failed}") from failed


def own_path(environ: Mapping[str, str]) -> Path:
    """The file of this user: `$PILEUS_CONFIG`, or else `~/.config/pileus/config.json`."""
    if named := environ.get("PILEUS_CONFIG"):
        return Path(named).expanduser()
    home = environ.get("XDG_CONFIG_HOME") or str(Path(environ.get("HOME") or "~").expanduser() / ".config")
    return Path(home) / "pileus" / "config.json"


def load(environ: Mapping[str, str]) -> Config:
    """The user's own file, or else the machine's if this user may read it.

    Raises:
        Unauthenticated: there is neither.
        Invalid: it is there and no good.
    """
    own = own_path(environ)
    candidates = [own] if "PILEUS_CONFIG" in environ else [own, OF_THE_MACHINE]
    for path in candidates:
        if os.access(path, os.R_OK):
            return read(path)
    raise Unauthenticated("not signed in: `pileus login https://<controller>:5870`")


def read(path: Path) -> Config:
    """Raises Invalid if the file is no configuration."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Config)
    except (OSError, msgspec.MsgspecError) as failed:
        raise Invalid(f"{path} cannot be read: {failed}") from failed


def save(config: Config, environ: Mapping[str, str]) -> Path:
    """Write the user's own file, for nobody else to read, and return its path."""
    path = own_path(environ)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomically(path, msgspec.json.format(msgspec.json.encode(config), indent=2) + b"\n", mode=0o600)
    return path


def remove(environ: Mapping[str, str]) -> None:
    """Forget the user's own file, if there is one."""
    with suppress(FileNotFoundError):
        own_path(environ).unlink()
