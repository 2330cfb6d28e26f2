"""What is said to a directory and what it answers: filters, and people from entries. Pure."""

from collections.abc import Mapping, Sequence
from uuid import UUID

from pileus.cloud.identityproviders.model import IdentityProvider
from pileus.cloud.identityproviders.port import Person

Attributes = Mapping[str, Sequence[bytes]]

_SPECIAL = frozenset(b"*()\\")
_CONTROL = "userAccountControl"
"""Active Directory's flags of an account."""
_DISABLED = 0x2
_MOST_GROUPS = 10_000


def escaped(value: bytes) -> str:
    """A value in a filter (RFC 4515, section 3): what could be anything but itself goes as hexadecimal digits."""
    return "".join(chr(each) if 0x20 <= each < 0x7F and each not in _SPECIAL else f"\\{each:02x}" for each in value)


def by_name(provider: IdentityProvider, name: str) -> str:
    """The filter for the person who is called this."""
    return f"(&{provider.user_filter}({provider.name_attribute}={escaped(name.encode())}))"


def by_subject(provider: IdentityProvider, subject: str) -> str:
    """The filter for the person whose subject this is."""
    value = UUID(subject).bytes_le if _is_guid(provider) else subject.encode()
    return f"(&{provider.user_filter}({provider.subject_attribute}={escaped(value)}))"


def by_member(provider: IdentityProvider, dn: str) -> str:
    """The filter for the groups that this entry is a member of."""
    return f"({provider.group_member_attribute}={escaped(dn.encode())})"


def wanted(provider: IdentityProvider) -> list[str]:
    """The attributes of a person that are asked for."""
    named = (
        provider.subject_attribute,
        provider.name_attribute,
        provider.display_name_attribute,
        provider.mail_attribute,
        provider.groups_attribute,
        _CONTROL,
    )
    return [name for name in dict.fromkeys(named) if name]


def person(provider: IdentityProvider, attributes: Attributes, groups: Sequence[str] = ()) -> Person | None:
    """Who an entry is; None if it lacks what makes somebody known again, or a name."""
    found = {name.lower(): values for name, values in attributes.items()}
    subjects = found.get(provider.subject_attribute.lower(), ())
    if len(subjects) != 1:
        return None
    subject = str(UUID(bytes_le=subjects[0])) if _is_guid(provider) and len(subjects[0]) == 16 else _text(subjects)
    name = _text(found.get(provider.name_attribute.lower(), ()))
    if not subject or not name:
        return None
    own = [each.decode(errors="replace") for each in found.get(provider.groups_attribute.lower(), ())]
    flags = _text(found.get(_CONTROL.lower(), ()))
    return Person(
        subject=subject,
        name=name,
        display_name=_text(found.get(provider.display_name_attribute.lower(), ())),
        mail=_text(found.get(provider.mail_attribute.lower(), ())),
        groups=tuple([*own, *groups][:_MOST_GROUPS]),
        enabled=not (flags.lstrip("-").isdecimal() and int(flags) & _DISABLED),
    )


def _is_guid(provider: IdentityProvider) -> bool:
    return provider.subject_attribute.lower() == "objectguid"


def _text(values: Sequence[bytes]) -> str:
    """The first of some values, as far as it can be shown."""
    text = values[0].decode(errors="replace") if values else ""
    return "".join(letter for letter in text if letter.isprintable())
