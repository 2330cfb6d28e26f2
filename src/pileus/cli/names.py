"""Names where the API has ids: people type and read names."""

import asyncio
from collections.abc import Collection, Mapping
from typing import Any

from pileus.client.client import Client
from pileus.client.document import Document, Noun
from pileus.client.records import Record
from pileus.kernel.errors import Conflict, NotFound, PileusError
from pileus.kernel.ids import is_id

_ONE_BY_ONE = 8
"""More ids of one kind than this are looked up by a page of the collection."""


class Names:
    """Names to ids and back, asked of the cloud."""

    def __init__(self, client: Client, document: Document) -> None:
        self._client = client
        self._document = document

    async def id(self, noun: str, text: str, field: str = "") -> str:
        """The id of the record that is called so.

        Args:
            noun: of the record.
            text: its name, or its id.
            field: of the request, for the error.

        Raises:
            NotFound: there is none.
            Conflict: there are several; it lists their ids.
        """
        if is_id(text):
            return text
        return str((await self.record(noun, text, field))["id"])

    async def record(self, noun: str, text: str, field: str = "") -> Record:
        """The record that is called so; raises as `id` does."""
        of = self._document.nouns[noun]
        if is_id(text):
            found: Record = (await self._client.get(f"{of.path}/{text}")).body
            return found
        called = noun.replace("-", " ")
        if not of.known_by:
            raise NotFound(f"there is no {called} {text!r}: it takes an id", fields=_at(field, "not an id"))
        query = {of.known_by: text, "limit": 100}
        matches: list[Record] = (await self._client.get(of.path, query)).body["items"]
        if not matches and (hidden := of.operations["list"].hides):
            matches = (await self._client.get(of.path, {**query, **hidden})).body["items"]
        if len(matches) > 1:
            matches = await self._own(matches)
        if not matches:
            raise NotFound(f"there is no {called} {text!r}", fields=_at(field, "not found"))
        if len(matches) > 1:
            raise Conflict(
                f"{len(matches)} {of.plural.replace('-', ' ')} are called {text!r}: name one by its id",
                fields=_at(field, "ambiguous"),
                because={each["id"]: f"made {each['created_at']}" for each in matches},
            )
        return matches[0]

    async def _own(self, matches: list[Record]) -> list[Record]:
        """Of records in several projects those of the caller's own, if it has any."""
        project = (await self._client.get("/v1/tokens/current")).body["project_id"]
        return [each for each in matches if each.get("project_id") == project] or matches

    async def of(self, noun: str, records: Collection[Record], fields: Collection[str]) -> Mapping[str, str]:
        """The names of what these fields of the records refer to, by id; what cannot be found stays away.

        Actors are `user:<id>` or `host:<id>`, and so are called by both: `user:ann`.
        """
        wanted: dict[str, set[str]] = {}
        for field in fields:
            referred = self._document.referred(noun, field)
            for record in records:
                if referred:
                    wanted.setdefault(referred, set()).update(_ids(record.get(field)))
                elif field == "actor":
                    kind, _, id = record[field].partition(":")
                    wanted.setdefault(kind, set()).add(id)
        known = {each: ids - {""} for each, ids in wanted.items() if each in self._document.nouns}
        found = await asyncio.gather(*(self._names(self._document.nouns[each], ids) for each, ids in known.items()))
        names = {id: name for names in found for id, name in names.items()}
        actors = {f"{each}:{id}": f"{each}:{names[id]}" for each, ids in known.items() for id in ids if id in names}
        return names | actors

    async def _names(self, noun: Noun, ids: set[str]) -> Mapping[str, str]:
        if not noun.known_by:
            return {}
        try:
            if len(ids) > _ONE_BY_ONE:
                records: list[Record] = (await self._client.get(noun.path, {"limit": 1000})).body["items"]
            else:
                replies = await asyncio.gather(
                    *(self._client.get(f"{noun.path}/{id}") for id in ids), return_exceptions=True
                )
                records = [reply.body for reply in replies if not isinstance(reply, BaseException)]
        except PileusError:  # a table with ids is better than none
            return {}
        return {record["id"]: record[noun.known_by] for record in records if record["id"] in ids}


def _ids(value: Any) -> list[str]:  # noqa: ANN401 - any JSON value
    if isinstance(value, str):
        return [value] if value else []
    return list(value or [])


def _at(field: str, wrong: str) -> dict[str, str]:
    return {field: wrong} if field else {}
