"""The archive of a controller: one tar file of a few named files, which may be encrypted with a passphrase.

Encrypted, it is a header and frames of 1 MiB: AES-256-GCM under a key that scrypt (RFC 7914) makes of the passphrase.
The number of a frame is in its nonce, and whether it is the last one is authenticated with it, so that none can be left
out, exchanged or cut off.
"""

import io
import os
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from pileus.kernel.errors import Conflict, Invalid, NotFound
from pileus.state.rows import Damaged

_MAGIC: Final = b"Pileus backup, encrypted\n"
_SQLITE: Final = b"SQLite format 3\0"
_FRAME: Final = 1024 * 1024
_TAG: Final = 16
_LAST, _MORE = b"last", b"more"
_HEADER: Final = 4
_LARGEST_HEADER: Final = 4096
_WORK = {"n": 1 << 15, "r": 8, "p": 1}
"""Of scrypt: 32 MiB of memory and a tenth of a second for each guess."""
_MOST_WORK: Final = 1 << 20


class _Header(msgspec.Struct, frozen=True, kw_only=True):
    salt: bytes
    nonce: bytes
    n: int
    r: int
    p: int


def write(files: Mapping[str, Path], to: Path, *, passphrase: str | None = None) -> None:
    """Write an archive of these files, by their names in it, that appears under its name only when it is complete.

    Raises:
        Conflict: there is a file already.
    """
    if to.exists():
        raise Conflict(f"{to} exists already")
    part = to.with_name(f".{to.name}.part")
    part.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as target:
            if passphrase is None:
                _pack(files, target)
            else:
                sealing = _Sealing(target, passphrase)
                _pack(files, sealing)
                sealing.finish()
            target.flush()
            os.fsync(target.fileno())
        part.rename(to)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def is_database(file: Path) -> bool:
    """Whether this is a backup as they were before there were archives: the database alone. Raises NotFound."""
    try:
        with file.open("rb") as opened:
            return opened.read(len(_SQLITE)) == _SQLITE
    except FileNotFoundError:
        raise NotFound(f"there is no backup {file}") from None


def read(archive: Path, into: Path, *, passphrase: str | None = None) -> list[str]:
    """Put the files of an archive into an empty folder; says which, by their names.

    Raises:
        Invalid: it is encrypted, and no passphrase is given or it is the wrong one.
        Damaged: it is not whole, or not an archive of ours.
    """
    with archive.open("rb") as source:
        is_sealed = source.read(len(_MAGIC)) == _MAGIC
        if is_sealed and passphrase is None:
            raise Invalid("the backup is encrypted: give its passphrase", fields={"passphrase": "missing"})
        if not is_sealed:
            source.seek(0)
            return _unpack(source, into)
        whole = into / ".opened"
        with whole.open("wb") as opened:
            whole.chmod(0o600)
            for piece in _unsealed(source, passphrase or ""):
                opened.write(piece)
        with whole.open("rb") as opened:
            names = _unpack(opened, into)
        whole.unlink()
        return names


def _pack(files: Mapping[str, Path], target: "BinaryIO | _Sealing") -> None:
    with tarfile.open(fileobj=target, mode="w|", format=tarfile.PAX_FORMAT) as packed:
        for name, file in files.items():
            entry = packed.gettarinfo(file, name)
            entry.mode, entry.uid, entry.gid, entry.uname, entry.gname = 0o600, 0, 0, "", ""
            with file.open("rb") as content:
                packed.addfile(entry, content)


def _unpack(source: BinaryIO, into: Path) -> list[str]:
    names: list[str] = []
    try:
        with tarfile.open(fileobj=source, mode="r|") as packed:
            for entry in packed:
                place = into / entry.name
                # An archive is as good as who brings it: it names files of its folder, and no others.
                if not entry.isreg() or not place.resolve().is_relative_to(into.resolve()):
                    raise Damaged(f"the backup has {entry.name!r}, which is no file of a backup")
                content = packed.extractfile(entry)
                assert content is not None, "it is a regular file"
                place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                with os.fdopen(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                    while piece := content.read(_FRAME):
                        file.write(piece)
                names.append(entry.name)
    except (tarfile.TarError, FileExistsError, EOFError) as wrong:
        raise Damaged("the file is not a backup of Pileus, or not whole", internal=str(wrong)) from wrong
    return names


def _key(passphrase: str, header: _Header) -> AESGCM:
    kdf = Scrypt(salt=header.salt, length=32, n=header.n, r=header.r, p=header.p)
    return AESGCM(kdf.derive(passphrase.encode()))


def _nonce(header: _Header, frame: int) -> bytes:
    return header.nonce + frame.to_bytes(4)


class _Sealing(io.RawIOBase):
    """What is written to it goes on encrypted, in frames."""

    def __init__(self, target: BinaryIO, passphrase: str) -> None:
        super().__init__()
        self._header = _Header(salt=os.urandom(16), nonce=os.urandom(8), **_WORK)
        self._key = _key(passphrase, self._header)
        self._target = target
        self._waiting = bytearray()
        self._frames = 0
        header = msgspec.json.encode(self._header)
        target.write(_MAGIC + len(header).to_bytes(_HEADER) + header)

    def writable(self) -> bool:
        return True

    def write(self, data: "bytes | bytearray | memoryview") -> int:  # type: ignore[override]
        self._waiting += data
        while len(self._waiting) > _FRAME:
            self._seal(bytes(self._waiting[:_FRAME]), _MORE)
            del self._waiting[:_FRAME]
        return len(data)

    def finish(self) -> None:
        """Write the last frame, without which the archive is not whole."""
        self._seal(bytes(self._waiting), _LAST)

    def _seal(self, piece: bytes, place: bytes) -> None:
        self._target.write(self._key.encrypt(_nonce(self._header, self._frames), piece, place))
        self._frames += 1


def _unsealed(source: BinaryIO, passphrase: str) -> Iterator[bytes]:
    """The pieces of what was encrypted, behind the magic."""
    try:
        length = int.from_bytes(source.read(_HEADER))
        if length > _LARGEST_HEADER:
            raise Damaged("the backup is damaged")
        header = msgspec.json.decode(source.read(length), type=_Header)
        if header.n > _MOST_WORK or header.r > _WORK["r"] or header.p > _WORK["p"]:
            raise Damaged("the backup asks for more work than any of ours")
        key = _key(passphrase, header)
    except (msgspec.MsgspecError, ValueError) as wrong:
        raise Damaged("the backup is damaged", internal=str(wrong)) from wrong
    piece, frame = source.read(_FRAME + _TAG), 0
    while True:
        following = source.read(_FRAME + _TAG)
        try:
            yield key.decrypt(_nonce(header, frame), piece, _MORE if following else _LAST)
        except InvalidTag as wrong:
            if frame == 0:
                raise Invalid("the passphrase is wrong", fields={"passphrase": "wrong"}) from wrong
            raise Damaged("the backup is damaged, or not whole") from wrong
        if not following:
            return
        piece, frame = following, frame + 1
