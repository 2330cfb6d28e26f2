"""What a guest is told about itself."""

import base64

import msgspec
import pytest
from msgspec import structs

from pileus.agent.metadata import EC2_VERSIONS, OPENSTACK_VERSIONS, Metadata
from pileus.kernel.eui64 import slaac_address
from pileus.kernel.ids import NetworkId, new_id
from pileus.link.guests import FirstBoot, GuestSpec

from .conftest import a_guest


@pytest.fixture
def guest() -> GuestSpec:
    first_boot = FirstBoot(
        hostname="web-1",
        public_keys=(("mine", "ssh-ed25519 AAAA me"), ("yours", "ssh-rsa BBBB you")),
        user_data="#cloud-config\npackages: [nginx]\n",
        availability_zone="a",
    )
    return structs.replace(a_guest(), first_boot=first_boot)


async def ask(guest: GuestSpec, path: str, *, method: str = "GET", address: str = "") -> tuple[int, str, bytes]:
    nic = guest.nics[0]
    return await Metadata(lambda: [a_guest(), guest]).answer(nic.network, address or nic.addresses[0], method, path)


async def text(guest: GuestSpec, path: str) -> str:
    status, _, body = await ask(guest, path)
    assert status == 200, path
    return body.decode()


async def test_openstack_metadata_has_names_and_keys(guest: GuestSpec) -> None:
    told = msgspec.json.decode(await text(guest, "/openstack/latest/meta_data.json"))
    assert (told["uuid"], told["hostname"], told["availability_zone"]) == (guest.id, "web-1", "a")
    assert told["public_keys"] == {"mine": "ssh-ed25519 AAAA me", "yours": "ssh-rsa BBBB you"}


async def test_openstack_networks_are_configured_by_dhcp(guest: GuestSpec) -> None:
    told = msgspec.json.decode(await text(guest, "/openstack/latest/network_data.json"))
    (link,), (network,) = told["links"], told["networks"]
    assert (link["ethernet_mac_address"], link["mtu"]) == (guest.nics[0].mac, 1442)
    assert (network["link"], network["type"]) == (link["id"], "ipv4_dhcp")


async def test_openstack_networks_say_how_a_guest_comes_to_its_ipv6_address(guest: GuestSpec) -> None:
    nic = guest.nics[0]
    for address, way in ((slaac_address("fd00:1::/64", nic.mac), "ipv6_slaac"), ("fd00:1::7", "ipv6_dhcpv6-stateful")):
        both = structs.replace(guest, nics=(structs.replace(nic, addresses=(nic.addresses[0], address)),))
        told = msgspec.json.decode(await text(both, "/openstack/latest/network_data.json"))
        assert [network["type"] for network in told["networks"]] == ["ipv4_dhcp", way]


async def test_versions_are_listed_as_cloud_init_reads_them(guest: GuestSpec) -> None:
    assert (await text(guest, "/openstack")).splitlines() == [*OPENSTACK_VERSIONS, "latest"]
    assert set((await text(guest, "/")).splitlines()) == {"openstack", *EC2_VERSIONS, "latest"}


async def test_both_layouts_say_the_same(guest: GuestSpec) -> None:
    openstack = msgspec.json.decode(await text(guest, "/openstack/latest/meta_data.json"))
    assert await text(guest, "/latest/meta-data/instance-id") == openstack["uuid"]
    assert await text(guest, "/2009-04-04/meta-data/local-hostname") == openstack["hostname"]
    assert await text(guest, "/latest/meta-data/public-keys/0/openssh-key") == openstack["public_keys"]["mine"]
    assert await text(guest, "/latest/user-data") == await text(guest, "/openstack/latest/user_data")


async def test_ec2_folders_are_listed_as_its_clients_read_them(guest: GuestSpec) -> None:
    listed = (await text(guest, "/latest/meta-data/")).splitlines()
    assert {"instance-id", "local-hostname", "public-keys/", "placement/"} <= set(listed)
    assert (await text(guest, "/latest/meta-data/public-keys/")).splitlines() == ["0=mine", "1=yours"]
    assert (await text(guest, "/latest/meta-data/public-keys/1/")).splitlines() == ["openssh-key"]


async def test_binary_user_data_arrives_as_it_was(guest: GuestSpec) -> None:
    data = bytes(range(256))
    boot = FirstBoot(hostname="web-1", user_data=base64.b64encode(data).decode(), user_data_base64=True)
    assert (await ask(structs.replace(guest, first_boot=boot), "/latest/user-data"))[2] == data


async def test_without_user_data_there_is_none(guest: GuestSpec) -> None:
    bare = structs.replace(guest, first_boot=FirstBoot(hostname="web-1"))
    for path in ("/latest/user-data", "/openstack/latest/user_data", "/latest/meta-data/public-keys/"):
        assert (await ask(bare, path))[0] == 404


async def test_strangers_are_told_nothing(guest: GuestSpec) -> None:
    metadata = Metadata(lambda: [guest])
    nic = guest.nics[0]
    for network, address in ((NetworkId(new_id()), nic.addresses[0]), (nic.network, "10.9.9.9")):
        for method, path in (("GET", "/latest/meta-data/instance-id"), ("PUT", "/latest/api/token")):
            status, _, body = await metadata.answer(network, address, method, path)
            assert status == 404
            assert guest.id.encode() not in body


async def test_a_token_is_given_to_who_puts_for_one(guest: GuestSpec) -> None:
    status, _, token = await ask(guest, "/latest/api/token", method="PUT")
    assert status == 200
    assert len(token) > 20
    assert (await ask(guest, "/latest/api/token"))[0] == 405


@pytest.mark.parametrize("method", ["POST", "DELETE", "PUT", "PATCH"])
async def test_nothing_can_be_written(guest: GuestSpec, method: str) -> None:
    assert (await ask(guest, "/latest/user-data", method=method))[0] == 405


@pytest.mark.parametrize(
    "path", ["/../../etc/passwd", "/latest/meta-data/none", "//", "", "/latest/../latest/user-data"]
)
async def test_odd_paths_do_no_harm(guest: GuestSpec, path: str) -> None:
    status, _, body = await ask(guest, path)
    assert status in {200, 404}
    assert b"root:" not in body
