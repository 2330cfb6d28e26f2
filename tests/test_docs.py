"""The pages say what is: links lead somewhere, commands exist and work, and each list agrees with the code."""

import importlib
import io
import pkgutil
import re
import shlex
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

import pileus
from pileus.agent import daemon as agent
from pileus.agent.agent import Pace
from pileus.cli.local import LOCAL
from pileus.cli.main import invoke
from pileus.cli.terminal import Terminal
from pileus.client import config as configuration
from pileus.client.config import Config
from pileus.client.document import load
from pileus.cloud.projects.model import DEFAULT_QUOTA
from pileus.controller.bootstrap import Outside
from pileus.controller.compose import Settings, serving
from pileus.controller.nouns import WORKFLOWS
from pileus.kernel.errors import PileusError
from pileus.machine.packages import NEEDED
from pileus.operations.caller import Role
from pileus.testing.cloud import SETTINGS, simulated_cloud
from pileus.testing.memorystore import MemoryStore

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "reference" / "cli.md"
PAGES = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs").rglob("*.md"))]
WRITTEN = [page for page in PAGES if page.parent != REFERENCE.parent]
"""By people: those of the references are made from the code."""

EVERYWHERE = {"--help", "-h", "--output", "-o", "--quiet", "-q", "--columns", "--project"}
"""Options of every command."""

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
each_written_page = pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))


@each_page
def test_a_link_leads_somewhere(page: Path) -> None:
    broken: list[str] = []
    for target in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", without_code(page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


@each_written_page
def test_a_command_that_is_named_exists_with_its_options(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = commands()
    unknown: list[str] = []
    for named in named_commands(page.read_text()):
        command = named[2:] if named[0] == "at" else ["event", *named] if named[0] == "undo" else named
        options = {word.partition("=")[0] for word in command if re.match(r"--?[a-z]", word)} - EVERYWHERE
        words = [word for word in command if re.fullmatch(r"[a-z][a-z-]*", word)]
        if not words:
            continue
        if words[0] in LOCAL:
            usage = help_of(words[0], capsys)
        else:
            usage = known.get(" ".join(words[:2])) or known.get(words[0])
        if usage is None or any(option not in usage for option in options):
            unknown.append(" ".join(command))
    assert not unknown


async def test_the_commands_of_the_readme_do_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "blank.raw").write_bytes(bytes(1024 * 1024))
    lines = [line for line in fenced("sh", (ROOT / "README.md").read_text()) if line.startswith("pileus ")]
    assert len(lines) >= 9
    async with command_line(tmp_path) as call:
        for line in lines:
            status, said = await call(*shlex.split(line)[1:])
            assert status == (3 if "huge" in line else 0), f"{line}: {said}"


