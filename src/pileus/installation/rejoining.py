"""A new authority in the place of a lost one: hosts join it as who they were, and go on with all that they keep.

Nobody can know a host again whose authority is lost but by what root on it says. So whoever rebuilds makes one token
for all hosts, good for as long as that takes, and carries it to each. A host that has come cannot come again with
another key.
"""

import os
import platform
import shutil
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from pileus.agent.daemon import IDENTITY
from pileus.controller.compose import API_PORT
from pileus.kernel.clock import SystemClock
from pileus.kernel.errors import Conflict, Invalid, NotFound, PileusError, Unauthenticated
from pileus.kernel.ids import HostId, is_id
from pileus.link.addresses import Address, read_address
from pileus.link.certificates import AgentIdentity, Authority, key_fingerprint, to_pem
from pileus.link.hosts import HostFacts
from pileus.link.join import AUTHORITY_PATH, JOIN_PATH, Joined, JoinRequest, join
from pileus.link.tokens import hashed, matches, new_token, read_token

_LARGEST_REQUEST: Final = 64 * 1024
_NEW = "identity-new"

log = structlog.stdlib.get_logger()

_Message = MutableMapping[str, Any]  # as ASGI has it
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]


class Rejoining:
    """Lets hosts in again, each as who it was: an ASGI application for as long as a cloud is rebuilt."""

    def __init__(self, authority: Authority) -> None:
        token = new_token(authority.fingerprint)
        self.token = str(token)
        """For all hosts."""
        self.link_port = 0
        """Where the link is; known when it listens."""
        self._authority = authority
        self._secret = hashed(token.secret)
        self._keys: dict[HostId, str] = {}

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        try:
            match scope["method"], scope["path"]:
                case "GET", path if path == AUTHORITY_PATH:
                    await _answer(send, 200, self._authority.pem)
                case "POST", path if path == JOIN_PATH:
                    await _answer(send, 200, msgspec.json.encode(self.admit(await _body(receive))))
                case _:
                    raise NotFound("a cloud is being rebuilt here: there is nothing else")
        except PileusError as refused:
            problem = {"type": f"/problems/{refused.code}", "detail": refused.detail, "fields": dict(refused.fields)}
            await _answer(send, refused.status, msgspec.json.encode(problem))

    def admit(self, body: bytes) -> Joined:
        """Let a host in as who it says that it was.

        Raises:
            Unauthenticated: the token is not that of this rebuilding.
            Conflict: a host of this id has come, with another key.
            Invalid: this is no request of a host that was one of a cloud.
        """
        try:
            request = msgspec.json.decode(body, type=JoinRequest)
        except (msgspec.MsgspecError, RecursionError) as wrong:
            raise Invalid("this is not a request to join", internal=str(wrong)) from None
        if not matches(request.secret, self._secret):
            raise Unauthenticated("the join token is not that of this rebuilding")
        if not is_id(request.host):
            raise Invalid("who was this host? one that was in no cloud joins when the cloud is there again")
        host, key = HostId(request.host), key_fingerprint(request.csr)
        certificate = self._authority.certify_host(request.csr, host)
        if self._keys.setdefault(host, key) != key:
            raise Conflict(f"host {host} has joined again already, with another key")
        log.info("host joined again", host=host)
        return Joined(host=host, certificate=to_pem(certificate).decode(), link_port=self.link_port)


async def rejoin(data: Path, controller: Address, token: str) -> HostId:
    """Have this host's agent trust a new authority, as the host that it was. Its records stay, and its guests run on.

    The agent may run; it dials with the new certificate next time. May be repeated until it succeeds.

    Args:
        data: the agent's folder.
        controller: where the cloud is rebuilt.
        token: what the rebuilding has said.

    Raises:
        Invalid: the token is none.
        NotFound: this host was in no cloud.
        Conflict: another has come as this host.
        Unavailable: nobody answers there.
    """
    former, new = AgentIdentity(data / IDENTITY), AgentIdentity(data / _NEW)
    if not new.exists:
        if not former.exists:
            raise NotFound(f"{former.folder} has no certificate: this host was in no cloud")
        await join(controller, read_token(token), new, _facts(), former=former.host)
    host = new.host
    _exchange(former.folder, new.folder)
    return host


async def rejoin_at(data: Path, controller: str, token: str) -> HostId:
    """The same, at an address as it is typed. Raises as `rejoin` does, and Invalid if it is no address."""
    return await rejoin(data, read_address(controller, default_port=API_PORT), token)


def _facts() -> HostFacts:
    """What a request to join has to say; who rebuilds hears it all again from the agent."""
    return HostFacts(
        name=platform.node(),
        hypervisor="",
        accelerator="",
        accelerator_reason="",
        architecture=platform.machine(),
        vcpus=os.cpu_count() or 1,
        memory_mib=0,
        disk_mib=0,
        version="",
    )


def _exchange(former: Path, new: Path) -> None:
    """The new identity takes the place of the former one, which is kept beside it."""
    if former.exists():
        former.rename(former.with_name(f"{former.name}-replaced-{SystemClock().now():%Y%m%dT%H%M%SZ}"))
    shutil.move(new, former)


async def _body(receive: _Receive) -> bytes:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > _LARGEST_REQUEST:
            raise Invalid("this is not a request to join")
        if message["type"] == "http.disconnect" or not message.get("more_body"):
            return body


async def _answer(send: _Send, status: int, body: bytes) -> None:
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
