"""The API is what its OpenAPI document says, asked by a machine that reads nothing else."""

import asyncio
import json
from typing import Any, TypeGuard

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks

from pileus.cloud.events.operations import events
from pileus.cloud.identity.model import TOKENS
from pileus.controller.nouns import NOUNS
from pileus.controller.openapi import written
from pileus.kernel.ids import new_id
from pileus.link.foreign import ForeignGuest
from pileus.operations.caller import Role
from pileus.state.kinds import Kind
from pileus.state.state import State
from pileus.testing.cloud import SimulatedCloud
from pileus.testing.invariants import dangling
from pileus.testing.links import until
from pileus.testing.people import People, Person
from pileus.testing.requests import KEY, made, running
from pileus.workflow.task import TASKS, UNFINISHED

EXAMPLES = 3
"""Of each operation, each caller, and each of right and wrong requests."""

NOT_ASKED = {
    "event.follow": "it does not end",
    "instance.console": "it is a WebSocket",
}
SIGNS_IN = frozenset({"token.begin_sign_in", "token.finish_sign_in", "token.sign_in"})
"""Where a machine that reads nothing is not known."""
DELETES = frozenset({"instance.purge", "instance.batch"})
"""Besides those that do so by their method: what is gone is of no use to others."""
NAMES = ("status_code", "content_type", "response_schema", "response_headers")
CHECKS: list[Any] = [getattr(checks, f"{name}_conformance") for name in NAMES]

# The loop's thread uses chance while this one generates, which Hypothesis takes for a mistake of a strategy.
pytestmark = pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisDeprecationWarning")

KINDS: dict[str, Kind[Any]] = {noun.name: noun.kind for noun in NOUNS if noun is not events}
REFERRED = {name.replace("_", "-"): kind for name, kind in KINDS.items()}


async def furnished(cloud: SimulatedCloud, client: httpx2.AsyncClient) -> None:
    """Something of everything, so that requests find what they are about."""
    await made(client, "keypairs", name="key", public_key=KEY)
    image = await made(client, "images", name="queued", format="raw")
    await made(client, "image-shares", image_id=image["id"], to_project_id=image["project_id"])
    lan = (await made(cloud.client, "networks/flat", name="lan", physical_network="lan"))["id"]
    shop = (await made(cloud.client, "projects", name="shop"))["id"]
    await made(cloud.client, "network-shares", network_id=lan, to_project_id=shop)
    await made(client, "server-groups", name="group")
    for name in ("one", "two", "three"):
        instance = await running(cloud, client, name=name)
    await made(client, "floating-ips", instance_id=instance["id"])


