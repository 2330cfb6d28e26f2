"""Second factors: codes by the clock, recovery codes, who must have one, and guessing."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest

from pileus.cloud.identity.sealing import Sealer
from pileus.cloud.identity.totp import code_at, step_at, step_of
from pileus.kernel.clock import FrozenClock
from pileus.kernel.errors import Conflict
from pileus.operations.caller import Role
from pileus.testing.cloud import SimulatedCloud, client_of
from pileus.testing.memorystore import MemoryStore
from pileus.testing.people import People
from pileus.testing.requests import items, made, refusal, shown

PASSWORD = "correct horse battery"
RFC = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"
"""The secret of RFC 6238's test vectors: `12345678901234567890`."""


@pytest.mark.parametrize(
    ("at", "code"),
    [
        (59, "287082"),
        (1111111109, "081804"),
        (1111111111, "050471"),
        (1234567890, "005924"),
        (2000000000, "279037"),
        (20000000000, "353130"),
    ],
)
def test_codes_are_those_of_the_rfc(at: int, code: str) -> None:
    assert code_at(RFC, step_at(datetime.fromtimestamp(at, UTC))) == code


def test_a_code_is_good_for_its_step_and_those_beside_it_and_once() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    today = step_at(now)
    found = {n: step_of(RFC, code_at(RFC, today + n), now=now, after=0) for n in range(-3, 4)}
    assert found == {-3: None, -2: None, -1: today - 1, 0: today, 1: today + 1, 2: None, 3: None}
    assert step_of(RFC, code_at(RFC, today), now=now, after=today) is None
    assert step_of(RFC, code_at(RFC, today - 1), now=now, after=today) is None, "nor one from before it"


def test_what_is_sealed_is_read_with_its_key_and_for_its_record_only() -> None:
    sealer = Sealer(b"k" * 32)
    sealed = sealer.seal("secret", of="ann")
    assert "secret" not in sealed
    assert sealer.open(sealed, of="ann") == "secret"
    for other, of in ((sealer, "bob"), (Sealer(b"x" * 32), "ann")):
        with pytest.raises(Conflict):
            other.open(sealed, of=of)


class Ann:
    """A user with a password, and an authenticator once she has enrolled."""

    def __init__(self, cloud: SimulatedCloud, clock: FrozenClock, id: str) -> None:
        self.cloud = cloud
        self.clock = clock
        self.id = id
        self.secret = ""
        self.recovery: list[str] = []

    def code(self) -> str:
        return code_at(self.secret, step_at(self.clock.now()))

    async def sign_in(self, **more: str) -> httpx2.Response:
        async with client_of(self.cloud.controller, "") as nobody:
            return await nobody.post("/v1/tokens/sign-in", json={"user": "ann", "password": PASSWORD, **more})

    async def asks(self, token: str, method: str, path: str, **body: Any) -> httpx2.Response:
        async with client_of(self.cloud.controller, token) as client:
            return await client.request(method, f"/v1/{path}", json=body or None)

    async def enrols(self, token: str) -> None:
        enrolment = (await self.asks(token, "POST", f"users/{self.id}/enrol-second-factor")).json()
        self.secret = enrolment["secret"]
        query = parse_qs(urlsplit(str(enrolment["uri"])).query)
        assert query["secret"] == [self.secret]
        path = f"users/{self.id}/confirm-second-factor"
        confirmed = await self.asks(token, "POST", path, code=self.code())
        assert confirmed.status_code == 200, confirmed.text
        self.recovery = confirmed.json()["recovery_codes"]
        self.clock.advance(timedelta(seconds=30))


@pytest.fixture
async def ann(cloud: SimulatedCloud, clock: FrozenClock) -> Ann:
    user = await made(cloud.client, "users", name="ann", password=PASSWORD)
    project = (await items(cloud.client, "projects"))[0]["id"]
    await made(cloud.client, "grants", user_id=user["id"], project_id=project, role=Role.MEMBER)
    return Ann(cloud, clock, user["id"])


async def test_who_has_enrolled_signs_in_with_a_code_and_each_code_once(ann: Ann) -> None:
    token = (await ann.sign_in()).json()["token"]
    other = (await ann.sign_in()).json()["token"]
    await ann.enrols(token)
    assert (await ann.asks(token, "GET", "networks")).status_code == 200, "the one that did it goes on"
    assert (await ann.asks(other, "GET", "networks")).status_code == 401, "others end"
    assert refusal(await ann.sign_in())[:2] == (401, "second-factor-required")
    assert refusal(await ann.sign_in(password="wrong one"))[:2] == (401, "unauthenticated")
    assert refusal(await ann.sign_in(code="000000"))[:2] == (401, "unauthenticated")
    code = ann.code()
    assert (await ann.sign_in(code=code)).status_code == 201
    assert refusal(await ann.sign_in(code=code))[:2] == (401, "unauthenticated"), "a replay"
    ann.clock.advance(timedelta(seconds=30))
    assert (await ann.sign_in(code=ann.code())).status_code == 201
    assert (await shown(ann.cloud.client, f"users/{ann.id}"))["second_factor"] is True


async def test_a_code_that_is_shown_many_times_at_once_lets_one_in(ann: Ann) -> None:
    await ann.enrols((await ann.sign_in()).json()["token"])
    code = ann.code()
    answers = await asyncio.gather(*(ann.sign_in(code=code) for _ in range(4)))
    assert sorted(answer.status_code for answer in answers) == [201, 401, 401, 401]


