"""How operations are declared: one noun, its operations, each with its permission and its planner.

    instances = Noun(INSTANCES, plural="instances", columns=("name", "state"), about="Virtual machines.")
    instances.list(filters=("name", "state"))
    instances.show()

    @instances.post()
    def create(ask: Ask, wish: InstanceCreate) -> Plan:
        '''Create an instance.'''

    @instances.delete("/{id}")
    def delete(ask: Ask, instance: Instance) -> Plan: ...

    @instances.post("/{id}/reboot")
    def reboot(ask: Ask, instance: Instance, wish: Reboot) -> Plan: ...

From a declaration come the route, the OpenAPI document, the command, the permission check and the audit entry. A
planner's parameters say what it takes: a record from the path, a wish from the body, both or neither.
"""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, Literal, Protocol, TypeVar, get_type_hints

import msgspec
from pydantic import BaseModel, TypeAdapter

from pileus.kernel.errors import PileusError
from pileus.operations.caller import Caller, Role
from pileus.operations.plan import Ask, Plan, ShownPlan
from pileus.state.kinds import Kind
from pileus.state.records import Record
from pileus.workflow.workflow import Workflow

R = TypeVar("R", bound=Record)
F = TypeVar("F", bound=Callable[..., Any])

Planner = Callable[..., Plan | Awaitable[Plan]]
"""Pure, of the state in memory; one that has to read the log first is a coroutine, and pure from there on."""

MAX_BODY = 64 * 1024
"""Bytes of a request's body, unless an operation says otherwise."""


class Parameter(msgspec.Struct, frozen=True, kw_only=True):
    """A parameter of an operation, in the query or in a header."""

    name: str
    about: str
    place: Literal["query", "header"] = "query"
    required: bool = False
    schema: Mapping[str, Any] = msgspec.field(default_factory=lambda: {"type": "string"})