class Asker:
    """Sends what schemathesis thinks of, about records that are there, and holds every answer to the document."""

    def __init__(self, state: State, person: Person, loop: asyncio.AbstractEventLoop) -> None:
        self._document = json.loads(written())
        self._state = state
        self._person = person
        self._loop = loop
        self.answered: dict[str, set[int]] = {}
        """By operation, with which statuses."""

    def everything(self) -> None:
        """Ask every operation in every way, those that delete last."""
        schema: Any = schemathesis.openapi.from_dict(self._document)  # its own types leave much unknown
        operations = [found.ok() for found in schema.get_all_operations()]
        operations.sort(
            key=lambda each: each.method.upper() == "DELETE" or each.definition.raw["operationId"] in DELETES
        )
        for operation in operations:
            id = operation.definition.raw["operationId"]
            if id in NOT_ASKED:
                continue
            self.answered[id] = set()
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                try:
                    self._many(operation.as_strategy(generation_mode=mode), id)
                except Unsatisfiable:
                    assert mode is GenerationMode.NEGATIVE, f"there is no right request for {id}"

    def _many(self, strategy: st.SearchStrategy[Any], id: str) -> None:
        @settings(
            max_examples=EXAMPLES,
            phases=[Phase.generate],
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
        )
        @given(case=strategy, data=st.data())
        def ask(case: Any, data: st.DataObject) -> None:
            kind = KINDS.get(id.partition(".")[0])
            if kind is not None and "id" in case.path_parameters:
                case.path_parameters["id"] = self._known(kind, data)
            case.body = self._about_what_is_there(case, data)
            answer = asyncio.run_coroutine_threadsafe(self._send(case), self._loop).result(timeout=60)
            self.answered[id].add(answer.status_code)
            assert answer.status_code < 500 or answer.status_code == 507, answer.text
            case.validate_response(answer, checks=CHECKS)

        ask()

    async def _send(self, case: Any) -> httpx2.Response:
        request: dict[str, Any] = case.as_transport_kwargs(base_url="https://cloud")
        headers = [
            (name.encode(), str(value).encode("latin-1"))
            for name, value in request["headers"].items()
            if name.lower() != "authorization"  # it makes up tokens, too
        ]
        return await self._person.client.request(
            request["method"],
            request["url"],
            params=request.get("params"),
            headers=headers,
            json=request.get("json"),
            content=request.get("data"),
        )

    def _known(self, kind: Kind[Any], data: st.DataObject) -> str:
        """The id of a record of this kind, but not of the token that is used; now and then of none."""
        mine = {token.id for token in self._state[TOKENS].by("user", self._person.user_id)}
        ids = [*[id for id in self._state.table(kind).ids if id not in mine][-6:], new_id()]
        # What is drawn must not depend on what is there: by then Hypothesis may compare it with a run before.
        return ids[data.draw(st.integers(0, 839), label=kind.name) % len(ids)]

    def _about_what_is_there(self, case: Any, data: st.DataObject) -> Any:
        """The body of a case, whose references are records that are there."""
        content = case.operation.definition.raw.get("requestBody", {}).get("content", {}).get("application/json", {})
        wish = content.get("schema", {}).get("$ref", "").rpartition("/")[2]
        if not wish or not _is_object(case.body):
            return case.body
        body = {**case.body}
        for name, field in self._document["components"]["schemas"][wish]["properties"].items():
            kind = REFERRED.get(_reference(field))
            if kind is not None and body.get(name) is not None:
                id = self._known(kind, data)
                body[name] = [id] if isinstance(body[name], list) else id
        return body


def _is_object(body: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(body, dict)


def _reference(field: Any) -> str:
    """The kind of record that a field of a wish refers to, however it is wrapped."""
    shapes = [field, field.get("items", {}), *field.get("anyOf", [])]
    return next((shape["x-pileus-ref"] for shape in shapes if "x-pileus-ref" in shape), "")


@pytest.mark.parametrize("role", [Role.PLATFORM, Role.MEMBER])
async def test_the_api_keeps_what_its_document_promises(cloud: SimulatedCloud, people: People, role: Role) -> None:
    person = await people.person(role, await people.project("one"))
    await furnished(cloud, person.client)
    host = cloud.fleet.hosts[0]
    host.hypervisor.others["other"] = ForeignGuest(id="other", name="other", running=True, vcpus=1, memory_mib=64)
    await made(cloud.client, "foreign-guests", host_id=host.id)
    asker = Asker(cloud.state, person, asyncio.get_running_loop())
    await asyncio.to_thread(asker.everything)
    unfinished = [id for state in UNFINISHED for id in cloud.state[TASKS].ids_by("state", state)]
    await until(lambda: all(cloud.state[TASKS].get(id).state not in UNFINISHED for id in unfinished))
    assert dangling(cloud.state) == []
    assert not [id for id, statuses in asker.answered.items() if 401 in statuses and id not in SIGNS_IN]
    if role is Role.PLATFORM:
        done = [id for id, statuses in asker.answered.items() if statuses & {200, 201, 202, 204}]
        assert len(done) > len(asker.answered) / 3, "it got somewhere"
