"""A new host joins: the pure decision, and the whole way over HTTPS."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from pileus.kernel.clock import FrozenClock, SystemClock
from pileus.kernel.errors import Conflict, Forbidden, Invalid, PileusError, Unauthenticated, Unavailable
from pileus.kernel.ids import HostId
from pileus.link.addresses import Address
from pileus.link.certificates import LEAF_LIFETIME, AgentIdentity, AgentKey, Authority, ServerIdentity
from pileus.link.handlers import Handlers
from pileus.link.join import AUTHORITY_PATH, JOIN_PATH, Invitation, JoinRequest, accept_join, join
from pileus.link.renewal import answer_renewals, renew_if_due
from pileus.link.tokens import hashed, new_token
from pileus.testing.links import FACTS, LoopbackCloud

HOST, OTHER = HostId("host-1"), HostId("host-2")
NOW = datetime(2026, 6, 1, tzinfo=UTC)


def asked(secret: str, key: AgentKey) -> JoinRequest:
    return JoinRequest(secret=secret, csr=key.signing_request(), facts=FACTS)


class TestDecision:
    authority = Authority.create(FrozenClock(NOW))
    token = new_token(authority.fingerprint)
    invitation = Invitation(secret_hash=hashed(token.secret), expires_at=NOW + timedelta(hours=1))

    def test_a_token_lets_one_host_in(self) -> None:
        request = asked(self.token.secret, AgentKey())
        admission = accept_join(self.authority, request, self.invitation, host=HOST, now=NOW, link_port=5871)
        assert admission.answer.host == HOST
        assert admission.invitation.host == HOST
        again = asked(self.token.secret, AgentKey())
        with pytest.raises(Unauthenticated, match="used"):
            accept_join(self.authority, again, admission.invitation, host=OTHER, now=NOW, link_port=5871)

    def test_a_host_whose_answer_was_lost_is_let_in_again_as_the_same_even_late(self) -> None:
        key = AgentKey()
        request = asked(self.token.secret, key)
        first = accept_join(self.authority, request, self.invitation, host=HOST, now=NOW, link_port=5871)
        late = NOW + timedelta(days=1)
        again = accept_join(
            self.authority,
            asked(self.token.secret, key),
            first.invitation,
            host=OTHER,
            now=late,
            link_port=5871,
        )
        assert again.answer.host == HOST
        assert again.serial != first.serial

    def test_a_token_is_over_when_its_time_is(self) -> None:
        request, late = asked(self.token.secret, AgentKey()), NOW + timedelta(hours=1)
        with pytest.raises(Unauthenticated, match="over"):
            accept_join(self.authority, request, self.invitation, host=HOST, now=late, link_port=5871)

    def test_a_wrong_secret_and_a_bad_request_are_refused(self) -> None:
        wrong = asked("00" * 24, AgentKey())
        with pytest.raises(Unauthenticated):
            accept_join(self.authority, wrong, self.invitation, host=HOST, now=NOW, link_port=5871)
        bad = JoinRequest(secret=self.token.secret, csr="nonsense", facts=FACTS)
        with pytest.raises(Invalid):
            accept_join(self.authority, bad, self.invitation, host=HOST, now=NOW, link_port=5871)


class Api:
    """The two routes of joining, on a bare HTTPS server."""

    def __init__(self, authority: Authority, identity: ServerIdentity, invitation: Invitation) -> None:
        self.authority = authority
        self.shown = authority.pem
        self.identity = identity
        self.invitation = invitation
        self.posts: list[bytes] = []
        self.next_host = HOST

    @asynccontextmanager
    async def listening(self) -> AsyncGenerator[Address]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.identity.api_context())
        async with server:
            yield Address("127.0.0.1", server.sockets[0].getsockname()[1])

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = next((int(line.split(":")[1]) for line in head.split("\r\n") if "content-length" in line), 0)
            status, answer = self.answer(head.split()[1], await reader.readexactly(length))
            writer.write(b"HTTP/1.1 %d x\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % (status, len(answer)))
            writer.write(answer)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # a client that does not trust us
        finally:
            writer.close()

    def answer(self, path: str, body: bytes) -> tuple[int, bytes]:
        if path == AUTHORITY_PATH:
            return 200, self.shown
        assert path == JOIN_PATH
        self.posts.append(body)
        try:
            admission = accept_join(
                self.authority,
                msgspec.json.decode(body, type=JoinRequest),
                self.invitation,
                host=self.next_host,
                now=datetime.now(UTC),
                link_port=5871,
                addresses=("192.0.2.1",),
            )
        except PileusError as error:
            problem = {"type": f"/problems/{error.code}", "detail": error.detail, "status": error.status}
            return error.status, msgspec.json.encode(problem)
        self.invitation = admission.invitation
        return 200, msgspec.json.encode(admission.answer)


@pytest.fixture
def authority() -> Authority:
    return Authority.create(SystemClock())


def _api(authority: Authority, folder: Path, secret: str) -> Api:
    identity = ServerIdentity(authority, folder, SystemClock())
    identity.ensure([])
    later = datetime.now(UTC) + timedelta(hours=1)
    return Api(authority, identity, Invitation(secret_hash=hashed(secret), expires_at=later))


async def test_a_host_joins_with_a_token_and_an_address(tmp_path: Path, authority: Authority) -> None:
    token = new_token(authority.fingerprint)
    api = _api(authority, tmp_path, token.secret)
    identity = AgentIdentity(tmp_path / "agent")
    async with api.listening() as address:
        joined = await join(address, token, identity, FACTS)
        assert identity.host == joined.host == HOST
        assert joined.links(address) == [Address("127.0.0.1", 5871), Address("192.0.2.1", 5871)]
        with pytest.raises(Unauthenticated):
            await join(address, token, AgentIdentity(tmp_path / "second"), FACTS)
        with pytest.raises(Conflict):
            await join(address, token, identity, FACTS)


async def test_a_join_whose_answer_was_lost_is_repeated(tmp_path: Path, authority: Authority) -> None:
    token = new_token(authority.fingerprint)
    api = _api(authority, tmp_path, token.secret)
    identity = AgentIdentity(tmp_path / "agent")
    key = AgentKey.load_or_create(identity.folder)
    async with api.listening() as address:
        api.answer(JOIN_PATH, msgspec.json.encode(asked(token.secret, key)))
        api.next_host = OTHER
        assert (await join(address, token, identity, FACTS)).host == HOST


async def test_the_secret_does_not_reach_a_controller_of_another_cloud(tmp_path: Path, authority: Authority) -> None:
    token = new_token(Authority.create(SystemClock()).fingerprint)
    api = _api(authority, tmp_path, token.secret)
    async with api.listening() as address:
        with pytest.raises(Forbidden, match="another cloud"):
            await join(address, token, AgentIdentity(tmp_path / "agent"), FACTS)
    assert api.posts == []


async def test_the_secret_does_not_reach_one_who_only_shows_the_right_authority(
    tmp_path: Path, authority: Authority
) -> None:
    token = new_token(authority.fingerprint)
    impostor = _api(Authority.create(SystemClock()), tmp_path, token.secret)
    impostor.shown = authority.pem
    async with impostor.listening() as address:
        with pytest.raises(Unavailable, match="certificate"):
            await join(address, token, AgentIdentity(tmp_path / "agent"), FACTS)
    assert impostor.posts == []


@pytest.mark.parametrize("shown", [b"nonsense", bytes(100_000)])
async def test_who_is_no_controller_is_told_so(tmp_path: Path, authority: Authority, shown: bytes) -> None:
    token = new_token(authority.fingerprint)
    api = _api(authority, tmp_path, token.secret)
    api.shown = shown
    async with api.listening() as address:
        with pytest.raises(Forbidden, match="not a controller"):
            await join(address, token, AgentIdentity(tmp_path / "agent"), FACTS)


async def test_an_agent_renews_its_certificate_over_the_link_when_it_is_due(cloud: LoopbackCloud) -> None:
    answer_renewals(cloud.server_handlers, cloud.authority)
    clock = FrozenClock(datetime.now(UTC))
    async with cloud.agent() as pair:
        identity = AgentIdentity(cloud.folder / pair.host)
        before = identity.certificate
        assert not await renew_if_due(identity, pair.agent, clock)
        assert identity.certificate == before
        clock.advance(LEAF_LIFETIME * 2 / 3)
        assert await renew_if_due(identity, pair.agent, clock)
        after = identity.certificate
        assert after.serial_number != before.serial_number
        assert after.public_key() != before.public_key()
        assert identity.host == pair.host
    # The renewed one is what the next connection shows.
    connection = await cloud.dialler(identity, Handlers()).dial()
    assert connection is not None
    await connection.close()


async def test_a_renewal_that_fails_leaves_the_old_certificate(cloud: LoopbackCloud) -> None:
    clock = FrozenClock(datetime.now(UTC) + LEAF_LIFETIME * 2 / 3)
    async with cloud.agent() as pair:
        identity = AgentIdentity(cloud.folder / pair.host)
        before = identity.certificate
        with pytest.raises(PileusError):
            await renew_if_due(identity, pair.agent, clock)
        assert identity.certificate == before
