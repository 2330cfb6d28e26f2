"""What crosses the link: one JSON array per text frame, `["request", 7, "guest.ensure", {…}]`, and stream frames.

Elements added at the end by a later version are ignored by an earlier one. A binary frame belongs to a stream: the byte
0 (which no JSON begins with), what it is, the stream's id, and the payload.
"""

import re
import struct
from enum import IntEnum
from typing import Annotated, Final, Generic, TypeVar

import msgspec

from pileus.kernel.errors import Invalid, PileusError, error_class

Body = TypeVar("Body")
Id = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
"""Counted by whoever asks; no larger than every JSON reader can hold."""


class Request(msgspec.Struct, Generic[Body], tag="request", array_like=True, frozen=True, gc=False):
    """Do this and answer, with the same id."""

    id: Id
    method: str
    body: Body


class Open(msgspec.Struct, Generic[Body], tag="open", array_like=True, frozen=True, gc=False):
    """Open a stream; answered like a request, and the stream has its id."""

    id: Id
    method: str
    body: Body


class Answer(msgspec.Struct, Generic[Body], tag="answer", array_like=True, frozen=True, gc=False):
    """It is done, with this result."""

    id: Id
    body: Body


class Progress(msgspec.Struct, Generic[Body], tag="progress", array_like=True, frozen=True, gc=False):
    """It has come so far; the answer is still to come."""

    id: Id
    body: Body


class Failure(msgspec.Struct, tag="failure", array_like=True, frozen=True, gc=False):
    """It is not done, for this reason. What only the log may read (`internal`) stays where it was raised."""

    id: Id
    code: str
    detail: str
    fields: dict[str, str] = {}
    because: dict[str, str] = {}


class Cancel(msgspec.Struct, tag="cancel", array_like=True, frozen=True, gc=False):
    """Nobody waits for this answer any more."""

    id: Id


class Note(msgspec.Struct, Generic[Body], tag="note", array_like=True, frozen=True, gc=False):
    """Know this; it is not answered."""

    method: str
    body: Body


Outgoing = Request[object] | Open[object] | Answer[object] | Progress[object] | Failure | Cancel | Note[object]
Incoming = (
    Request[msgspec.Raw]
    | Open[msgspec.Raw]
    | Answer[msgspec.Raw]
    | Progress[msgspec.Raw]
    | Failure
    | Cancel
    | Note[msgspec.Raw]
)

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder[Incoming](Incoming)
_failure_decoder = msgspec.json.Decoder(Failure)


class Malformed(ValueError):
    """What arrived is no message of ours."""


def encode(message: Outgoing) -> bytes:
    """One message as a text frame's content."""
    return _encoder.encode(message)


def decode(frame: bytes) -> Incoming:
    """The message in a text frame; bodies stay undecoded until their type is known.

    Raises:
        Malformed: the frame is not JSON, or not one of our messages.
    """
    try:
        return _decoder.decode(frame)
    except (msgspec.DecodeError, ValueError, RecursionError) as garbled:
        raise Malformed(str(garbled)) from garbled


def decode_failure(payload: bytes) -> Failure:
    """The failure that a stream ended with.

    Raises:
        Malformed: it is none.
    """
    try:
        return _failure_decoder.decode(payload)
    except (msgspec.DecodeError, ValueError, RecursionError) as garbled:
        raise Malformed(str(garbled)) from garbled


def failure(id: int, error: PileusError) -> Failure:
    """An error as it crosses the link."""
    return Failure(id, error.code, error.detail, error.fields, error.because)


def error_from(failure: Failure) -> PileusError:
    """The error that a failure tells of: the same class as was raised, where that class is a plain one."""
    found = error_class(failure.code)
    # A class with a constructor of its own cannot be made from what crosses; the plain class it comes from can.
    plain = next(each for each in found.__mro__ if each.__init__ is PileusError.__init__)
    assert issubclass(plain, PileusError)
    return plain(failure.detail, fields=failure.fields, because=failure.because)


_AT = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<path>[^`]*)`)?$", re.DOTALL)
_FIELD = re.compile(r"(?:missing required|contains unknown) field `(?P<name>[^`]*)`")


def wrong_body(method: str, error: Exception) -> Invalid:
    """The refusal of a body that does not fit, naming the field that msgspec stopped at."""
    found = _AT.match(str(error))
    what, path = (found["what"], found["path"] or "") if found else (str(error), "")
    if named := _FIELD.search(what):
        path = f"{path}.{named['name']}" if path else named["name"]
    return Invalid(f"the body of {method} is malformed", fields={path or "body": what})


class StreamFrame(IntEnum):
    """What a binary frame is to its stream."""

    DATA = 0
    CREDIT = 1
    """The receiver has room for so many bytes more (4 bytes, big-endian)."""
    END = 2
    """Neither side writes any more; the payload is empty, or a Failure as JSON."""


STREAM_MARK: Final = b"\0"
_HEADER = struct.Struct(">BBBQ")
_CREDIT = struct.Struct(">I")


def stream_frame(kind: StreamFrame, id: int, payload: bytes, *, by_opener: bool) -> bytes:
    """A binary frame; `by_opener` tells the stream that we opened under an id from the peer's of the same id."""
    return _HEADER.pack(0, kind, by_opener, id) + payload


def read_stream_frame(frame: bytes) -> tuple[StreamFrame, int, bool, bytes]:
    """Kind, id, whether the stream's opener sent it, and payload.

    Raises:
        Malformed: the frame is too short or of no known kind.
    """
    try:
        _, kind, by_opener, id = _HEADER.unpack_from(frame)
        return StreamFrame(kind), id, bool(by_opener), frame[_HEADER.size :]
    except (struct.error, ValueError) as garbled:
        raise Malformed(str(garbled)) from garbled


def credit(amount: int) -> bytes:
    """The payload of a CREDIT frame."""
    return _CREDIT.pack(amount)


def read_credit(payload: bytes) -> int:
    """The bytes that a CREDIT frame grants.

    Raises:
        Malformed: the payload is not 4 bytes.
    """
    try:
        (amount,) = _CREDIT.unpack(payload)
    except struct.error as garbled:
        raise Malformed(str(garbled)) from garbled
    return amount
