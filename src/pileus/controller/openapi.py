"""The OpenAPI document where it is checked in, and what writes it there: `python -m pileus.controller.openapi`."""

from pathlib import Path

import msgspec

from pileus.controller.nouns import NOUNS
from pileus.operations.openapi import document

PATH = Path(__file__).parent.parent / "client" / "openapi.json"


def written() -> bytes:
    """The document as it is checked in: indented, for people to read what a change changes."""
    return msgspec.json.format(msgspec.json.encode(document(NOUNS)), indent=1) + b"\n"


def served() -> bytes:
    """The document as it is checked in, without the space that is for people: to make it anew takes a while."""
    return msgspec.json.format(PATH.read_bytes(), indent=-1)


if __name__ == "__main__":
    PATH.write_bytes(written())
