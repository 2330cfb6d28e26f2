"""How a new host gets its certificate: it has a join token and the controller's address, and nothing else.

The host trusts nobody at first. It asks the address for the authority's certificate (`GET /v1/authority`, over a
connection that proves nothing), and goes on only if that has the fingerprint that is in its token. From then on it
trusts this authority alone: it sends the token's secret and a signing request (`POST /v1/hosts/join`) over a connection
that the authority vouches for, so that the secret cannot reach a stranger.
"""

import ssl
from datetime import datetime
from typing import Final, TypeVar

import httpx2
import msgspec
import structlog

from pileus.kernel.errors import Conflict, Forbidden, Invalid, PileusError, Unauthenticated, Unavailable, error_class
from pileus.kernel.ids import HostId
from pileus.link.addresses import Address
from pileus.link.certificates import (
    CONTROLLER_NAME,
    AgentIdentity,
    AgentKey,
    Authority,
    fingerprint,
    key_fingerprint,
    read_certificate,
    to_pem,
    trusting,
)
from pileus.link.hosts import HostFacts
from pileus.link.messages import Message
from pileus.link.tokens import JoinToken, matches

AUTHORITY_PATH: Final = "/v1/authority"
"""Where the API gives the authority's certificate to everybody, as PEM."""
JOIN_PATH: Final = "/v1/hosts/join"

_LARGEST_ANSWER: Final = 64 * 1024

T = TypeVar("T")
log = structlog.stdlib.get_logger()


class JoinRequest(Message, frozen=True, kw_only=True, omit_defaults=True):
    """What a new host asks."""

    secret: str
    csr: str
    """A certificate signing request, PEM."""
    facts: HostFacts
    host: str = ""
    """Who it was under an authority that is lost; heeded only by whoever rebuilds the cloud."""


class Joined(Message, frozen=True, kw_only=True, omit_defaults=True):
    """What it is given."""

    host: HostId
    certificate: str
    """PEM."""
    link_port: int
    addresses: tuple[str, ...] = ()
    """Where else the controller is, besides the address that was used to join."""

    def links(self, joined_at: Address) -> list[Address]:
        """Where to dial the link: at the address that is known to work first."""
        return [Address(host, self.link_port) for host in dict.fromkeys((joined_at.host, *self.addresses))]


class Invitation(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What the controller keeps of a join token."""

    secret_hash: str
    expires_at: datetime
    host: HostId | None = None
    """Who has used it."""
    key: str = ""
    """The fingerprint of that host's key, for it alone may repeat a join whose answer was lost."""


class Admission(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to give, and what to keep before it is given."""

    answer: Joined
    invitation: Invitation
    serial: int


def accept_join(
    authority: Authority,
    request: JoinRequest,
    invitation: Invitation,
    *,
    host: HostId,
    now: datetime,
    link_port: int,
    addresses: tuple[str, ...] = (),
) -> Admission:
    """Let a host in as `host`, or as whom it was let in before; the caller keeps the invitation and then answers.

    Raises:
        Unauthenticated: the secret is wrong, over, or was used by another host.
        Invalid: the signing request is no good.
    """
    if not matches(request.secret, invitation.secret_hash):
        raise Unauthenticated("the join token is not valid")
    key = key_fingerprint(request.csr)
    if invitation.host is not None and invitation.key != key:
        raise Unauthenticated("the join token has been used")
    if invitation.host is None and now >= invitation.expires_at:
        raise Unauthenticated("the join token is over")
    host = invitation.host or host
    certificate = authority.certify_host(request.csr, host)
    return Admission(
        answer=Joined(host=host, certificate=to_pem(certificate).decode(), link_port=link_port, addresses=addresses),
        invitation=msgspec.structs.replace(invitation, host=host, key=key),
        serial=certificate.serial_number,
    )


async def join(
    address: Address,
    token: JoinToken,
    identity: AgentIdentity,
    facts: HostFacts,
    *,
    former: HostId | None = None,
    timeout_s: float = 30.0,
) -> Joined:
    """Join the cloud that made the token, by its API at `address`, and keep the certificate.

    `former` is who this host was in a cloud whose authority is lost.

    May be repeated until it succeeds.

    Raises:
        Conflict: this host has joined a cloud.
        Forbidden: who answers there is not of that cloud.
        Unauthenticated: the token is used up or over.
        Unavailable: nobody answers there.
    """
    if identity.exists:
        raise Conflict("this host has joined a cloud already", internal=str(identity.folder))
    authority_pem = await _fetch_authority(address, token, timeout_s)
    key = AgentKey.load_or_create(identity.folder)
    request = JoinRequest(secret=token.secret, csr=key.signing_request(), facts=facts, host=former or "")
    async with _client(trusting(authority_pem), address, timeout_s) as client:
        answer = await _ask(client, "POST", JOIN_PATH, msgspec.json.encode(request))
    joined = _read(answer, Joined)
    identity.install(key, read_certificate(joined.certificate), authority_pem)
    log.info("joined", host=joined.host, authority=token.authority)
    return joined


async def _fetch_authority(address: Address, token: JoinToken, timeout_s: float) -> bytes:
    async with _client(_trusting_nobody(), address, timeout_s) as client:
        pem = await _ask(client, "GET", AUTHORITY_PATH, b"")
    try:
        found = fingerprint(read_certificate(pem))
    except Invalid as strange:
        raise Forbidden(f"{address} is not a controller") from strange
    if found != token.authority:
        raise Forbidden(
            f"the controller at {address} is of another cloud than the join token",
            because={"controller": found, "token": token.authority},
        )
    return pem


def _trusting_nobody() -> ssl.SSLContext:
    """For fetching what is checked by its fingerprint; nothing is said on such a connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _client(context: ssl.SSLContext, address: Address, timeout_s: float) -> httpx2.AsyncClient:
    # Proxies of the environment are for the outside; the controller is not.
    return httpx2.AsyncClient(verify=context, base_url=f"https://{address}", timeout=timeout_s, trust_env=False)


async def _ask(client: httpx2.AsyncClient, method: str, path: str, body: bytes) -> bytes:
    try:
        async with client.stream(
            method,
            path,
            content=body,
            headers={"Content-Type": "application/json"} if body else {},
            # The controller's certificate is checked for its name, not for the address that was typed.
            extensions={"sni_hostname": CONTROLLER_NAME},
        ) as response:
            answer = b""
            async for piece in response.aiter_bytes():
                answer += piece
                if len(answer) > _LARGEST_ANSWER:
                    raise Forbidden(f"{client.base_url} is not a controller", internal="its answer is too long")
    except httpx2.HTTPError as failed:
        raise Unavailable(f"the controller at {client.base_url} does not answer: {failed}") from failed
    if response.is_success:
        return answer
    raise _refusal(client, response.status_code, answer)


class _Problem(msgspec.Struct):
    type: str = ""
    detail: str = ""
    fields: dict[str, str] = {}


def _refusal(client: httpx2.AsyncClient, status: int, answer: bytes) -> PileusError:
    try:
        problem = _read(answer, _Problem)
    except Forbidden:
        problem = _Problem()
    kind = error_class(problem.type.rpartition("/")[2])
    return kind(problem.detail or f"{client.base_url} answered with status {status}", fields=problem.fields)


def _read(answer: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(answer, type=kind)
    except (msgspec.DecodeError, ValueError, RecursionError) as strange:
        raise Forbidden("who answers there is not a controller", internal=str(strange)) from strange
