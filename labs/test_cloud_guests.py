"""What becomes of a guest's devices through a whole cloud on the real engines: size, media, limits, a new disk."""

import re
import struct
from collections.abc import Iterator

import pytest
from cloud_host import CloudHost, cloud_host, missing
from installer_iso import installer_iso
from patience import BOOTS_WITHIN_S, until
from test_cloud import guest, instance, its_agent_answers, nbctl, virsh

from pileus.agent.hypervisor.libvirt.domain import domain_name
from pileus.agent.hypervisor.libvirt.firmware import traits
from pileus.kernel.ids import InstanceId
from pileus.kernel.units import GIB, KIB
from pileus.link.templates import FRAMES, GuestTemplate

lacks = sorted(FRAMES[GuestTemplate.LINUX_UEFI].needs - traits())
pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(missing() is not None, reason=f"cloud lab: {missing()}"),
    pytest.mark.skipif(bool(lacks), reason=f"this machine lacks {', '.join(lacks)} (ovmf, swtpm-tools)"),
]


@pytest.fixture(scope="module")
def cloud() -> Iterator[CloudHost]:
    with cloud_host() as host:
        host.up()
        # Each story leaves its guests behind; the machine may have few cores.
        host.cli("pool change default --cpu-overcommit 16")
        yield host


def an_iso() -> bytes:
    """The least that counts as an ISO 9660 image, with words of ours in its first sector."""
    image = bytearray(20 * 2 * KIB)
    image[:6] = b"rescue"
    image[32 * KIB : 32 * KIB + 6] = b"\x01CD001"
    struct.pack_into("<I", image, 32 * KIB + 80, 20)
    return bytes(image)


def test_a_guest_keeps_its_firmware_through_resize_media_limits_and_rebuild(cloud: CloudHost) -> None:
    cloud.cli(f"keypair create mine --public-key @{cloud.data}/ssh/id_ed25519.pub")
    cloud.cli("security-rule create --group default --protocol tcp --port-min 22 --port-max 22")
    size = "--vcpus 1 --memory-mib 256 --disk-gib 1"
    cloud.cli(f"instance create firm --image mini {size} --template linux-uefi --keypair mine")
    cloud.cli("floating-ip create --instance firm")
    firm = guest(cloud, "firm").awake()
    assert firm.run("cat /sys/firmware/efi/fw_platform_size /sys/class/tpm/tpm0/tpm_version_major") == "64\n2\n"
    firm.run("echo mine > /srv/mine; sync")

    # Media come and go while it runs.
    (cloud.folder / "rescue.iso").write_bytes(an_iso())
    cloud.cli(f"image upload rescue --file {cloud.folder}/rescue.iso --format iso")
    cloud.cli("instance insert firm --image rescue")
    assert firm.run("until head -c 6 /dev/sr0 | grep rescue; do :; done 2>/dev/null") == "rescue\n"
    cloud.cli("instance eject firm")
    firm.run("until ! head -c 6 /dev/sr0; do :; done 2>/dev/null")

    # So do limits.
    domain = domain_name(InstanceId(instance(cloud, "firm")["id"]))
    cloud.cli("instance set-limits firm --cpu-percent 90 --disk-iops 5000")
    assert "5000" in re.findall(r"total_iops_sec *: (\d+)", virsh(cloud, "blkdeviotune", domain, "vda"))
    assert re.findall(r"vcpu_quota *: (-?\d+)", virsh(cloud, "schedinfo", domain)) == ["90000"]
    cloud.cli("instance set-limits firm")
    assert re.findall(r"vcpu_quota *: (-?\d+)", virsh(cloud, "schedinfo", domain)) in (["-1"], ["17592186044415"])

    # Another size, with the same data.
    assert "stop it" in cloud.refused("instance resize firm --vcpus 2", status=5)
    cloud.cli("instance stop firm")
    cloud.cli("instance resize firm --vcpus 2 --memory-mib 320 --disk-gib 2")
    cloud.cli("instance start firm")
    firm.awake()
    found = firm.run(
        "grep -c ^processor /proc/cpuinfo; cat /sys/class/block/vda/size /srv/mine; ls -d /sys/firmware/efi"
    )
    assert found == f"2\n{2 * GIB // 512}\nmine\n/sys/firmware/efi\n"

    # Another disk, with the same size, address and firmware.
    (cloud.folder / "known-firm").unlink()
    cloud.cli("instance rebuild firm")
    firm.awake()
    found = firm.run(
        "grep -c ^processor /proc/cpuinfo; cat /sys/class/tpm/tpm0/tpm_version_major; ls /srv/mine", accept=(1,)
    )
    assert found == "2\n2\n"
    state = cloud.layout.libvirt / "lib/swtpm" / instance(cloud, "firm")["id"]
    assert state.exists()
    id = instance(cloud, "firm")["id"]
    cloud.cli("instance delete firm")
    cloud.cli(f"instance purge {id}")
    until(lambda: not state.exists(), "the TPM's state has gone with its instance")


