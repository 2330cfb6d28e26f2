"""What commands do and print, against a real controller with simulated hosts."""

import asyncio
import io
import os
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx2
import msgspec
import pytest
import yaml

from pileus.cli.main import invoke
from pileus.cli.terminal import Terminal
from pileus.kernel.errors import Unavailable
from pileus.kernel.units import MIB
from pileus.testing.diskimages import vhdx, vmdk
from pileus.testing.links import until
from pileus.testing.openid import CLIENT, SECRET, openid_provider

from .conftest import CommandLine, written

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPsBsaFKbVpxAVBVr7x5wQDbm3rXyA3Ro0C0E2Uh3h1P me@there"


async def created(pileus: CommandLine, name: str, *more: str) -> str:
    said = await pileus.ok("instance", "create", name, "--image", "mini", "--flavor", "tiny", "-q", *more)
    return said.out.strip()


async def test_an_instance_is_created_by_names_and_its_steps_are_told(pileus: CommandLine) -> None:
    await pileus.ok("keypair", "create", "me", "--public-key", KEY)
    line = "instance create hello --image mini --flavor tiny --keypair me --network default --labels a=b --labels c=d"
    said = await pileus.ok(*line.split())
    assert [each.split(":")[0].strip() for each in said.err.splitlines()[:3]] == [
        "make_disks",
        "connect",
        "start_guest",
    ]
    assert "instance.create hello: done after" in said.err
    head, row = said.out.splitlines()
    assert head.split()[:2] == ["NAME", "STATE"]
    assert row.split()[:2] == ["hello", "running"]
    shown = (await pileus.ok("instance", "show", "hello", "-o", "json")).json
    assert shown["labels"] == {"a": "b", "c": "d"}
    assert len(shown["keypair_ids"]) == 1
    by_label = await pileus.ok("instances", "--label", "a=b", "-o", "name")
    assert by_label.out.split() == ["hello"]


async def test_what_is_shown_to_people_has_names_for_ids(pileus: CommandLine) -> None:
    await created(pileus, "named")
    shown = (await pileus.ok("instance", "show", "named")).out
    fields = dict(line.split(maxsplit=1) for line in shown.splitlines())
    assert (fields["image"], fields["flavor"], fields["pool"], fields["project"]) == (
        "mini",
        "tiny",
        "default",
        "default",
    )
    table = await pileus.ok("instance", "list", "--columns", "name,image_id,host_id", "--host", fields["host"])
    assert ["named", "mini", fields["host"]] in [line.split() for line in table.out.splitlines()]


async def test_nothing_that_is_piped_has_colours_or_boxes(pileus: CommandLine) -> None:
    for line in ("--help", "instance create --help", "flavor list", "flavor show tiny"):
        said = await pileus.ok(*line.split())
        assert "\x1b" not in said.out
        assert not any("\u2500" <= sign <= "\u257f" for sign in said.out)


async def test_formats_say_the_same(pileus: CommandLine) -> None:
    flavors = (await pileus.ok("flavor", "list", "-o", "json")).json
    assert yaml.safe_load((await pileus.ok("flavor", "list", "-o", "yaml")).out) == flavors
    assert (await pileus.ok("flavors", "-o", "name")).out.split() == [each["name"] for each in flavors]
    assert (await pileus.ok("flavors", "-q")).out.split() == [each["id"] for each in flavors]
    assert (await pileus.ok("flavors", "--limit", "2", "--sort", "-vcpus", "-o", "name")).out.split() == [
        "xlarge",
        "large",
    ]