AT = Parameter(
    name="at",
    about="As it was at this moment (RFC 3339), as far back as the event log goes",
    schema={"type": "string", "format": "date-time"},
)


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What goes back to a caller."""

    status: int
    body: bytes = b""
    media_type: str = "application/json"
    headers: Mapping[str, str] = {}
    stream: AsyncIterator[bytes] | None = None
    """Instead of a body: bytes as they come."""


class Exchange(Protocol):
    """A request with its caller, for the few operations that are more than a plan: uploads, streams."""

    @property
    def ask(self) -> Ask: ...

    @property
    def caller(self) -> Caller: ...

    @property
    def services(self) -> Mapping[type, Any]:
        """What the controller is composed of, by type."""
        ...

    @property
    def target(self) -> str:
        """What stands for `{id}` in the path."""
        ...

    def query(self, name: str, default: str = "") -> str: ...
    def header(self, name: str) -> str: ...
    def body(self) -> AsyncIterator[bytes]:
        """The body as it arrives."""
        ...

    async def commit(self, plan: Plan, *, once: bytes | None = None) -> Answer:
        """Do what a plan says, as after a planner: quota, commit, workflow, answer.

        With `once`, which is the request's body, its idempotency key counts: see `answered`.
        """
        ...

    async def answered(self, once: bytes) -> Answer | None:
        """What this request was answered when it came the first time; None if this is the first time.

        Raises:
            Conflict: its idempotency key was used for another request.
        """
        ...

    def plan_together(
        self, verb: str, asked: Iterable[tuple[str, bytes]], *, dry_run: bool = False
    ) -> list[Plan | PileusError]:
        """What an operation of the noun would do to each of these targets, with these bodies, if all were done.

        Each is planned as if those before it were done, and as if the caller had asked for it alone; in the place of
        a plan stands why there is none.
        """
        ...

    def shown(self, plan: Plan) -> ShownPlan:
        """A plan as people see it."""
        ...

    async def perform(
        self, verb: str, part: str, *, target: str = "", body: bytes = b"", dry_run: bool = False
    ) -> Answer:
        """Do another operation of the noun, exactly as if the caller had asked for that alone.

        `part` tells it from others of this request: an idempotency key of the request is one for each part.

        Raises:
            PileusError: what the operation raises, and Forbidden if it is not for this caller.
        """
        ...


class Socket(Protocol):
    """A WebSocket with its caller."""

    @property
    def ask(self) -> Ask: ...

    @property
    def services(self) -> Mapping[type, Any]: ...

    @property
    def target(self) -> str:
        """What stands for `{id}` in the path."""
        ...

    def query(self, name: str, default: str = "") -> str: ...

    async def receive(self) -> bytes | None:
        """The next message; None when the other side has closed."""
        ...

    async def send(self, data: bytes) -> None: ...
    async def close(self, reason: str = "") -> None: ...


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One operation, as declared."""

    noun: str
    verb: str
    method: str
    path: str
    """With the placeholder `{id}` for the record."""
    least: Role | None
    """Who may: this role in the project, or None for everybody, signed in or not."""
    about: str
    kind: Kind[Any]
    reads: str = ""
    """`list` or `show`, for those that the engine does by itself."""
    planner: Planner | None = None
    special: Callable[..., Awaitable[Answer]] | None = None
    socket: Callable[..., Awaitable[None]] | None = None
    starts: Workflow[Any, Any] | None = None
    """The workflow that its plans begin: it answers 202 with the task's id, and with the record if it makes one."""
    takes_record: bool = False
    wish: Any = None
    """The TypeAdapter of the body, or None."""
    wish_type: type[BaseModel] | None = None
    answers: type[msgspec.Struct] | None = None
    """What it answers with, if that is not the noun's record."""
    status: int = 200
    parameters: Sequence[Parameter] = ()
    raises: Sequence[type[PileusError]] = ()
    max_body: int = MAX_BODY
    body_media_type: str = "application/json"
    filters: Sequence[str] = ()
    sorts: Sequence[str] = ()
    newest_first: bool = False
    """How a list is sorted for who does not say; otherwise the oldest come first."""
    hides: tuple[str, str] | None = None
    """A field and the value of it with which a list leaves records out, unless it is asked for by that field."""

    @property
    def id(self) -> str:
        return f"{self.noun}.{self.verb}"

    @property
    def knows_the_past(self) -> bool:
        """Whether it takes `at`, and then answers with what was."""
        return bool(self.reads) or any(parameter is AT for parameter in self.parameters)

    @property
    def changes(self) -> bool:
        return self.planner is not None