def test_an_old_guest_starts_from_ide_and_takes_a_volume_only_while_it_is_stopped(cloud: CloudHost) -> None:
    cloud.cli("instance create old --image mini --vcpus 1 --memory-mib 128 --template legacy")
    domain = domain_name(InstanceId(instance(cloud, "old")["id"]))
    log = cloud.layout.log / "instances" / f"{domain}.log"
    until(lambda: b":~# " in log.read_bytes(), "it has booted from its IDE disk", within_s=BOOTS_WITHIN_S)
    cloud.cli("volume create data --size-gib 1")
    assert "stop it" in cloud.refused("volume attach data --instance old", status=5)
    cloud.cli("instance stop old")
    cloud.cli("volume attach data --instance old")
    cloud.cli("instance start old")
    assert re.findall(r"^ hd([a-d]) ", virsh(cloud, "domblklist", domain), re.MULTILINE) == ["a", "b", "d"]


def test_ports_snapshots_passwords_and_batches_show_in_guests(cloud: CloudHost) -> None:
    if not instance(cloud, "hello")["floating_addresses"]:
        cloud.cli("floating-ip create --instance hello")
    hello = guest(cloud, "hello").awake()
    cloud.cli("instance create other --image mini --vcpus 1 --memory-mib 128")
    domain = domain_name(InstanceId(instance(cloud, "other")["id"]))

    # A port comes while it runs, and moves to another.
    mac = cloud.ask("port create second --network default")["mac"]
    cloud.cli("port attach second --instance hello")
    assert hello.run("until cat /sys/class/net/eth1/address; do :; done 2>/dev/null") == f"{mac}\n"
    cloud.cli("port move second --instance other")
    hello.run("while [ -d /sys/class/net/eth1 ]; do :; done")
    until(lambda: mac in virsh(cloud, "domiflist", domain), "the other has it")

    # What its ports pass is one of its limits.
    cloud.cli("instance set-limits hello --network-mbit 50")
    rates = ("--bare", "--columns=bandwidth", "list", "QoS")
    until(lambda: nbctl(cloud, *rates).count("rate=50000") == 2, "its port passes 50 Mbit/s each way")
    cloud.cli("instance set-limits hello")
    until(lambda: "rate=" not in nbctl(cloud, *rates), "its port passes all again")

    # Back to a snapshot.
    hello.run("echo before > /srv/mark; sync")
    cloud.cli("snapshot create before --instance hello")
    hello.run("echo after > /srv/mark; sync")
    cloud.cli("snapshot revert before")
    assert hello.awake().run("cat /srv/mark") == "before\n"

    # A password, by the agent in a guest that runs; in the disk of one that does not. The small image has none there.
    its_agent_answers(cloud, "hello")
    cloud.cli("instance reset-password hello --user root --password", "correct horse")
    assert hello.run("grep -c '^root:[$]' /etc/shadow") == "1\n"
    assert "reboot" in cloud.refused("instance batch --atomic --action reboot --ids hello --ids other", status=5)
    cloud.cli("instance batch --atomic --action stop --ids hello --ids other")
    assert {instance(cloud, name)["state"] for name in ("hello", "other")} == {"stopped"}
    assert "no Linux system" in cloud.refused("instance reset-password other --user root", status=6)

    # Deleted, had back, and all of it runs again.
    other = instance(cloud, "other")["id"]
    cloud.cli("instance delete other")
    cloud.cli(f"instance undelete {other}")
    cloud.cli("instance batch --atomic --action start --ids hello --ids other")
    assert {instance(cloud, name)["state"] for name in ("hello", "other")} == {"running"}
    assert mac not in virsh(cloud, "domiflist", domain), "a port that was made by itself is set free"
    hello.awake()