async def test_a_dry_run_shows_the_choice_and_does_nothing(pileus: CommandLine) -> None:
    line = ["instance", "create", "wish", "--image", "mini", "--flavor", "tiny", "--dry-run"]
    before = pileus.cloud.state.sequence
    said = await pileus.ok(*line)
    assert said.out.startswith("would create instance wish on host-")
    assert "image mini" in said.out
    assert sum(each.strip().startswith("* host-") for each in said.out.splitlines()) == 1
    assert sum("  fits: load" in each for each in said.out.splitlines()) == 3
    assert "undo   delete the instance" in said.out
    assert (await pileus.ok(*line, "-o", "json")).json["workflow"] == "instance.create"
    assert pileus.cloud.state.sequence == before


async def test_without_waiting_the_task_is_named(pileus: CommandLine) -> None:
    line = ["instance", "create", "later", "--image", "mini", "--flavor", "tiny", "--no-wait", "-o", "json"]
    begun = (await pileus.ok(*line)).json
    done = await pileus.ok("task", "show", begun["task_id"], "--wait", "-o", "json")
    assert done.json["state"] == "done"
    assert done.json["subject_id"] == begun["instance"]["id"]


async def test_a_wait_says_what_it_waits_for_and_leaves_the_task_alone_when_interrupted(pileus: CommandLine) -> None:
    for host in pileus.cloud.fleet.hosts:
        host.faults.fail("hypervisor.start", Unavailable("the hypervisor does not answer"), times=1000)
    streams = [io.TextIOWrapper(io.BytesIO(), write_through=True) for _ in range(2)]
    terminal = Terminal(stdin=io.StringIO(), stdout=streams[0], stderr=streams[1], environ=pileus.environ)

    def said() -> str:
        return written(streams[1])

    line = ["instance", "create", "slow", "--image", "mini", "--flavor", "tiny"]
    waiting = asyncio.ensure_future(invoke(line, terminal))
    try:
        await until(lambda: "start_guest: waits: " in said())
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    finally:
        for host in pileus.cloud.fleet.hosts:
            host.faults.mend()
    task = said().split("pileus task cancel ")[1].strip()
    shown = await pileus("task", "show", task, "--wait", "-o", "json")
    assert msgspec.json.decode(shown.out)["state"] == "done"


async def test_an_instance_goes_through_its_life(pileus: CommandLine) -> None:
    await created(pileus, "alive")
    for verb, state in (("stop", "stopped"), ("start", "running"), ("reboot", "running")):
        said = await pileus.ok("instance", verb, "alive", "-o", "json")
        assert said.json["state"] == state
    await pileus.ok("instance", "change", "alive", "--name", "renamed", "--protected")
    assert (await pileus("instance", "delete", "renamed")).status == 5
    await pileus.ok("instance", "change", "renamed", "--no-protected")
    said = await pileus.ok("instance", "delete", "renamed")
    assert said.out == ""
    assert "instance.delete renamed: done" in said.err
    assert (await pileus("instance", "show", "renamed")).status == 4


async def test_a_floating_ip_is_called_by_its_address(pileus: CommandLine) -> None:
    await created(pileus, "reachable")
    made = (await pileus.ok("floating-ip", "create", "--instance", "reachable", "-o", "json")).json
    await pileus.ok("floating-ip", "dissociate", made["address"])
    await pileus.ok("floating-ip", "delete", made["address"])
    assert made["address"] not in (await pileus.ok("floating-ips")).out


async def test_lists_can_be_made_empty(pileus: CommandLine) -> None:
    await pileus.ok("router", "create", "lonely", "--no-snat")
    await pileus.ok("network", "create", "apart")
    await pileus.ok("subnet", "create", "apart", "--network", "apart", "--cidr", "10.9.0.0/24")
    route = "destination=192.0.2.0/24,next_hop=10.9.0.1"
    await pileus.ok("router", "change", "lonely", "--subnet", "apart", "--routes", route)
    shown = (await pileus.ok("router", "show", "lonely", "-o", "json")).json
    assert shown["routes"] == [{"destination": "192.0.2.0/24", "next_hop": "10.9.0.1"}]
    source = "source=10.9.0.0/24,network_id=external"
    await pileus.ok("router", "change", "lonely", "--external-network", "external", "--source-routes", source)
    shown = (await pileus.ok("router", "show", "lonely", "-o", "json")).json
    assert [each["network_id"] for each in shown["source_routes"]] == [shown["external_network_id"]], "by its name"
    assert shown["external_address"] in (await pileus.ok("router", "uplinks", "lonely")).out
    await pileus.ok("router", "change", "lonely", "--empty-routes", "--empty-subnet")
    shown = (await pileus.ok("router", "show", "lonely", "-o", "json")).json
    assert (shown["routes"], shown["subnet_ids"]) == ([], [])


