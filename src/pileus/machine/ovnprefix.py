"""Open vSwitch and OVN new enough to be trusted with tenants' packets.

The versions of Debian 12 (3.1 and 23.03) have a conntrack assertion that a tenant's packet can trigger, and answer no
DNS query with EDNS. Unless the machine has newer ones itself, those of Debian 13 are unpacked into a folder of our own,
with the libraries that they need and their own dynamic loader: nothing is installed.
"""

import asyncio
import hashlib
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from pileus.kernel.errors import Unavailable
from pileus.kernel.files import write_atomically
from pileus.kernel.programs import ProgramFailed, run
from pileus.kernel.units import size_text

OLDEST_OVS = (3, 3)
OLDEST_OVN = (24, 3)

_SUITE = "trixie"
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_PACKAGES = (
    *("openvswitch-switch", "openvswitch-common", "ovn-common", "ovn-central", "ovn-host"),
    *("libc6", "libssl3t64", "libunbound8", "libcap-ng0", "libbpf1", "libelf1t64", "libxdp1", "libnuma1", "zlib1g"),
    *("libevent-2.1-7t64", "libzstd1", "libgcc-s1", "libexpat1"),
)
_PROGRAMS = (
    *("bin/ovn-appctl", "bin/ovn-controller", "bin/ovn-nbctl", "bin/ovn-northd", "bin/ovn-sbctl", "bin/ovn-trace"),
    *("bin/ovs-appctl", "bin/ovs-dpctl", "bin/ovs-ofctl", "bin/ovs-vsctl", "bin/ovsdb-client", "bin/ovsdb-tool"),
    *("sbin/ovsdb-server", "lib/openvswitch-switch/ovs-vswitchd"),
)
_LIBRARIES = "usr/lib/x86_64-linux-gnu"
_LOADER = "usr/lib64/ld-linux-x86-64.so.2"
_SUMS = "sha256sums.json"
_MADE = "made.json"


class OvnPrograms(msgspec.Struct, frozen=True, kw_only=True):
    """Where the programs of one Open vSwitch and OVN are, and which they are."""

    folders: tuple[str, ...]
    """Searched in this order."""
    schemas: str
    """The folder that has `openvswitch/` and `ovn/` with the schemas of their databases."""
    ovs: str
    ovn: str
    own: bool
    """Whether they were unpacked by us; else they are the machine's."""

    def __call__(self, name: str) -> str:
        """The path of a program, such as `ovs-vsctl`."""
        found = shutil.which(name, path=":".join(self.folders))
        if found is None:
            raise Unavailable(f"{name} is not in {', '.join(self.folders)}")
        return found


async def ovn_programs(cache: Path, say: Callable[[str], None]) -> OvnPrograms:
    """The programs to use: the machine's own if they are new enough, else those of Debian 13, fetched on first use.

    Args:
        cache: a folder of ours; it keeps the packages, so that they can be unpacked again without a network.
        say: told what is fetched.

    Raises:
        Unavailable: they are needed, and neither cached nor to be had.
    """
    return await known_programs(cache) or await _of_our_own(_folder(cache), say)


async def known_programs(cache: Path) -> OvnPrograms | None:
    """The programs to use, if nothing has to be fetched or unpacked for them."""
    return await _of_the_machine() or _read_made(_folder(cache) / "prefix")


def _folder(cache: Path) -> Path:
    """Where the packages and the prefix are; a prefix works only under the path for which it was made."""
    return (cache / "ovn").resolve()


async def _of_the_machine() -> OvnPrograms | None:
    folders = ("/usr/sbin", "/usr/bin")
    if not all(shutil.which(each, path=":".join(folders)) for each in ("ovs-vswitchd", "ovn-controller", "ovn-northd")):
        return None
    ovs, ovn = await asyncio.gather(run("ovs-vswitchd", "--version"), run("ovn-controller", "--version"))
    if version(ovs) < OLDEST_OVS or version(ovn) < OLDEST_OVN:
        return None
    return OvnPrograms(folders=folders, schemas="/usr/share", ovs=_dotted(ovs), ovn=_dotted(ovn), own=False)


def version(said: str) -> tuple[int, int]:
    """Major and minor version from what a program says to `--version`; (0, 0) if it says none."""
    found = re.search(r"\b(\d+)\.(\d+)", said.partition("\n")[0])
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _dotted(said: str) -> str:
    return "{}.{:02}".format(*version(said)) if version(said)[0] > 9 else "{}.{}".format(*version(said))