def test_a_system_is_installed_from_an_iso_and_its_disk_becomes_an_image_and_a_snapshot_an_instance(
    cloud: CloudHost,
) -> None:
    cloud.cli(f"keypair create installer --public-key @{cloud.data}/ssh/id_ed25519.pub")
    cloud.cli("security-group create installer")
    cloud.cli("security-rule create --group installer --protocol tcp --port-min 22 --port-max 22")
    (cloud.folder / "installer.iso").write_bytes(installer_iso())
    cloud.cli(f"image upload installer --file {cloud.folder}/installer.iso --format iso")
    more = "--vcpus 1 --memory-mib 256 --keypair installer --security-group installer"
    cloud.cli(f"instance create fresh --image installer {more} --disk-gib 1")
    cloud.cli("floating-ip create --instance fresh")

    # It has booted from the ISO, for there was nothing else; it installs itself, and does without from then on.
    fresh = guest(cloud, "fresh").awake()
    assert fresh.run("grep -c /srv /proc/mounts", accept=(1,)) == "0\n"
    fresh.run("mount -t iso9660 /dev/sr0 /mnt && zcat /mnt/disk.gz > /dev/vda && sync && umount /mnt", within_s=300)
    cloud.cli("instance eject fresh")
    (cloud.folder / "known-fresh").unlink()
    cloud.cli("instance reset fresh")
    fresh.awake()
    fresh.run("echo installed > /srv/mark; sync; grep /srv /proc/mounts")
    boot = fresh.boot()

    # Its disk becomes an image, and a snapshot, while it runs.
    its_agent_answers(cloud, "fresh")
    cloud.cli("image build golden --instance fresh")
    image = next(each for each in cloud.records("images") if each["name"] == "golden")
    assert (image["state"], image["consistency"], image["virtual_size_bytes"]) == ("active", "file-systems", GIB)
    assert not any((cloud.data / "volumes/packed").glob("*")), "what was packed is gone from the host"
    cloud.cli("snapshot create marked --instance fresh")
    fresh.run("echo later > /srv/mark; sync")
    (cloud.folder / "told").write_text('#!/bin/sh\nhostname > "/srv/told-$(hostname)"\n')
    cloud.cli(f"instance create second --image golden {more} --user-data @{cloud.folder}/told")
    cloud.cli("instance create third --snapshot marked --keypair installer --security-group installer")
    for name in ("second", "third"):
        cloud.cli(f"floating-ip create --instance {name}")
        (cloud.folder / f"known-{name}").unlink(missing_ok=True)
        assert guest(cloud, name).awake().run("cat /srv/mark; hostname") == f"installed\n{name}\n"
    told = "until [ -e /srv/told-second ]; do sleep 1; done; cat /srv/told-second"
    assert guest(cloud, "second").run(told) == "second\n", "its first boot is a first boot again"
    assert fresh.run("cat /srv/mark") == "later\n"
    assert fresh.boot() == boot, "it has not noticed"