async def test_a_description_and_labels_are_taken_away(pileus: CommandLine) -> None:
    await created(pileus, "told-of", "--labels", "a=b")
    await pileus.ok("volume", "create", "kept-on", "--size-gib", "1", "--labels", "a=b", "--description", "old")
    for noun, name in (("instance", "told-of"), ("volume", "kept-on")):
        await pileus.ok(noun, "change", name, "--labels", "shelf=two", "--description", "a thing")
        shown = (await pileus.ok(noun, "show", name, "-o", "json")).json
        assert (shown["labels"], shown["description"]) == ({"shelf": "two"}, "a thing")
        assert (await pileus.ok(noun, "list", "--label", "shelf=two", "-o", "name")).out.split() == [name]
        await pileus.ok(noun, "change", name, "--empty-labels", "--description", "")
        shown = (await pileus.ok(noun, "show", name, "-o", "json")).json
        assert (shown["labels"], shown["description"]) == ({}, "")
        assert (await pileus.ok(noun, "list", "--label", "shelf=two", "-o", "name")).out == ""


async def test_what_can_be_given_again_and_again_is_asked_for_one_at_a_time_too(pileus: CommandLine) -> None:
    await pileus.ok("volume", "create", "one", "--size-gib", "1", "--label", "a=b", "--label", "c=d")
    assert (await pileus.ok("volume", "show", "one", "-o", "json")).json["labels"] == {"a": "b", "c": "d"}


async def test_usage_is_a_table(pileus: CommandLine) -> None:
    lines = (await pileus.ok("project", "quota", "default")).out.splitlines()
    assert lines[1].split() == ["usage", "USED", "LIMIT"]
    assert ["users", "0", "100"] in [line.split() for line in lines]


async def test_ports_and_rules_are_listed_as_people_read_them(pileus: CommandLine) -> None:
    port = (await pileus.ok("port", "create", "nic", "--network", "default", "-o", "json")).json
    listed = (await pileus.ok("port", "list")).out
    assert port["addresses"][0]["address"] in listed
    assert port["addresses"][0]["subnet_id"] not in listed
    await pileus.ok("security-group", "create", "doors")
    await pileus.ok("security-group", "change", "doors", "--name", "gates", "--description", "who comes in")
    await pileus.ok("security-rule", "create", "--group", "gates", "--protocol", "tcp", "--port-min", "443")
    rules = (await pileus.ok("security-rule", "list", "--group", "gates")).out.splitlines()
    assert [row.split()[0] for row in rules[1:]] == ["gates"] * 3


