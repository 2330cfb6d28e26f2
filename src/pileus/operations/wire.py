"""What callers send: strict about what is accepted, immutable once read."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints


class Wire(BaseModel):
    """The body of a request. Unknown fields are errors: a typo must not be a wish that nobody hears."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, regex_engine="rust-regex", use_attribute_docstrings=True
    )


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must not hold control characters")
    return text


Name = Annotated[
    str, StringConstraints(min_length=1, max_length=255, strip_whitespace=True), AfterValidator(_printable)
]
"""A name for people: any printable characters."""

Description = Annotated[str, StringConstraints(max_length=2000)]

HostName = Annotated[
    str, StringConstraints(pattern=r"^[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?$", min_length=1, max_length=63)
]
"""One label of a domain name (RFC 1123, section 2.1)."""

Id = Annotated[
    str, StringConstraints(pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$", to_lower=True)
]
"""A UUID in its canonical form (RFC 9562, section 4)."""

LabelKey = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9]([a-zA-Z0-9._/-]{0,61}[a-zA-Z0-9])?$")]
LabelValue = Annotated[str, StringConstraints(max_length=255), AfterValidator(_printable)]
Labels = Annotated[dict[LabelKey, LabelValue], Field(max_length=64)]
"""Up to 64 pairs that mean something to whoever set them."""


def ref(kind: str) -> Any:  # noqa: ANN401 - pydantic types it so
    """Marks a field that holds the id of a record of this kind; clients may offer names instead."""
    return Field(json_schema_extra={"x-pileus-ref": kind})