async def _of_our_own(folder: Path, say: Callable[[str], None]) -> OvnPrograms:
    prefix = folder / "prefix"
    debs = folder / "packages"
    if not await asyncio.to_thread(_whole, debs):
        say(f"fetching Open vSwitch and OVN of Debian 13 into {folder}; nothing of it is installed")
        await _fetch(debs)
        say(f"fetched {size_text(_size_bytes(debs))}")
    return await _unpack(debs, prefix)


def _read_made(prefix: Path) -> OvnPrograms | None:
    """What is in a finished prefix; None if there is none, or it was made for another place."""
    try:
        made = msgspec.json.decode((prefix / _MADE).read_bytes(), type=OvnPrograms)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None
    return made if made.folders == (str(prefix / "w"),) else None


def _whole(debs: Path) -> bool:
    """Whether the cached packages are all there, and are those that apt has verified."""
    try:
        sums = msgspec.json.decode((debs / _SUMS).read_bytes(), type=dict[str, str])
        return bool(sums) and all(_sum(debs / name) == wanted for name, wanted in sums.items())
    except (FileNotFoundError, msgspec.MsgspecError):
        return False


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size_bytes(debs: Path) -> int:
    return sum(each.stat().st_size for each in _debs(debs))


def _debs(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.deb"))


async def _fetch(debs: Path) -> None:
    """Download the packages by apt, which verifies them, with a configuration and index of our own."""
    debs.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=debs.parent, prefix=".fetch-") as scratch:
        work = Path(scratch)
        fresh = work / "packages"
        for each in (fresh, work / "lists/partial", work / "cache/archives/partial"):
            each.mkdir(parents=True)
        (work / "status").touch()
        source = f"deb [signed-by={_KEYRING}] {await _archive()} {_SUITE} main\n"
        (work / "sources.list").write_text(source, encoding="utf-8")
        options = {
            "Dir::Etc::SourceList": work / "sources.list",
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::State": work,
            "Dir::State::Lists": work / "lists",
            "Dir::State::status": work / "status",
            "Dir::Cache": work / "cache",
            "APT::Sandbox::User": "root",
            "APT::Default-Release": _SUITE,
        }
        apt = ("apt-get", "-q", *(f"-o{name}={value}" for name, value in options.items()))
        try:
            await run(*apt, "update", timeout_s=180)
            await run("env", f"--chdir={fresh}", *apt, "download", *_PACKAGES, timeout_s=600)
        except ProgramFailed as failed:
            raise Unavailable(
                "Open vSwitch and OVN of Debian 13 cannot be fetched, and this machine has none that are new enough",
                internal=failed.internal,
            ) from failed
        sums = {each.name: _sum(each) for each in _debs(fresh)}
        write_atomically(fresh / _SUMS, msgspec.json.encode(sums), mode=0o644)
        shutil.rmtree(debs, ignore_errors=True)
        fresh.rename(debs)


async def _archive() -> str:
    """The Debian archive that this machine uses. Raises Unavailable if apt knows of none."""
    said = await run("apt-get", "indextargets", "--format", "$(LABEL) $(REPO_URI)", "Created-By: Packages")
    for line in said.splitlines():
        label, _, uri = line.partition(" ")
        if label == "Debian":
            return uri
    raise Unavailable("apt knows of no Debian archive on this machine: see sources.list(5), and run `apt-get update`")


async def _unpack(debs: Path, prefix: Path) -> OvnPrograms:
    with tempfile.TemporaryDirectory(dir=prefix.parent, prefix=".unpack-") as scratch:
        fresh = Path(scratch) / "prefix"
        (fresh / "w").mkdir(parents=True)
        for deb in _debs(debs):
            await run("dpkg-deb", "-x", str(deb), str(fresh), timeout_s=120)
        for program in _PROGRAMS:
            wrapper = fresh / "w" / Path(program).name
            wrapper.write_text(_wrapper(prefix, program), encoding="utf-8")
            wrapper.chmod(0o755)
        shutil.rmtree(prefix, ignore_errors=True)
        fresh.rename(prefix)
    ovs, ovn = await asyncio.gather(
        run(str(prefix / "w/ovs-vswitchd"), "--version"), run(str(prefix / "w/ovn-controller"), "--version")
    )
    made = OvnPrograms(
        folders=(str(prefix / "w"),), schemas=str(prefix / "usr/share"), ovs=_dotted(ovs), ovn=_dotted(ovn), own=True
    )
    write_atomically(prefix / _MADE, msgspec.json.encode(made), mode=0o644)
    return made


def _wrapper(prefix: Path, program: str) -> str:
    """A script that becomes the program: by its own loader, with its own libraries, under its own name."""
    loader = f"'{prefix / _LOADER}' --library-path '{prefix / _LIBRARIES}' --argv0 {Path(program).name}"
    return f"#!/bin/sh\nexec {loader} '{prefix / 'usr' / program}' \"$@\"\n"
