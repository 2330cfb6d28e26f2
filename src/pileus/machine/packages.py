"""The Debian packages that a host needs, and how they come onto the machine."""

import asyncio
import contextlib
import os
import re
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import msgspec

from pileus.kernel.errors import Forbidden
from pileus.kernel.programs import run

_POLICY = Path("/usr/sbin/policy-rc.d")
_POLICY_TEXT = "#!/bin/sh\n# Placed by pileus for the time of one installation: start no service.\nexit 101\n"
_INSTALL_WITHIN_S = 1800.0


class Package(msgspec.Struct, frozen=True):
    """A package and what it is for."""

    name: str
    reason: str


NEEDED = (
    Package("qemu-system-x86", "runs the guests"),
    Package("qemu-utils", "makes and converts disk images"),
    Package("ovmf", "is the UEFI firmware of guests that want one, as Windows does"),
    Package("swtpm", "is the TPM of guests that want one, as Windows does"),
    Package("swtpm-tools", "makes such a TPM"),
    Package("libvirt-daemon-system", "looks after the guests, and brings the user they run as"),
    Package("libvirt-clients", "shows the guests to an operator"),
    Package("python3-libvirt", "talks to libvirt"),
    Package("python3-ldap", "asks directories who somebody is, where people sign in by LDAP"),
    Package("iproute2", "makes links, addresses and namespaces"),
    Package("nftables", "translates addresses, and keeps guests' frames from this machine's own network stack"),
    Package("ethtool", "sets checksum offload"),
    Package("openssh-client", "reaches instances, by the command that `pileus up` prints"),
)


async def missing(wanted: Sequence[Package] = NEEDED) -> list[Package]:
    """Those that are not installed."""
    names = [each.name for each in wanted]
    said = await run("dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\\n", *names, accept=(0, 1))
    return not_installed(wanted, said)


def not_installed(wanted: Sequence[Package], said: str) -> list[Package]:
    """Those of which dpkg-query did not say that they are installed."""
    installed = {line.split()[0] for line in said.splitlines() if line.endswith(" installed")}
    return [each for each in wanted if each.name not in installed]


async def install(packages: Sequence[Package], say: Callable[[str], None]) -> None:
    """Install packages from the machine's own archive, without what they merely recommend.

    On a machine without systemd no service is started by this; with systemd, that is the distribution's business.

    Raises:
        Forbidden: we are not root.
        ProgramFailed: apt could not; `internal` has what it said.
    """
    if not packages:
        return
    if os.geteuid() != 0:
        names = " ".join(each.name for each in packages)
        raise Forbidden(f"installing packages needs root; as root: apt-get install --no-install-recommends {names}")
    for each in packages:
        say(f"installing {each.name}: {each.reason}")
    names = [each.name for each in packages]
    apt = ("env", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C", "apt-get", "-q", "--no-install-recommends")
    await run(*apt, "update", timeout_s=300)
    say(sizes(await run(*apt, "install", "--assume-no", *names, accept=(0, 1))))
    with services_stay_off():
        await run(*apt, "install", "--yes", *names, timeout_s=_INSTALL_WITHIN_S)


def sizes(said: str) -> str:
    """What apt says about the size of an installation, as one line."""
    found = re.findall(r"^(?:Need to get|After this operation,) .*?(?=[.]?$)", said, flags=re.MULTILINE)
    return "; ".join(found) or "apt does not say how large they are"


def has_systemd() -> bool:
    """Whether systemd runs this machine: sd_booted(3)."""
    return Path("/run/systemd/system").is_dir()


@contextlib.contextmanager
def services_stay_off(policy: Path = _POLICY) -> Generator[None]:
    """Let no package's script start its service; a policy that somebody else placed is theirs, and stays."""
    if has_systemd():
        yield
        return
    with contextlib.suppress(FileNotFoundError):
        # An installation that was cut off left it.
        if policy.read_text(encoding="utf-8") == _POLICY_TEXT:
            policy.unlink()
    fresh = policy.with_name(f"{policy.name}.pileus")
    fresh.write_text(_POLICY_TEXT, encoding="utf-8")
    fresh.chmod(0o755)
    try:
        os.link(fresh, policy)
        placed = True
    except FileExistsError:
        placed = False
    finally:
        fresh.unlink()
    try:
        yield
    finally:
        if placed:
            policy.unlink(missing_ok=True)


async def _main() -> None:
    await install(await missing(), print)


if __name__ == "__main__":
    asyncio.run(_main())