class Noun(Generic[R]):
    """The operations of one noun."""

    def __init__(
        self,
        kind: Kind[R],
        *,
        plural: str,
        columns: Sequence[str],
        about: str,
        visible: Callable[[Ask, R], bool] | None = None,
        scope: str = "project",
    ) -> None:
        """Declare a noun.

        Args:
            kind: of its records.
            plural: as in the path: `/v1/<plural>`.
            columns: what a table of them shows.
            about: one sentence.
            visible: whether a caller may know of a record; by default, if it is of the caller's project or of nobody.
            scope: the index by which a caller's own records are found; empty for what everybody sees.
        """
        self.kind = kind
        self.name = kind.name
        self.plural = plural
        self.columns = tuple(columns)
        self.about = about
        self.visible: Callable[[Ask, R], bool] = visible or Ask.may_see
        self.scope = scope if scope in {*kind.indexes, *kind.many} else ""
        self.declared: list[Operation] = []

    @property
    def path(self) -> str:
        return f"/v1/{self.plural}"

    def list(
        self,
        *,
        filters: Sequence[str] = (),
        sorts: Sequence[str] = (),
        newest_first: bool = False,
        hides: tuple[str, str] | None = None,
        least: Role = Role.READER,
    ) -> None:
        """Declare GET of the collection, in pages; `filters` are fields to be equal, `sorts` fields to sort by.

        Records of which a field has the value that `hides` names are listed only to who filters by that field.
        """
        known = {field.name for field in msgspec.structs.fields(self.kind.record)}
        if unknown := {*filters, *sorts, *self.columns} - known:
            raise ValueError(f"{self.name} has no {', '.join(sorted(unknown))}")
        self._add(
            verb="list",
            method="GET",
            path=self.path,
            least=least,
            about=f"List {self.plural.replace('-', ' ')}.",
            reads="list",
            filters=tuple(filters),
            sorts=("created_at", *sorts),
            newest_first=newest_first,
            hides=hides,
        )

    def show(self, *, least: Role = Role.READER) -> None:
        """Declare GET of one record."""
        self._add(
            verb="show",
            method="GET",
            path=f"{self.path}/{{id}}",
            least=least,
            about=f"Show {_article(self.name)} {self.name.replace('_', ' ')}.",
            reads="show",
            takes_record=True,
        )

    def post(self, path: str = "", **more: Any) -> Callable[[F], F]:  # noqa: ANN401 - the fields of Operation
        return self._planned("POST", path, **more)

    def patch(self, path: str = "/{id}", **more: Any) -> Callable[[F], F]:  # noqa: ANN401
        return self._planned("PATCH", path, **more)

    def delete(self, path: str = "/{id}", **more: Any) -> Callable[[F], F]:  # noqa: ANN401
        return self._planned("DELETE", path, **more)

    def put(self, path: str, **more: Any) -> Callable[[F], F]:  # noqa: ANN401
        return self._planned("PUT", path, **more)

    def special(self, method: str, path: str, *, least: Role | None, **more: Any) -> Callable[[F], F]:  # noqa: ANN401
        """Declare an operation that is more than a plan: `async def f(exchange, [record], [wish]) -> Answer`."""

        def declare(handler: F) -> F:
            self._add(
                **{
                    "verb": handler.__name__,
                    "method": method,
                    "path": self.path + path,
                    "least": least,
                    "about": _about(handler),
                    "special": handler,
                    **_parameters(handler),
                    **more,
                }
            )
            return handler

        return declare

    def socket(self, path: str, *, least: Role | None, **more: Any) -> Callable[[F], F]:  # noqa: ANN401
        """Declare a WebSocket: `async def f(socket, [record]) -> None`."""

        def declare(handler: F) -> F:
            self._add(
                **{
                    "verb": handler.__name__,
                    "method": "GET",
                    "path": self.path + path,
                    "least": least,
                    "about": _about(handler),
                    "socket": handler,
                    "status": 101,
                    **_parameters(handler),
                    **more,
                }
            )
            return handler

        return declare

    def _planned(self, method: str, path: str, *, least: Role = Role.MEMBER, **more: Any) -> Callable[[F], F]:  # noqa: ANN401
        def declare(planner: F) -> F:
            self._add(
                **{
                    "verb": planner.__name__,
                    "method": method,
                    "path": self.path + path,
                    "least": least,
                    "about": _about(planner),
                    "planner": planner,
                    "status": _status(method, path, starts=more.get("starts") is not None),
                    **_parameters(planner),
                    **more,
                }
            )
            return planner

        return declare

    def _add(self, **fields: Any) -> None:  # noqa: ANN401 - the fields of Operation, which checks them
        operation = Operation(noun=self.name, kind=self.kind, **fields)
        if any(each.verb == operation.verb for each in self.declared):
            raise ValueError(f"{operation.id} is declared twice")
        self.declared.append(operation)


def _status(method: str, path: str, *, starts: bool) -> int:
    if starts:
        return 202
    return {"POST": 200 if path else 201, "DELETE": 204}.get(method, 200)


def _about(handler: Callable[..., Any]) -> str:
    about = inspect.getdoc(handler)
    if not about:
        raise ValueError(f"{handler.__name__} needs a docstring: it is what people read")
    return about


def _parameters(handler: Callable[..., Any]) -> dict[str, Any]:
    """Whether a handler takes a record, and what wish, by its annotations."""
    found: dict[str, Any] = {}
    for name, hint in list(get_type_hints(handler).items())[1:]:
        if name == "return" or not isinstance(hint, type):
            continue
        if issubclass(hint, Record):
            found["takes_record"] = True
        elif issubclass(hint, BaseModel):
            found["wish_type"] = hint
            found["wish"] = TypeAdapter(hint)
    return found


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeio" else "a"
