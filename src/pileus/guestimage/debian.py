"""A full Debian with the real cloud-init, of the release that this machine runs: to show that such images work.

Made by mmdebstrap, which is taken from its package and not installed; the machine must have perl and be root's.
"""

import asyncio
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from pileus.guestimage import built, disk
from pileus.guestimage.built import BuiltImage
from pileus.guestimage.packages import Packages, choose, obtain
from pileus.kernel.errors import Unavailable
from pileus.kernel.programs import run
from pileus.kernel.units import GIB, size_text

_INSTALLED = (
    *("systemd-sysv", "udev", "dbus", "linux-image-cloud-amd64", "initramfs-tools", "zstd", "cloud-init"),
    *("cloud-guest-utils", "cloud-initramfs-growroot", "openssh-server", "qemu-guest-agent", "ifupdown"),
    *("isc-dhcp-client", "iproute2", "iputils-ping", "e2fsprogs", "ca-certificates", "sudo", "eject", "curl"),
)
_LEFT_OUT = ("/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*")
_FILES = {
    "etc/fstab": "LABEL=rootfs / ext4 errors=remount-ro,x-systemd.growfs 0 1\n",
    "etc/cloud/cloud.cfg.d/99_pileus.cfg": (
        "datasource_list: [ NoCloud, ConfigDrive, OpenStack, Ec2, None ]\nlocale: C.UTF-8\n"
    ),
    # Empty: systemd makes a new one at the first boot.
    "etc/machine-id": "",
}
_EVERY_GUEST_ITS_OWN = ("etc/hostname", "etc/ssh/ssh_host_*", "var/lib/dbus/machine-id", "var/lib/systemd/random-seed")
_COMMAND_LINE = "root=LABEL=rootfs ro console=tty0 console=ttyS0 net.ifnames=0"
_VIRTUAL_SIZE_BYTES = 2 * GIB


async def build_debian(output: Path, *, cache: Path, say: Callable[[str], None]) -> BuiltImage:
    """Build a Debian image, or return at once if it is there and the way of building has not changed.

    Takes minutes and 2 GB beside `output`. The default user is `debian`, with the SSH keys that cloud-init is given.

    Raises:
        Unavailable: packages could not be had.
        ProgramFailed: one of the programs failed.
    """
    sources = await _sources()
    recipe = await asyncio.to_thread(built.recipe, *sources)
    if found := await asyncio.to_thread(built.find, output, recipe):
        return found
    packages = await obtain(
        await choose(["mmdebstrap", *disk.GRUB_PACKAGES], cache=cache, say=say), cache=cache, say=say
    )
    await asyncio.to_thread(output.parent.mkdir, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".debian-") as work:
        file, root = Path(work, output.name), Path(work, "root")
        say("installing Debian into a folder")
        await _install(root, packages, sources)
        await asyncio.to_thread(_finish, root)
        say(f"building {output.name}")
        await _write(file, packages, root)
        image = await asyncio.to_thread(
            built.place,
            *(file, output, recipe),
            virtual_size_bytes=_VIRTUAL_SIZE_BYTES,
            description="Debian with cloud-init; log in as debian with an SSH key",
        )
    say(f"{output.name} is {size_text(image.size_bytes)}")
    return image


async def _sources() -> list[str]:
    """The lines of sources.list for what this machine gets from Debian itself."""
    form = "$(ORIGIN) deb $(REPO_URI) $(RELEASE) $(COMPONENT)"
    listed = await run("apt-get", "indextargets", "--format", form, "Created-By: Packages", timeout_s=60)
    # The origin of backports has a name of its own.
    sources = {line.removeprefix("Debian ") for line in listed.splitlines() if line.startswith("Debian deb ")}
    if not sources:
        raise Unavailable("apt knows no packages of Debian (has `apt-get update` been run?)")
    return sorted(sources)


async def _install(root: Path, packages: Packages, sources: list[str]) -> None:
    mmdebstrap = packages["mmdebstrap"].find("usr/bin/mmdebstrap")
    # The suite's name is the shortest: the others are it with -updates and -security.
    suite = min((source.split()[2] for source in sources), key=len)
    # It mounts /dev of the machine below `root`. Ended half-way it must take its programs and mounts with it, for
    # `root` is deleted then.
    alone = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
    await run(
        *alone,
        *("env", f"PATH={mmdebstrap.parent}:/usr/sbin:/usr/bin:/sbin:/bin"),
        *(str(mmdebstrap), "--mode=root", "--variant=minbase", f"--include={','.join(_INSTALLED)}"),
        *('--aptopt=Apt::Install-Recommends "false"', "--dpkgopt=force-unsafe-io"),
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in _LEFT_OUT),
        *(suite, str(root), *sources),
        timeout_s=1800,
    )


def _finish(root: Path) -> None:
    for pattern in _EVERY_GUEST_ITS_OWN:
        for path in root.glob(pattern):
            path.unlink()
    for path, content in _FILES.items():
        (root / path).write_text(content)
    shutil.rmtree(root / "var/lib/apt/lists", ignore_errors=True)


async def _write(output: Path, packages: Packages, root: Path) -> None:
    kernel, initrd = await asyncio.to_thread(_kernel_and_initrd, root)
    file_system = disk.FileSystem(label="rootfs", uuid="50696c65-7573-4d69-8e69-526f6f740001", content=root)
    await disk.write_disk(
        output,
        loader=await disk.make_loader(packages, command_line=_COMMAND_LINE, work=output.parent),
        kernel=kernel,
        initrd=initrd,
        size_bytes=_VIRTUAL_SIZE_BYTES,
        file_system=file_system,
    )


def _kernel_and_initrd(root: Path) -> tuple[bytes, bytes]:
    kernel = max(root.glob("boot/vmlinuz-*"))
    return kernel.read_bytes(), kernel.with_name(kernel.name.replace("vmlinuz", "initrd.img")).read_bytes()
