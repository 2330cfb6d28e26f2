"""The API is what its OpenAPI document says, asked by a machine that reads nothing else."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks

from pileus.cloud.events.operations import events
from pileus.controller.nouns import NOUNS
from pileus.controller.openapi import written
from pileus.kernel.ids import new_id
from pileus.operations.caller import Role
from pileus.state.kinds import Kind
from pileus.state.state import State
from pileus.testing.cloud import SimulatedCloud
from pileus.testing.invariants import dangling
from pileus.testing.links import until
from pileus.testing.people import People
from pileus.testing.requests import KEY, made, running
from pileus.workflow.task import TASKS, UNFINISHED

EXAMPLES = 3
"""Of each operation, each caller, and each of right and wrong requests."""

NOT_ASKED = {
    "event.follow": "it does not end",
    "instance.console": "it is a WebSocket",
}
NAMES = ("status_code", "content_type", "response_schema", "response_headers")
CHECKS: list[Any] = [getattr(checks, f"{name}_conformance") for name in NAMES]

# The loop's thread uses chance while this one generates, which Hypothesis takes for a mistake of a strategy.
pytestmark = pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisDeprecationWarning")

KINDS: dict[str, Kind[Any]] = {noun.name: noun.kind for noun in NOUNS if noun is not events}
REFERRED = {name.replace("_", "-"): kind for name, kind in KINDS.items()}


async def furnished(cloud: SimulatedCloud, client: httpx2.AsyncClient) -> None:
    """Something of everything, so that requests find what they are about."""
    await made(client, "keypairs", name="key", public_key=KEY)
    await made(client, "images", name="queued", format="raw")
    await made(client, "server-groups", name="group")
    instance = await running(cloud, client)
    await made(client, "floating-ips", instance_id=instance["id"])


def known(state: State, kind: Kind[Any], data: st.DataObject) -> str:
    """The id of a record of this kind; now and then of none."""
    ids = list(state.table(kind).ids)
    return data.draw(st.sampled_from([*ids[-8:], new_id()]), label=kind.name)


def with_known_ids(state: State, schema: Any, body: Any, data: st.DataObject) -> Any:
    """A body whose references are records that are there."""
    if not isinstance(body, dict):
        return body
    found: dict[str, Any] = {**body}
    for name, field in schema.get("properties", {}).items():
        reference = field.get("x-pileus-ref") or field.get("items", {}).get("x-pileus-ref")
        if reference in REFERRED and found.get(name) is not None:
            id = known(state, REFERRED[reference], data)
            found[name] = [id] if isinstance(found[name], list) else id
    return found


@pytest.mark.parametrize("role", [Role.PLATFORM, Role.MEMBER])
async def test_the_api_keeps_what_its_document_promises(cloud: SimulatedCloud, people: People, role: Role) -> None:
    document = json.loads(written())
    schema: Any = schemathesis.openapi.from_dict(document)  # its own types leave much unknown
    person = await people.person(role, await people.project("one"))
    member = await people.person(Role.MEMBER, person.project_id)
    await furnished(cloud, member.client)
    loop = asyncio.get_running_loop()

    def wait_for(coroutine: Coroutine[Any, Any, httpx2.Response]) -> httpx2.Response:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(timeout=30)

    def all_operations() -> None:
        for found in schema.get_all_operations():
            operation = found.ok()
            id = operation.definition.raw["operationId"]
            if id in NOT_ASKED:
                continue
            body = operation.definition.raw.get("requestBody", {}).get("content", {}).get("application/json", {})
            wish = document["components"]["schemas"].get(body.get("schema", {}).get("$ref", "").rpartition("/")[2], {})
            kind = KINDS.get(id.partition(".")[0])
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                try:
                    strategy = operation.as_strategy(generation_mode=mode)
                    ask_many(strategy, wish, kind, person.client, wait_for, cloud.state)
                except Unsatisfiable:
                    assert mode is GenerationMode.NEGATIVE, f"there is no right request for {id}"

    await asyncio.to_thread(all_operations)
    unfinished = [id for state in UNFINISHED for id in cloud.state[TASKS].ids_by("state", state)]
    await until(lambda: all(cloud.state[TASKS].get(id).state not in UNFINISHED for id in unfinished), within_s=10)
    assert dangling(cloud.state) == []


def ask_many(
    strategy: st.SearchStrategy[Any],
    wish: Any,
    kind: Kind[Any] | None,
    client: httpx2.AsyncClient,
    wait_for: Callable[[Coroutine[Any, Any, httpx2.Response]], httpx2.Response],
    state: State,
) -> None:
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )
    @given(case=strategy, data=st.data())
    def ask(case: Any, data: st.DataObject) -> None:
        if kind is not None and "id" in case.path_parameters:
            case.path_parameters["id"] = known(state, kind, data)
        case.body = with_known_ids(state, wish, case.body, data)
        request: dict[str, Any] = case.as_transport_kwargs(base_url="https://cloud")
        answer = wait_for(
            client.request(
                request["method"],
                request["url"],
                params=request.get("params"),
                headers=[(name.encode(), str(value).encode("latin-1")) for name, value in request["headers"].items()],
                json=request.get("json"),
                content=request.get("data"),
            )
        )
        assert answer.status_code < 500 or answer.status_code == 507, answer.text
        case.validate_response(answer, checks=CHECKS)

    ask()
