"""The first instance of a cloud: `hello`, reachable from this machine, to see that all of it works."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from pileus.client.client import Client
from pileus.client.images import upload
from pileus.guestimage import BuiltImage
from pileus.installation.places import Places
from pileus.kernel.errors import TimedOut
from pileus.kernel.files import write_atomically

NAME = "hello"
IMAGE = "mini"
_ANSWERS_WITHIN_S = 400.0
_SSH = 22


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """An instance that runs and answers."""

    name: str
    address: str
    floating: str
    console: str
    """The command that opens its console."""
    ssh: str
    """The command that reaches it through its floating IP."""


async def first_instance(client: Client, places: Places, image: BuiltImage, say: Callable[[str], None]) -> Hello:
    """Have the image, a key, a rule that lets SSH in, the instance with a floating IP; wait until it answers.

    Whatever of these is there already is not made again.
    """
    image_id = await _image(client, image, say)
    keypair_id = await _keypair(client, places.key)
    group_ids = await _groups(client)
    flavor = await _named(client, "/v1/flavors", "tiny")
    assert flavor is not None, "a cloud begins with flavors"
    instance = await _named(client, "/v1/instances", NAME)
    if instance is None:
        say("creating the instance hello")
        wish = {
            "name": NAME,
            "image_id": image_id,
            "flavor_id": flavor["id"],
            "keypair_ids": [keypair_id],
            "security_group_ids": group_ids,
        }
        made = (await client.send("POST", "/v1/instances", wish, plans=True)).body
        await client.wait(made["task_id"])
        instance = await _named(client, "/v1/instances", NAME)
        assert instance is not None, "its task is done"
    if not instance["floating_addresses"]:
        await client.send("POST", "/v1/floating-ips", {"instance_id": instance["id"]}, plans=True)
        instance = (await client.get(f"/v1/instances/{instance['id']}")).body
    floating = instance["floating_addresses"][0]
    say(f"waiting for {NAME} to answer at {floating}")
    await _answers(floating)
    return Hello(
        name=NAME,
        address=instance["addresses"][0],
        floating=floating,
        console=f"{places.command} instance console {NAME}",
        # Host keys of a cloud that comes and goes are no business of the user's own file.
        ssh=f"ssh -i {places.key} -o UserKnownHostsFile={places.key.parent}/known_hosts "
        f"-o StrictHostKeyChecking=accept-new root@{floating}",
    )


async def _image(client: Client, image: BuiltImage, say: Callable[[str], None]) -> str:
    found = await _named(client, "/v1/images", IMAGE)
    if found is not None and found["state"] == "active":
        return str(found["id"])
    if found is not None:
        await client.send("DELETE", f"/v1/images/{found['id']}", plans=True)
    say(f"uploading the image {IMAGE}")
    fields = {
        "name": IMAGE,
        "format": "qcow2",
        "public": True,
        "default_user": "root",
        "description": image.description,
    }
    made = await upload(client, fields, image.path, progress=lambda _sent, _size: None, expected=image.sha256)
    return str(made["id"])


async def _keypair(client: Client, key: Path) -> str:
    public = key.with_suffix(".pub")
    if not public.exists():
        _make_key(key, public)
    found = await _named(client, "/v1/keypairs", NAME)
    if found is None:
        wish = {"name": NAME, "public_key": public.read_text()}
        found = (await client.send("POST", "/v1/keypairs", wish, plans=True)).body
    return str(found["id"])


def _make_key(key: Path, public: Path) -> None:
    key.parent.mkdir(mode=0o700, exist_ok=True)
    private = Ed25519PrivateKey.generate()
    write_atomically(key, private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()), mode=0o600)
    line = private.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    write_atomically(public, line + b" hello\n", mode=0o600)


async def _groups(client: Client) -> list[str]:
    """The project's default group, and one that lets SSH and ping in from everywhere."""
    default = await _named(client, "/v1/security-groups", "default")
    assert default is not None, "every project has one"
    reachable = await _named(client, "/v1/security-groups", "reachable")
    if reachable is None:
        wish = {"name": "reachable", "description": "SSH and ping from everywhere."}
        reachable = (await client.send("POST", "/v1/security-groups", wish, plans=True)).body
    path = "/v1/security-rules"
    ruled = [rule async for rule in client.records(path, group_id=reachable["id"], direction="ingress")]
    for protocol, ports in (("tcp", {"port_min": _SSH, "port_max": _SSH}), ("icmp", {})):
        if not any(rule["protocol"] == protocol for rule in ruled):
            wish = {"group_id": reachable["id"], "protocol": protocol, **ports}
            await client.send("POST", path, wish, plans=True)
    return [str(default["id"]), str(reachable["id"])]


async def _named(client: Client, path: str, name: str) -> dict[str, Any] | None:
    async for record in client.records(path, name=name):
        return record
    return None


async def _answers(address: str) -> None:
    """Wait until the SSH server of the guest says who it is."""
    try:
        async with asyncio.timeout(_ANSWERS_WITHIN_S):
            while not await _greets(address):  # noqa: ASYNC110 - a guest has no event to offer
                await asyncio.sleep(0.5)
    except TimeoutError as late:
        raise TimedOut(f"{NAME} did not answer at {address} within {_ANSWERS_WITHIN_S:g} s") from late


async def _greets(address: str) -> bool:
    try:
        async with asyncio.timeout(5):
            reader, writer = await asyncio.open_connection(address, _SSH)
            try:
                return (await reader.readline()).startswith(b"SSH-")
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False