@pytest.mark.parametrize(
    ("heading", "type"),
    [
        ("`outside`:", Outside),
        ("### controller.json", Settings),
        ("### agent.json", agent.AgentConfig),
        ("`hypervisor` of kind `libvirt`:", agent.LibvirtConfig),
        ("`network` of kind `ovn`:", agent.OvnConfig),
        ("`pools`, of kind `directory`:", agent.DirectoryConfig),
        ("`pace`, in seconds:", Pace),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_setting_is_documented_and_no_other(heading: str, type: Any) -> None:
    assert listed(heading) == [field.encode_name for field in msgspec.structs.fields(type)]


def test_every_role_is_documented_and_no_other() -> None:
    assert listed("## Users, roles, tokens") == list(Role)


def test_every_quota_is_documented_with_its_default() -> None:
    rows = dict(rows_below("## Quotas"))
    assert rows == {f"`{what}`": str(limit) for what, limit in DEFAULT_QUOTA.items()}


def test_every_error_is_documented_with_its_status_and_no_other() -> None:
    rows = [*rows_below("## Errors"), *rows_below("These are seen as the cause of a task, in the log,")]
    http = {("`method-not-allowed`", "405"), ("`internal`", "500")}
    assert set(rows) == {(f"`{error.code}`", str(error.status)) for error in errors()} | http


@pytest.mark.parametrize("page", ["ARCHITECTURE.md", "docs/operating.md"])
def test_every_workflow_is_named(page: str) -> None:
    text = (ROOT / page).read_text()
    assert [each.name for each in WORKFLOWS if f"`{each.name}`" not in text] == []


def test_every_package_that_is_installed_is_named_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text()
    assert [each.name for each in NEEDED if f"`{each.name}`" not in text] == []


def test_every_folder_of_the_package_is_on_the_map() -> None:
    folders = {each.name for each in (ROOT / "src" / "pileus").iterdir() if (each / "__init__.py").exists()}
    text = section("## Layers, and which way imports point", (ROOT / "ARCHITECTURE.md").read_text())
    assert folders == {name for cells in table(text) for name in re.findall(r"`([a-z]+)`", cells[0])}


@each_written_page
def test_a_test_that_is_named_exists(page: Path) -> None:
    missing: list[str] = []
    for file, name in re.findall(r"`([\w/.]+\.py)::(test_\w+)`", page.read_text()):
        if not (ROOT / file).exists() or f"def {name}(" not in (ROOT / file).read_text():
            missing.append(name)
    everywhere = "".join(each.read_text() for each in (ROOT / "tests").rglob("test_*.py"))
    missing += [name for name in re.findall(r"`(test_\w+)`", page.read_text()) if f"def {name}(" not in everywhere]
    assert not missing


@each_written_page
def test_a_file_that_is_named_exists(page: Path) -> None:
    named = re.findall(r"`((?:[\w-]+/)+[\w-]+\.(?:py|md|json|txt|toml))`", page.read_text())
    examples = ("/notes/", "/note.1.json", "DATA/")
    ours = [name for name in named if not any(each in name for each in examples)]
    assert [name for name in ours if not any((base / name).exists() for base in (ROOT, ROOT / "src/pileus"))] == []


def without_code(text: str) -> str:
    """A page without what is code in it."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE))


def fenced(language: str, text: str) -> list[str]:
    """The lines of all blocks in this language."""
    blocks = re.findall(rf"^ *```{language}\n(.*?)^ *```", text, flags=re.DOTALL | re.MULTILINE)
    return [line.strip() for block in blocks for line in block.splitlines()]


def anchors(page: Path) -> set[str]:
    """What links may point at in a page: its headings, as they are spelled in addresses."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def section(heading: str, text: str) -> str:
    """What follows this line, to the next heading of any depth."""
    start = next(place for place in re.finditer(rf"^{re.escape(heading)}", text, flags=re.MULTILINE)).end()
    return re.split(r"^#+ ", text[start:], maxsplit=1, flags=re.MULTILINE)[0]


def table(text: str) -> list[list[str]]:
    """The rows of the first table, without its head."""
    lines = [line for line in text.splitlines() if line.strip()]
    first = next(place for place, line in enumerate(lines) if line.startswith("|"))
    rows: list[list[str]] = []
    for line in lines[first + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def rows_below(heading: str) -> list[tuple[str, str]]:
    """The first two cells of each row of the table below a line of the page on operating."""
    text = (ROOT / "docs" / "operating.md").read_text()
    return [(cells[0], cells[1]) for cells in table(section(heading, text))]


def listed(heading: str) -> list[str]:
    return [first.strip("`") for first, _ in rows_below(heading)]


def named_commands(text: str) -> Iterator[list[str]]:
    """Every command of ours in a page, as words without `pileus` itself."""
    for line in [*fenced("sh", text), *re.findall(r"`([^`\n]+)`", text)]:
        for part in line.partition(" # ")[0].split(";"):
            words = part.split()
            if words and words[0] in ("pileus", "./up") and len(words) > 1:
                yield [*(["up"] if words[0] == "./up" else []), *(word.strip(",.") for word in words[1:])]


def commands() -> dict[str, str]:
    """The usage of each command of the reference, which is made from the code; and of plurals, which list."""
    parts = re.split(r"^##+ pileus ?(.*)$", REFERENCE.read_text(), flags=re.MULTILINE)
    known = dict(zip(parts[1::2], parts[2::2], strict=True))
    plurals = {
        noun.plural: known[listing] for noun in load().nouns.values() if (listing := f"{noun.name} list") in known
    }
    return {**known, **plurals}


def help_of(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command of this machine says of itself."""
    module, _, function = LOCAL[command].partition(":")
    getattr(importlib.import_module(module), function)(["--help"])
    return capsys.readouterr().out


def errors() -> set[type[PileusError]]:
    """Every error of the package, but for those that only its tests raise."""
    for module in pkgutil.walk_packages(pileus.__path__, "pileus."):
        if not module.name.startswith("pileus.testing") and not module.name.endswith("__main__"):
            importlib.import_module(module.name)

    def below(error: type[PileusError]) -> Iterator[type[PileusError]]:
        for child in error.__subclasses__():
            yield child
            yield from below(child)

    return {error for error in below(PileusError) if not error.__module__.startswith(("pileus.testing", "tests"))}


@asynccontextmanager
async def command_line(folder: Path) -> AsyncGenerator[Any]:
    """Calls the command line of the administrator of a cloud with three hosts; answers status and what was said."""
    environ = {"HOME": str(folder), "PILEUS_CONFIG": str(folder / "cli.json")}

    async def call(*arguments: str) -> tuple[int, str]:
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
        terminal = Terminal(stdin=io.StringIO(), stdout=out, stderr=err, environ=environ, patience_s=60.0)
        status = await invoke(arguments, terminal)
        err.seek(0)
        return status, err.read()

    async with (
        simulated_cloud(folder / "controller", store=MemoryStore(), image=False) as cloud,
        serving(cloud.controller.api, SETTINGS, cloud.controller.identity.api_context()) as port,
    ):
        first = cloud.controller.first
        assert first is not None
        authority = cloud.controller.authority.pem.decode()
        configuration.save(Config(url=f"https://127.0.0.1:{port}", authority=authority, token=first.token), environ)
        yield call
