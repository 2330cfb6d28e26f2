"""People who use a cloud: users with a role in a project, each with a client of the API."""

from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType

import httpx2

from pileus.cloud.identity.model import Grant, Token, TokenSecret, User
from pileus.cloud.identity.tokens import new_token, token_hash
from pileus.kernel.ids import ProjectId, TokenId, UserId, new_id
from pileus.operations.caller import Role
from pileus.state.records import Record
from pileus.state.state import put
from pileus.testing.cloud import ORIGIN, SimulatedCloud, client_of


@dataclass(frozen=True)
class Person:
    """A user with a token for one project."""

    user_id: UserId
    project_id: ProjectId
    role: Role
    token: str
    client: httpx2.AsyncClient


class People:
    """Makes projects and the people in them. An async context manager: their clients are closed when it is left."""

    def __init__(self, cloud: SimulatedCloud) -> None:
        self._cloud = cloud
        self._clients = AsyncExitStack()

    async def __aenter__(self) -> "People":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._clients.aclose()

    async def project(self, name: str) -> ProjectId:
        """A new project, with what every project begins with."""
        answer = await self._cloud.client.post("/v1/projects", json={"name": name})
        assert answer.status_code == 201, answer.text
        return ProjectId(answer.json()["id"])

    async def person(self, role: Role, project: ProjectId) -> Person:
        """A new user with this role in a project; they have no password, for hashing one takes its time."""
        now = self._cloud.now()
        user, token, text = UserId(new_id()), TokenId(new_id()), new_token()
        records: list[Record] = [
            User(id=user, created_at=now, name=f"{role}-{user[-12:]}", is_platform=role is Role.PLATFORM),
            Token(id=token, created_at=now, project_id=project, user_id=user, name="test"),
            TokenSecret(id=token, created_at=now, token_id=token, hash=token_hash(text)),
        ]
        if role is not Role.PLATFORM:
            records.append(Grant(id=new_id(), created_at=now, project_id=project, user_id=user, role=role))
        await self._cloud.state.commit(map(put, records), ORIGIN)
        client = await self._clients.enter_async_context(client_of(self._cloud.controller, text))
        return Person(user, project, role, text, client)
