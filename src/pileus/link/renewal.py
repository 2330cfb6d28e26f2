"""An agent's certificate is renewed over the link, with a new key, when a third of its life is left."""

import asyncio
from typing import Final

import structlog

from pileus.kernel.clock import Clock
from pileus.kernel.errors import PileusError
from pileus.kernel.ids import HostId
from pileus.link.certificates import AgentIdentity, AgentKey, Authority, is_due, read_certificate, to_pem
from pileus.link.channel import Channel
from pileus.link.handlers import Call, Handlers
from pileus.link.messages import Message, Method

LOOK_EVERY_S: Final = 3600.0

log = structlog.stdlib.get_logger()


class RenewalRequest(Message, frozen=True, kw_only=True, omit_defaults=True):
    """A host asks for a new certificate; which host it is, its connection tells."""

    csr: str
    """A certificate signing request, PEM."""


class Renewed(Message, frozen=True, kw_only=True, omit_defaults=True):
    """The new certificate, PEM. The old one holds until it is over: this answer may be lost."""

    certificate: str


def answer_renewals(handlers: Handlers, authority: Authority) -> None:
    """Let hosts renew their certificates on channels with these handlers."""

    async def renew(body: RenewalRequest, call: Call) -> Renewed:
        certificate = authority.certify_host(body.csr, HostId(call.peer))
        log.info("certificate renewed", host=call.peer, serial=f"{certificate.serial_number:x}")
        return Renewed(certificate=to_pem(certificate).decode())

    handlers.add(Method.CERTIFICATE_RENEW, RenewalRequest, renew)


async def renew_if_due(identity: AgentIdentity, channel: Channel, clock: Clock) -> bool:
    """Renew the agent's certificate if it is time; true if it was done. The next connection shows the new one.

    Raises:
        PileusError: it was time and did not succeed; the old one is as it was.
    """
    if not is_due(identity.certificate, clock.now()):
        return False
    key = AgentKey()
    request = RenewalRequest(csr=key.signing_request())
    answer = await channel.request(Method.CERTIFICATE_RENEW, request, Renewed, timeout_s=30)
    identity.install(key, read_certificate(answer.certificate))
    log.info("certificate renewed")
    return True


async def keep_renewed(identity: AgentIdentity, channel: Channel, clock: Clock) -> None:
    """Look now and every hour; runs beside the agent's channel and ends by being cancelled."""
    while True:
        try:
            await renew_if_due(identity, channel, clock)
        except PileusError as error:
            log.warning("certificate not renewed", why=error.detail)
        await asyncio.sleep(LOOK_EVERY_S)