async def test_a_recovery_code_stands_in_once(ann: Ann) -> None:
    await ann.enrols((await ann.sign_in()).json()["token"])
    assert len(set(ann.recovery)) == 10
    typed = ann.recovery[3].upper().replace("-", " ")
    assert (await ann.sign_in(code=typed)).status_code == 201
    assert (await ann.sign_in(code=typed)).status_code == 401
    session = (await ann.sign_in(code=ann.recovery[4])).json()["token"]
    fresh = await ann.asks(session, "POST", f"users/{ann.id}/new-recovery-codes", code=ann.code())
    assert (await ann.sign_in(code=ann.recovery[5])).status_code == 401, "the new ones are good now"
    assert (await ann.sign_in(code=fresh.json()["recovery_codes"][0])).status_code == 201


async def test_five_wrong_codes_shut_the_door_for_a_quarter_of_an_hour(ann: Ann) -> None:
    await ann.enrols((await ann.sign_in()).json()["token"])
    for n in range(5):
        assert (await ann.sign_in(code=f"00000{n}")).status_code == 401
    assert refusal(await ann.sign_in(code=ann.code()))[:2] == (429, "too-many")
    ann.clock.advance(timedelta(minutes=14))
    assert (await ann.sign_in(code=ann.code())).status_code == 429
    ann.clock.advance(timedelta(minutes=2))
    assert (await ann.sign_in(code=ann.code())).status_code == 201


async def test_an_administrator_takes_a_lost_second_factor_away_and_nobody_else_does(
    ann: Ann, cloud: SimulatedCloud, people: People
) -> None:
    session = (await ann.sign_in()).json()["token"]
    await ann.enrols(session)
    path = f"users/{ann.id}/remove-second-factor"
    project = (await items(cloud.client, "projects"))[0]["id"]
    other = await people.person(Role.ADMIN, project)  # pyright: ignore[reportArgumentType]
    assert (await other.client.post(f"/v1/{path}", json={})).status_code == 404
    assert (await ann.asks(session, "POST", path, code="000000")).status_code == 403, "not without a code either"
    assert (await cloud.client.post(f"/v1/{path}", json={})).status_code == 204
    assert (await ann.sign_in()).status_code == 201


async def test_a_stolen_session_does_not_enrol_over_the_factor_that_is_there(ann: Ann) -> None:
    session = (await ann.sign_in()).json()["token"]
    await ann.enrols(session)
    assert (await ann.asks(session, "POST", f"users/{ann.id}/enrol-second-factor")).status_code == 409
    again = await ann.asks(session, "POST", f"users/{ann.id}/confirm-second-factor", code=ann.code())
    assert again.status_code == 409


@pytest.mark.parametrize("by", ["project", "everybody"])
async def test_where_one_is_demanded_nobody_does_anything_but_enrol_without(
    ann: Ann, cloud: SimulatedCloud, by: str
) -> None:
    session = (await ann.sign_in()).json()["token"]
    lasting = (await ann.asks(session, "POST", "tokens", name="job")).json()["token"]
    if by == "project":
        project = (await items(cloud.client, "projects"))[0]["id"]
        await cloud.client.patch(f"/v1/projects/{project}", json={"requires_second_factor": True})
    else:
        assert (await cloud.client.put("/v1/policy", json={"second_factor": by})).status_code == 200
    assert (await cloud.client.get("/v1/networks")).status_code == 200, "the machine's own token counts as having one"
    for token in (session, lasting):
        refused = await ann.asks(token, "GET", "networks")
        assert refusal(refused)[:2] == (403, "forbidden")
        assert "enrol-second-factor" in refused.json()["detail"]
        assert (await ann.asks(token, "POST", "tokens", name="way out")).status_code == 403
        assert (
            await ann.asks(token, "PUT", f"users/{ann.id}/password", password="another one at all")
        ).status_code == 403
    await ann.enrols(session)
    assert (await ann.asks(session, "GET", "networks")).status_code == 200
    assert (await ann.asks(lasting, "GET", "networks")).status_code == 403, "made without one"
    made_with = (await ann.asks(session, "POST", "tokens", name="job")).json()["token"]
    assert (await ann.asks(made_with, "GET", "networks")).status_code == 200


async def test_only_administrators_of_the_cloud_can_be_made_to_have_one(
    ann: Ann, cloud: SimulatedCloud, people: People
) -> None:
    session = (await ann.sign_in()).json()["token"]
    boss = await people.person(Role.PLATFORM, await people.project("one"))
    await cloud.client.put("/v1/policy", json={"second_factor": "administrators"})
    assert (await ann.asks(session, "GET", "networks")).status_code == 200
    assert (await boss.client.get("/v1/networks")).status_code == 403
    acting = await boss.client.get("/v1/networks", headers={"pileus-project": "default"})
    assert acting.status_code in (403, 404)
    assert (await boss.client.put("/v1/policy", json={"second_factor": "optional"})).status_code == 403


async def test_the_secret_is_in_no_answer_event_or_file_afterwards(ann: Ann, cloud: SimulatedCloud) -> None:
    await ann.enrols((await ann.sign_in()).json()["token"])
    store = cloud.state.store
    assert isinstance(store, MemoryStore)
    kept = b"".join(bytes(event.before) + bytes(event.after) for event in store.disk.events)
    kept += b"".join(record.body for record in store.disk.records.values())
    kept += (await cloud.client.get("/v1/events?limit=1000&all_projects=true")).content
    for secret in (ann.secret, *ann.recovery):
        assert secret.encode() not in kept
        assert secret.replace("-", "").encode() not in kept
