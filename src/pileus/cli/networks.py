"""`pileus network reach`: who reaches whom, as people read it."""

from collections.abc import Mapping
from ipaddress import ip_address
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from pileus.cli.commands import Command
from pileus.cli.session import COMMON, AsCommon, Session
from pileus.kernel.errors import Invalid

if TYPE_CHECKING:
    from pileus.cli.names import Names


def commands(session: Session) -> Mapping[str, Command]:
    """The commands, by verb."""

    async def reach(
        source: Annotated[str, Parameter(help="An instance, or an address outside of the cloud.")],
        destination: Annotated[str, Parameter(help="An instance or any address; `db:5432` names its port as well.")],
        /,
        *,
        protocol: Annotated[Literal["tcp", "udp", "icmp"], Parameter(help="By default TCP.")] = "tcp",
        port: Annotated[int | None, Parameter(help="Of TCP and UDP.")] = None,
        common: AsCommon = COMMON,
    ) -> None:
        """Tell whether one reaches another, and why: hop by hop, with what would help."""
        from pileus.cli.names import Names

        session.use(common)
        destination, named = _with_port(destination)
        if named is not None and port is not None:
            raise Invalid("the port is named twice", fields={"port": "named twice"})
        async with session.client() as client:
            names = Names(client, session.document)
            body: dict[str, Any] = {"protocol": protocol}
            if (port := named if port is None else port) is not None:
                body["port"] = port
            body |= await _side(names, "source", source) | await _side(names, "destination", destination)
            operation = session.document.nouns["network"].operations["reach"]
            answer = (await client.send(operation.method, operation.path, body, plans=False)).body
        if not session.printer.document(answer):
            _show(answer, session)

    return {"reach": reach}


def _with_port(text: str) -> tuple[str, int | None]:
    """`db:5432` and `[2001:db8::1]:5432` in parts; an address of IPv6 is not taken for such."""
    name, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or (":" in name and not name.endswith("]")):
        return text.strip("[]"), None
    return name.strip("[]"), int(port)


async def _side(names: "Names", side: str, text: str) -> dict[str, str]:
    try:
        return {f"{side}_address": str(ip_address(text))}
    except ValueError:
        return {f"{side}_instance_id": await names.id("instance", text, f"{side}_instance_id")}


def _show(answer: Mapping[str, Any], session: Session) -> None:
    out = session.terminal.out
    out(answer["summary"])
    called = [f"{hop['kind'].replace('_', ' ')} {hop['name']}" for hop in answer["hops"]]
    width = max(map(len, called), default=0)
    for name, hop in zip(called, answer["hops"], strict=True):
        out(f"  {' ' if hop['passes'] else '!'} {name:<{width}}  {hop['says']}")
    for remark in answer["remarks"]:
        out(f"  ! {remark}")
    if answer["advice"]:
        out(f"to let it through: {answer['advice']}")
