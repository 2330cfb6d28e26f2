"""All operations, as they are declared: what each of them must have, and who may do it."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from schemathesis.specs.openapi.definitions import OPENAPI_31

from pileus.cloud.images.operations.data import transfer_url
from pileus.cloud.images.operations.delivery import arrival_url
from pileus.controller.nouns import NOUNS
from pileus.controller.openapi import PATH, written
from pileus.kernel.ids import HostId, ImageId, new_id
from pileus.link.tickets import Tickets
from pileus.operations.caller import Role, allows
from pileus.operations.declare import Noun, Operation
from pileus.testing.asgi import status_of
from pileus.testing.cloud import SimulatedCloud
from pileus.testing.people import People

OPERATIONS = [(noun, operation) for noun in NOUNS for operation in noun.declared]
GOLDEN = Path(__file__).parent.parent / "golden" / "roles.txt"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
ROLES = ("nobody", *Role)

each_operation = pytest.mark.parametrize(
    ("noun", "operation"), OPERATIONS, ids=[operation.id for _, operation in OPERATIONS]
)


def table() -> str:
    """Who may do what, one operation per line."""
    lines = [f"{'operation':<28}" + "".join(f"{role:<10}" for role in ROLES)]
    for _, operation in sorted(OPERATIONS, key=lambda each: each[1].id):
        marks = ("yes" if may(role, operation) else "-" for role in ROLES)
        lines.append(f"{operation.id:<28}" + "".join(f"{mark:<10}" for mark in marks))
    return "\n".join(line.rstrip() for line in lines) + "\n"


def may(role: str, operation: Operation) -> bool:
    if operation.least is None:
        return True
    return role != "nobody" and allows(Role(role), operation.least)


def test_the_table_of_who_may_do_what_is_as_it_was_read_and_accepted() -> None:
    assert table() == GOLDEN.read_text(), f"read the difference; if it is meant, write it to {GOLDEN}"


@each_operation
def test_an_operation_says_in_a_sentence_what_it_does(noun: Noun[Any], operation: Operation) -> None:
    first = operation.about.splitlines()[0]
    assert first[0].isupper()
    assert first.endswith("."), first
    assert noun.about.endswith(".")


@each_operation
def test_an_operation_is_in_the_openapi_document(noun: Noun[Any], operation: Operation) -> None:
    described = json.loads(written())["paths"][operation.path][operation.method.lower()]
    assert described["operationId"] == operation.id
    assert described["x-pileus"]["least"] == str(operation.least or "nobody")
    assert str(operation.status) in described["responses"]
    assert "default" in described["responses"]


def test_the_openapi_document_that_is_checked_in_is_up_to_date() -> None:
    assert PATH.read_bytes() == written(), "run `python -m pileus.controller.openapi`"


def test_no_two_operations_have_one_id_or_one_command() -> None:
    ids = [operation.id for _, operation in OPERATIONS]
    assert len(ids) == len(set(ids))


def test_the_openapi_document_is_one() -> None:
    document = json.loads(written())
    assert [error.message for error in jsonschema_rs.Draft202012Validator(OPENAPI_31).iter_errors(document)] == []
    for name, schema in document["components"]["schemas"].items():
        assert jsonschema_rs.meta.is_valid({"$schema": DIALECT, **schema}), name


def test_what_is_read_in_parts_says_how_a_part_is_answered() -> None:
    paths = json.loads(written())["paths"]
    for path in ("/v1/images/{id}/data", "/v1/images/{id}/transfer", "/v1/image-exports/{id}/data"):
        responses = paths[path]["get"]["responses"]
        assert responses["206"]["content"] == responses["200"]["content"], path


def test_every_reference_of_the_openapi_document_leads_somewhere() -> None:
    known = json.loads(written())["components"]["schemas"]
    assert set(re.findall(rb'"\$ref": "#/components/schemas/(\w+)"', written())) <= {name.encode() for name in known}


async def test_each_role_may_do_what_the_table_says_and_nothing_else(cloud: SimulatedCloud, people: People) -> None:
    project = await people.project("one")
    tokens: dict[str, str] = {role: (await people.person(role, project)).token for role in Role}
    for role in ROLES:
        for _, operation in OPERATIONS:
            refused = await asked(cloud, operation, tokens.get(role, "")) % 1000 in (401, 403)
            assert refused != may(role, operation), f"{role} and {operation.id}"


async def asked(cloud: SimulatedCloud, operation: Operation, token: str) -> int:
    """The status of a request that can do nothing: about a record that is not there, or with a body that is wrong."""
    id = new_id()
    path = operation.path.replace("{id}", id)
    query = b""
    if operation.id in ("image.transfer", "image.arrived", "image.deliver"):  # what lets one in is a ticket
        tickets = Tickets((cloud.data / "ticket.key").read_bytes(), cloud.clock)
        url = transfer_url if operation.verb == "transfer" else arrival_url
        query = url(tickets, ImageId(id), HostId(new_id())).partition("?")[2].encode()
    return await status_of(
        cloud.controller.api,
        path,
        method=operation.method,
        query=query,
        token=token,
        body=b'{"no such field": 1}',
        socket=operation.socket is not None,
    )