async def test_an_image_goes_up_and_comes_back(pileus: CommandLine, tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(os.urandom(3 * 1024 * 1024))
    said = await pileus.ok("image", "upload", "mine", "--file", str(disk), "--default-user", "debian", "-o", "json")
    assert (said.json["state"], said.json["format"]) == ("active", "raw")
    assert said.json["sha256"] == sha256(disk.read_bytes()).hexdigest()
    assert "upload mine: 3.0 MiB of 3.0 MiB" in said.err
    back = tmp_path / "back.raw"
    await pileus.ok("image", "download", "mine", "--file", str(back))
    assert back.read_bytes() == disk.read_bytes()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["back.raw", "disk.raw"]


async def test_an_image_comes_back_in_another_format_and_nothing_of_that_is_left(
    pileus: CommandLine, tmp_path: Path
) -> None:
    await pileus.ok("image", "download", "mini", "--file", str(tmp_path / "mini.vhdx"), "--format", "vhdx")
    assert (tmp_path / "mini.vhdx").read_bytes() == vhdx(size=MIB)
    await pileus.ok("image", "download", "mini", "--file", str(tmp_path / "mini.raw"), "--format", "raw")
    assert (tmp_path / "mini.raw").read_bytes() == bytes(MIB)
    assert (await pileus.ok("image-export", "list", "-o", "json")).json == []
    assert sorted(each.name for each in tmp_path.iterdir()) == ["mini.raw", "mini.vhdx"]


async def test_a_download_that_was_interrupted_goes_on_where_it_stopped(pileus: CommandLine, tmp_path: Path) -> None:
    image = (await pileus.ok("image", "show", "mini", "-o", "json")).json
    part = tmp_path / f"mini.qcow2.{image['sha256'][:16]}.part"
    await pileus.ok("image", "download", "mini", "--file", str(tmp_path / "whole"))
    content = (tmp_path / "whole").read_bytes()
    part.write_bytes(content[:100])
    said = await pileus.ok("image", "download", "mini", "--file", str(tmp_path / "mini.qcow2"))
    assert "100 B of" in said.err
    assert "it goes on there" in said.err
    assert (tmp_path / "mini.qcow2").read_bytes() == content
    assert not part.exists()


async def test_of_an_export_that_was_made_before_a_download_goes_on_and_others_are_left_alone(
    pileus: CommandLine, tmp_path: Path
) -> None:
    made = (await pileus.ok("image-export", "create", "--image", "mini", "--format", "vhdx", "-o", "json")).json
    line = ("image", "download", "mini", "--format", "vhdx", "--file")
    await pileus.ok(*line, str(tmp_path / "another.vhdx"))
    assert [each["id"] for each in (await pileus.ok("image-exports", "-o", "json")).json] == [made["id"]]
    part = tmp_path / f"mini.vhdx.{made['sha256'][:16]}.part"
    part.write_bytes(vhdx(size=MIB)[:100])
    said = await pileus.ok(*line, str(tmp_path / "mini.vhdx"))
    assert "image_export.create" not in said.err
    assert "it goes on there" in said.err
    assert (await pileus.ok("image-exports", "-o", "json")).json == []
    assert sorted(each.name for each in tmp_path.iterdir()) == ["another.vhdx", "mini.vhdx"]
    assert (tmp_path / "mini.vhdx").read_bytes() == vhdx(size=MIB)


async def test_an_export_is_downloaded_and_stays(pileus: CommandLine, tmp_path: Path) -> None:
    made = (await pileus.ok("image-export", "create", "--image", "mini", "--format", "vmdk", "-o", "json")).json
    await pileus.ok("image-export", "download", made["id"], "--file", str(tmp_path / "mini.vmdk"))
    assert (tmp_path / "mini.vmdk").read_bytes() == vmdk(size=MIB)
    await pileus.ok("image-export", "delete", made["id"])


async def test_an_image_whose_upload_failed_leaves_no_record(pileus: CommandLine, tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(bytes(1024 * 1024))
    said = await pileus("image", "upload", "wrong", "--file", str(disk), "--sha256", "0" * 64)
    assert said.status in (2, 5)
    assert (await pileus("image", "show", "wrong")).status == 4
    assert (await pileus("image", "upload", "wrong", "--file", str(tmp_path / "none"))).status == 2


async def test_a_keypair_is_read_from_a_file_or_made(pileus: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "key.pub"
    file.write_text(KEY.replace("me@there", "you") + "\n")
    stored = (await pileus.ok("keypair", "create", "read", "--public-key", f"@{file}", "-o", "json")).json
    assert stored["public_key"].endswith(" you")
    own = tmp_path / "id"
    await pileus.ok("keypair", "create", "made", "--generate", str(own))
    assert own.stat().st_mode & 0o777 == 0o600
    assert (await pileus("keypair", "create", "again", "--generate", str(own))).status == 5


async def test_user_data_comes_from_a_file(pileus: CommandLine, tmp_path: Path) -> None:
    script = tmp_path / "user-data"
    script.write_text("#!/bin/sh\necho hello\n")
    await created(pileus, "told", "--user-data", f"@{script}")
    said = await pileus("instance", "create", "x", "--image", "mini", "--flavor", "tiny", "--user-data", "@/nowhere")
    assert said.status == 2
    assert "--user-data: cannot be read" in said.err


async def test_events_are_listed_and_followed_from_a_number_on(pileus: CommandLine) -> None:
    events = (await pileus.ok("events", "-o", "json")).json
    assert events[0]["operation"] == "bootstrap"
    followed = await pileus.ok(
        "events", "--follow", "--after", str(events[1]["sequence"]), "--limit", "2", "-o", "json"
    )
    numbers = [msgspec.json.decode(line)["sequence"] for line in followed.out.splitlines()]
    assert numbers == [event["sequence"] for event in events[2:4]]


async def test_the_console_carries_what_is_typed_and_what_is_shown(pileus: CommandLine) -> None:
    await created(pileus, "talkative")
    reading, writing = os.pipe()
    streams = [io.TextIOWrapper(io.BytesIO(), write_through=True) for _ in range(2)]
    with os.fdopen(reading) as stdin, os.fdopen(writing, "wb", buffering=0) as keys:
        terminal = Terminal(stdin=stdin, stdout=streams[0], stderr=streams[1], environ=pileus.environ)
        console = asyncio.ensure_future(invoke(["instance", "console", "talkative"], terminal))

        def shown() -> bytes:
            return written(streams[0]).encode()

        await until(lambda: b"login: " in shown())
        keys.write(b"root\r")
        await until(lambda: b"root\r\n" in shown())
        keys.write(b"\x1d")
        assert await asyncio.wait_for(console, 60) == 0
        assert "Ctrl-] leaves" in written(streams[1])


async def test_a_viewer_of_this_machine_is_brought_to_the_screen(pileus: CommandLine) -> None:
    await created(pileus, "seen")
    streams = [io.TextIOWrapper(io.BytesIO(), write_through=True) for _ in range(2)]
    with open(os.devnull) as stdin:  # noqa: ASYNC230, PTH123 - it is empty
        terminal = Terminal(stdin=stdin, stdout=streams[0], stderr=streams[1], environ=pileus.environ)
        vnc = asyncio.ensure_future(invoke(["instance", "vnc", "seen"], terminal))
        await until(lambda: written(streams[0]).count("\n") == 2)
        address, password = written(streams[0]).split()
        assert len(password) == 8
        host, _, port = address.partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        assert await reader.readexactly(12) == b"RFB 003.008\n"
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(host, int(port))
        writer.close()
        assert await asyncio.wait_for(vnc, 60) == 0
        await writer.wait_closed()


async def test_a_picture_and_a_log_are_written(pileus: CommandLine, tmp_path: Path) -> None:
    await created(pileus, "drawn")
    await pileus.ok("instance", "screenshot", "drawn", "--file", str(tmp_path / "seen.png"))
    assert (tmp_path / "seen.png").read_bytes().startswith(b"\x89PNG")
    assert (await pileus("instance", "screenshot", "drawn", "--file", "/nowhere/seen.png")).status == 2
    await pileus.ok("instance", "log", "drawn", "--tail", "5")


async def test_a_stopped_instance_has_no_console(pileus: CommandLine) -> None:
    await created(pileus, "silent")
    await pileus.ok("instance", "stop", "silent")
    streams = [io.TextIOWrapper(io.BytesIO(), write_through=True) for _ in range(2)]
    with open(os.devnull) as stdin:  # noqa: ASYNC230, PTH123 - it is empty
        terminal = Terminal(stdin=stdin, stdout=streams[0], stderr=streams[1], environ=pileus.environ)
        assert await invoke(["instance", "console", "silent"], terminal) == 5
    assert "no console" in written(streams[1])


async def test_somebody_signs_in_and_out(pileus: CommandLine, tmp_path: Path) -> None:
    password = "correct horse battery"
    await pileus.ok("user", "create", "ann", "--password", "@-", stdin=f"{password}\n")
    await pileus.ok("grant", "create", "--user", "ann", "--project", "default", "--role", "member")
    ann = pileus.as_another(tmp_path, token="", authority="")
    (tmp_path / "config.json").unlink()
    url = pileus.config.url
    fingerprint = pileus.cloud.controller.authority.fingerprint
    line = ("login", url, "--user", "ann", "--password-stdin")
    assert (await ann(*line, stdin=password)).status == 2
    assert (await ann(*line, "--fingerprint", "sha256:" + "0" * 64, stdin=password)).status == 3
    assert (await ann(*line, "--fingerprint", fingerprint, stdin="wrong")).status == 3
    assert (await ann("whoami")).status == 3
    await ann.ok(*line, "--fingerprint", fingerprint, stdin=password)
    assert (tmp_path / "config.json").stat().st_mode & 0o777 == 0o600
    assert (await ann.ok("whoami", "-o", "name")).out == "ann\n"
    assert (await ann("flavor", "delete", "tiny")).status == 3
    assert (await ann("host", "list")).status == 3
    await ann.ok("logout")
    assert (await ann("whoami")).status == 3
    assert not (tmp_path / "config.json").exists()


async def test_somebody_signs_in_in_a_browser(pileus: CommandLine, tmp_path: Path) -> None:
    async with openid_provider(pileus.cloud.now) as keycloak:
        keycloak.claims |= {"preferred_username": "carla", "groups": ["/operators"]}
        client = ("--url", keycloak.issuer, "--client", CLIENT, "--secret", "@-", "--makes-users")
        await pileus.ok("identity-provider", "create", "keycloak", "--kind", "oidc", *client, stdin=SECRET)
        gives = ("--external-group", "/operators", "--project", "default", "--role", "member")
        await pileus.ok("group-mapping", "create", "--provider", "keycloak", *gives)
        carla = pileus.as_another(tmp_path, token="")
        assert (await carla("login", "--provider", "nothing")).status == 4
        assert (await carla("login", "--provider", "keycloak", "--user", "carla")).status == 2
        streams = [io.TextIOWrapper(io.BytesIO(), write_through=True) for _ in range(2)]
        with open(os.devnull) as stdin:  # noqa: ASYNC230, PTH123 - it is empty
            terminal = Terminal(stdin=stdin, stdout=streams[0], stderr=streams[1], environ=carla.environ)
            signing_in = asyncio.create_task(invoke(["login", "--provider", "keycloak"], terminal))
            await until(lambda: "http" in written(streams[1]))
            url = next(line.strip() for line in written(streams[1]).splitlines() if line.startswith("  http"))
            landing = parse_qs(urlsplit(url).query)["redirect_uri"][0]
            async with httpx2.AsyncClient(trust_env=False) as browser:
                assert (await browser.get(landing.replace("/callback", "/favicon.ico"))).status_code == 404
                assert (await browser.get(landing, params={"state": "another's", "code": "x"})).status_code == 200
                assert not signing_in.done()
                answer = await browser.get(landing, params=keycloak.visit(url))
            assert "close this page" in answer.text
            assert await signing_in == 0, written(streams[1])
    assert (await carla.ok("whoami", "-o", "name")).out == "carla\n"


async def test_a_cloud_with_another_authority_is_not_spoken_to(pileus: CommandLine, tmp_path: Path) -> None:
    from pileus.kernel.clock import SystemClock
    from pileus.link.certificates import Authority

    stranger = pileus.as_another(tmp_path, authority=Authority.create(SystemClock()).pem.decode())
    stranger.patience_s = 0.3
    said = await stranger("instance", "list")
    assert said.status == 8
    assert "certificate" in said.err


async def test_completion_knows_nouns_and_verbs(pileus: CommandLine) -> None:
    script = (await pileus.ok("completion", "bash")).out
    assert "security-group" in script
    assert "dissociate" in script


async def test_ssh_goes_to_the_floating_ip_as_the_images_user_though_that_is_gone(
    pileus: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await created(pileus, "far")
    address = (await pileus.ok("floating-ip", "create", "--instance", "far", "-o", "json")).json["address"]
    ssh = tmp_path / "ssh"
    ssh.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/arguments\nexit 23\n')
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    said = await pileus("instance", "ssh", "far", "--user", "debian", "uname", "-a")
    assert said.status == 23
    assert (tmp_path / "arguments").read_text().split() == ["-l", "debian", "--", address, "uname", "-a"]
    disk = tmp_path / "disk.raw"
    disk.write_bytes(bytes(MIB))
    await pileus.ok("image", "upload", "gone", "--file", str(disk), "--default-user", "ann")
    await pileus.ok("instance", "create", "orphan", "--image", "gone", "--flavor", "tiny")
    await pileus.ok("image", "delete", "gone")
    assert (await pileus("instance", "ssh", "orphan")).status == 23
    assert (tmp_path / "arguments").read_text().split()[:2] == ["-l", "ann"]


async def test_the_cloud_is_listed_and_shown_as_it_was(pileus: CommandLine) -> None:
    id = await created(pileus, "was")
    then = datetime.now().astimezone().replace(tzinfo=None).isoformat()
    await pileus.ok("instance", "change", "was", "--name", "is")
    await pileus.ok("instance", "delete", "is")
    assert (await pileus.ok("at", then, "instances", "--name", "was", "-q")).out.strip() == id
    assert (await pileus.ok("at", then, "instance", "show", "was", "-o", "json")).json["name"] == "was"
    assert "mini" in (await pileus.ok("at", then, "instance", "show", "was")).out
    task = (await pileus.ok("tasks", "--workflow", "instance.delete", "-o", "json")).json[0]["id"]
    assert (await pileus("at", then, "task", "show", task)).status != 0
    assert (await pileus("at", "-1s", "instance", "show", id)).status in (0, 4)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("at", "TIME"),
        ("at noon instances", "noon"),
        ("at -2y instances", "-2y"),
        ("at -999999w instances", "-999999w"),
        ("at -1h instance delete x", "only be looked at"),
        ("at -1h up", "only be looked at"),
        ("at -1h events", "only be looked at"),
        ("at -52w instances", "goes back to"),
    ],
)
async def test_the_past_is_not_changed_and_not_made_up(pileus: CommandLine, command: str, says: str) -> None:
    said = await pileus(*command.split())
    assert said.status != 0
    assert says in said.err


async def test_who_reaches_whom_is_told_hop_by_hop(pileus: CommandLine) -> None:
    await created(pileus, "asker")
    await created(pileus, "asked")
    lines = (await pileus.ok("network", "reach", "asker", "asked:5432")).out.splitlines()
    assert lines[0] == "asker reaches asked by tcp 5432"
    assert all("lets tcp 5432" in line for line in lines[1:])
    out = (await pileus.ok("network", "reach", "asker", "192.0.2.80", "--port", "443", "-o", "json")).json
    assert out["verdict"] == "beyond"
    refused = (await pileus.ok("network", "reach", "192.0.2.80", "asked", "--port", "22")).out.splitlines()
    assert refused[-1] == "to let it through: associate a floating IP with asked"
    twice = await pileus("network", "reach", "asker", "asked:1", "--port", "2")
    assert twice.status == 2
