from pathlib import Path

from pileus.client import document
from pileus.controller.openapi import PATH, written


def test_the_document_is_that_of_the_operations() -> None:
    assert PATH.read_bytes() == written(), "run `python -m pileus.controller.openapi`"
    assert Path(document.__file__).parent == PATH.parent


def test_every_noun_has_its_operations_and_every_verb_its_sentence() -> None:
    found = document.load()
    assert {"instance", "security-group", "task", "event"} <= set(found.nouns)
    for operation in found.operations():
        assert operation.about
        assert operation.takes_record == ("{id}" in operation.path)


def test_shapes_know_what_they_refer_to() -> None:
    found = document.load()
    fields = {field.name: field for field in found.nouns["instance"].operations["create"].body}
    assert fields["image_id"].shape.noun == "image"
    assert fields["name"].required
    assert not fields["image_id"].required
    items = fields["network_ids"].shape.items
    assert items is not None
    assert items.noun == "network"
    assert (fields["vcpus"].shape.type, fields["vcpus"].shape.least) == ("integer", 1)
    assert fields["labels"].shape.type == "object"


def test_ids_in_records_are_known_by_requests_or_by_their_names() -> None:
    found = document.load()
    assert found.referred("security-rule", "remote_group_id") == "security-group"
    assert found.referred("router", "external_network_id") == "network"
    assert found.referred("instance", "host_id") == "host"
    assert found.referred("instance", "name") == ""
    assert found.referred("task", "subject_id") == ""


def test_records_are_called_by_what_lists_can_be_filtered_by() -> None:
    nouns = document.load().nouns
    assert [nouns[each].known_by for each in ("instance", "floating-ip", "grant")] == ["name", "address", ""]
