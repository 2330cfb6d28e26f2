"""Debian packages as a source of files: fetched with apt into a cache and unpacked there, never installed."""

import asyncio
import hashlib
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from uuid import uuid4

import msgspec

from pileus.guestimage.elf import needed_libraries
from pileus.kernel.errors import PileusError, Unavailable
from pileus.kernel.programs import ProgramFailed, run

_KERNEL = "linux-image-cloud-amd64"
_LIBRARY_FOLDERS = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")
_LOADER = "ld-linux-x86-64.so.2"
_PAUSES_S = (5.0, 20.0)
"""Before what was not fetched is tried again."""


class Package(msgspec.Struct, frozen=True, kw_only=True):
    """One unpacked package."""

    name: str
    file: str
    """The archive's own name for the package: NAME_VERSION_ARCHITECTURE.deb."""
    root: Path

    def find(self, path: str) -> Path:
        """A file of the package. Raises: PileusError if the package has no such file."""
        # Since Debian's merge of /usr a file may be found below either.
        for place in (path, f"usr/{path}", path.removeprefix("usr/")):
            if (self.root / place).is_file():
                return self.root / place
        raise PileusError(f"the package {self.file} has no {path}")


class Packages:
    """The packages of one build."""

    def __init__(self, packages: Iterable[Package]) -> None:
        self._by_name = {package.name: package for package in packages}

    def __getitem__(self, name: str) -> Package:
        return self._by_name[name]

    def libraries(self, programs: Iterable[Path]) -> dict[str, Path]:
        """Every shared library that the programs need, directly or not, by its name for the dynamic linker.

        Raises: PileusError if one is in none of the packages.
        """
        found: dict[str, Path] = {}
        waiting = list(programs)
        while waiting:
            binary = waiting.pop()
            for name in needed_libraries(binary.read_bytes()):
                if name not in found:
                    found[name] = self._library(name, binary)
                    waiting.append(found[name])
        if found:
            found[_LOADER] = self._library(_LOADER, self["libc6"].root)
        return found

    def _library(self, name: str, wanted_by: Path) -> Path:
        for package in self._by_name.values():
            for folder in _LIBRARY_FOLDERS:
                if (package.root / folder / name).is_file():
                    return package.root / folder / name
        raise PileusError(f"{wanted_by.name} needs {name}, which is in none of the packages of the image")

    async def run(self, program: Path, *arguments: str, timeout_s: float) -> str:
        """Run a program of a package with the libraries of the packages, whatever the machine itself has."""
        libraries = self.libraries([program])
        folders = {str(path.parent) for path in libraries.values()}
        loader = str(libraries[_LOADER])
        return await run(
            loader, "--library-path", ":".join(sorted(folders)), str(program), *arguments, timeout_s=timeout_s
        )


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """What the archive (or, without it, the cache) has for a package name."""

    name: str
    file: str
    sha256: str | None = None
    """None if only the cache knows the package."""


async def choose(names: Sequence[str], *, cache: Path, say: Callable[[str], None]) -> list[Offer]:
    """The newest version of each package that the archive offers; if apt knows none, the newest in the cache.

    Raises: Unavailable if a package is in neither.
    """
    try:
        listed = await run("apt-get", "download", "--print-uris", *names, timeout_s=60)
    except ProgramFailed as failed:
        offers = [_cached(name, cache) for name in names]
        missing = [name for name, offer in zip(names, offers, strict=True) if offer is None]
        if missing:
            raise Unavailable(
                f"no package {', '.join(missing)}: apt does not know it (has `apt-get update` been run?)",
                internal=failed.said,
            ) from failed
        say("apt knows no packages: taking those kept from before")
        return [offer for offer in offers if offer is not None]
    # 'URI' FILE SIZE SHA256:HASH
    fields = [line.split() for line in listed.splitlines() if line.startswith("'")]
    return [
        Offer(name=file.split("_")[0], file=file, sha256=digest.removeprefix("SHA256:"))
        for _, file, _, digest in fields
    ]


async def obtain(offers: Sequence[Offer], *, cache: Path, say: Callable[[str], None]) -> Packages:
    """Fetch what the cache lacks and unpack everything.

    Raises: Unavailable if a package could not be fetched.
    """
    await asyncio.to_thread(cache.mkdir, parents=True, exist_ok=True)
    missing = [offer for offer in offers if not await asyncio.to_thread(_is_complete, offer, cache)]
    if missing:
        say(f"fetching {len(missing)} Debian packages")
        for pause_s in _PAUSES_S:
            try:
                await _download(missing, cache)
                break
            except Unavailable as failed:
                # Where an archive is just being brought up to date, its files and its lists differ for moments.
                say(f"{failed.detail}; trying again in {pause_s:g} s")
                await asyncio.sleep(pause_s)
        else:
            await _download(missing, cache)
    return Packages([await _unpacked(offer, cache) for offer in offers])


async def _download(offers: Sequence[Offer], cache: Path) -> None:
    try:
        # apt-get puts packages into the working directory; its sandbox user may not be able to write there.
        await run(
            *("env", f"--chdir={cache}", "apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download"),
            *(offer.name for offer in offers),
            timeout_s=600,
        )
    except ProgramFailed as failed:
        names = ", ".join(offer.name for offer in offers)
        raise Unavailable(f"Debian packages could not be fetched: {names}", internal=failed.said) from failed
    for offer in offers:
        if not await asyncio.to_thread(_is_complete, offer, cache):
            raise Unavailable(f"{offer.file} did not arrive as the archive describes it")


def _is_complete(offer: Offer, cache: Path) -> bool:
    file = cache / offer.file
    if not file.is_file():
        return False
    return offer.sha256 is None or hashlib.sha256(file.read_bytes()).hexdigest() == offer.sha256


def _cached(name: str, cache: Path) -> Offer | None:
    files = sorted(cache.glob(f"{name}_*.deb"), key=lambda file: file.stat().st_mtime_ns)
    return Offer(name=name, file=files[-1].name) if files else None


async def _unpacked(offer: Offer, cache: Path) -> Package:
    root = cache / "unpacked" / offer.file.removesuffix(".deb")
    if not root.is_dir():
        partial = root.with_name(f".{uuid4().hex}")
        partial.mkdir(parents=True)
        try:
            await run("dpkg-deb", "-x", str(cache / offer.file), str(partial), timeout_s=120)
            partial.replace(root)
        except OSError:
            # Another build was faster: what it unpacked is the same.
            if not root.is_dir():
                raise
        finally:
            await asyncio.to_thread(shutil.rmtree, partial, ignore_errors=True)
    return Package(name=offer.name, file=offer.file, root=root)


async def kernel_of(*, cache: Path, say: Callable[[str], None]) -> str:
    """The name of the package with the kernel of our guests."""
    metapackage, *_ = await choose([_KERNEL], cache=cache, say=say)
    depends = await depends_on(metapackage, cache=cache, say=say)
    return next(name for name in depends if name.startswith("linux-image-"))


async def depends_on(offer: Offer, *, cache: Path, say: Callable[[str], None]) -> list[str]:
    """The names of the packages that a package depends on; of alternatives the first. Fetches the package."""
    await obtain([offer], cache=cache, say=say)
    field = await run("dpkg-deb", "-f", str(cache / offer.file), "Depends", timeout_s=30)
    return [alternatives.split("|")[0].split()[0] for alternatives in field.split(",") if alternatives.strip()]
