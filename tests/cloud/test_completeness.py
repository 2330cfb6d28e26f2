"""What a new noun must not forget: limits for what is counted, its end with the project, where references lead."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from pileus.cloud.identity.model import USERS
from pileus.cloud.identityproviders.model import GROUP_MAPPINGS
from pileus.cloud.images.model import IMAGE_SHARES
from pileus.cloud.instances.consoles import CONSOLES
from pileus.cloud.instances.model import FIRST_BOOTS, PASSWORD_CHANGES
from pileus.cloud.networks.model import NETWORKS, NetworkKind
from pileus.cloud.projects.model import DEFAULT_QUOTA
from pileus.cloud.projects.operations import GO_WITH_A_PROJECT, KEEP_A_PROJECT
from pileus.cloud.volumes.model import gib_of_class
from pileus.controller.nouns import KINDS, NOUNS
from pileus.kernel.ids import ProjectId
from pileus.operations.idempotency import KEPT_ANSWERS
from pileus.operations.usage import Usage
from pileus.state.kinds import Kind
from pileus.state.store import StoredRecord
from pileus.testing.invariants import REFERENCES
from pileus.workflow.task import TASKS

SAMPLES = Path(__file__).parents[1] / "golden" / "records"
OF_CLASSES = gib_of_class("")
"""What is counted of each class of storage pool has no limit by default."""
OF_A_PROJECT = [kind for kind in KINDS if "project_id" in {field.name for field in msgspec.structs.fields(kind.record)}]

NOT_COUNTED = {
    TASKS.name: "passes: ended ones are forgotten",
    KEPT_ANSWERS.name: "passes within a day",
    CONSOLES.name: "has a limit of its own, for each user",
    FIRST_BOOTS.name: "there is one for each instance",
    PASSWORD_CHANGES.name: "passes: is gone with the end of its task",
    GROUP_MAPPINGS.name: "is made by administrators of the cloud only",
}
GO_OTHERWISE = {
    TASKS.name: "is history",
    KEPT_ANSWERS.name: "passes within a day",
    CONSOLES.name: "goes with its instance",
    FIRST_BOOTS.name: "goes with its instance",
    PASSWORD_CHANGES.name: "passes: is gone with the end of its task",
    IMAGE_SHARES.name: "goes with its image, which keeps the project",
    USERS.name: "goes with all that is a user's: `with_a_project`",
}
MAY_BE_GONE = {
    ("instance", "flavor_id"): "what it was made from",
    ("instance", "image_id"): "what it was made from",
    ("snapshot", "image_id"): "what it was made from",
    ("instance", "keypair_ids"): "what it was made from",
    ("instance", "attached_volume_ids"): "shown; the volumes themselves refer to the instance",
    ("backup", "instance_id"): "what it is of, and outlives",
    ("volume", "image_id"): "what it was made from",
    ("image_export", "image_id"): "what it was made from",
    ("task", "subject_id"): "history",
    ("task", "project_id"): "history",
    ("kept_answer", "project_id"): "history",
    ("first_boot", "project_id"): "that of its instance",
    ("password_change", "project_id"): "that of its instance",
}
"""Fields that name records which may be gone. It may only shrink, or grow for a reason as good."""


def counted(kind: Kind[Any]) -> Any:
    """A record of the kind, as a project has one."""
    more = {"kind": NetworkKind.VPC} if kind is NETWORKS else {}  # external networks are nobody's to count
    return msgspec.structs.replace(sample(kind), project_id="mine", **more)


def sample(kind: Kind[Any]) -> Any:
    body = (SAMPLES / f"{kind.name}.{kind.version}.json").read_bytes()
    id = msgspec.json.decode(body)["id"]
    return kind.read(StoredRecord(kind=kind.name, id=id, revision=1, version=kind.version, body=body))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.counts is not None], ids=lambda kind: kind.name)
def test_whatever_is_counted_has_a_limit_by_default(kind: Kind[Any]) -> None:
    usage = Usage([kind])
    usage.changed(kind.name, None, counted(kind))
    taken = usage.of(ProjectId("mine"))
    assert taken, "its sample is not one that counts"
    assert {what for what in taken if not what.startswith(OF_CLASSES)} <= set(DEFAULT_QUOTA)


def test_every_limit_is_of_something_that_is_counted() -> None:
    found = {what for kind in KINDS if kind.counts is not None for what in kind.counts(counted(kind))}
    assert {what for what in found if not what.startswith(OF_CLASSES)} == set(DEFAULT_QUOTA)


@pytest.mark.parametrize("kind", OF_A_PROJECT, ids=lambda kind: kind.name)
def test_whatever_a_project_can_make_is_counted(kind: Kind[Any]) -> None:
    assert (kind.counts is not None) != (kind.name in NOT_COUNTED)


@pytest.mark.parametrize("kind", OF_A_PROJECT, ids=lambda kind: kind.name)
def test_whatever_a_project_has_keeps_it_or_goes_with_it(kind: Kind[Any]) -> None:
    ways = (kind in KEEP_A_PROJECT, kind in GO_WITH_A_PROJECT, kind.name in GO_OTHERWISE)
    assert ways.count(True) == 1


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_field_that_names_a_record_is_looked_after(kind: Kind[Any]) -> None:
    """Fields that end in `_id` or `_ids` name records; the invariants see to it that those are there."""
    looked_after = {field for of, field, _ in REFERENCES if of is kind}
    for field in msgspec.structs.fields(kind.record):
        if field.name.endswith(("_id", "_ids")):
            assert (field.name in looked_after) != ((kind.name, field.name) in MAY_BE_GONE), field.name


def test_the_exceptions_are_about_what_there_is() -> None:
    fields = {(kind.name, field.name) for kind in KINDS for field in msgspec.structs.fields(kind.record)}
    assert set(MAY_BE_GONE) <= fields
    assert {*NOT_COUNTED, *GO_OTHERWISE} <= {kind.name for kind in KINDS}
    assert len({noun.name for noun in NOUNS}) == len(NOUNS)
