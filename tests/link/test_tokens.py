import string
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pileus.kernel.clock import FrozenClock
from pileus.kernel.errors import Forbidden, Invalid
from pileus.kernel.ids import HostId
from pileus.link.tickets import Tickets
from pileus.link.tokens import JoinToken, hashed, matches, new_token, read_token


def _token(authority: bytes, secret: bytes) -> JoinToken:
    return JoinToken(authority=f"sha256:{authority.hex()}", secret=secret.hex())


tokens = st.builds(_token, st.binary(min_size=32, max_size=32), st.binary(min_size=24, max_size=24))


@given(tokens)
def test_a_token_is_read_as_it_was_written(token: JoinToken) -> None:
    assert read_token(f"  {token}\n") == token


@given(tokens, st.integers(min_value=0), st.sampled_from(string.printable))
def test_any_mistyped_character_is_told(token: JoinToken, at: int, typed: str) -> None:
    text = str(token)
    at %= len(text)
    mistyped = text[:at] + typed + text[at + 1 :]
    if mistyped.strip() != text:
        with pytest.raises(Invalid):
            read_token(mistyped)


@given(tokens, st.integers(min_value=0))
def test_a_token_that_is_cut_short_is_told(token: JoinToken, at: int) -> None:
    text = str(token)
    with pytest.raises(Invalid):
        read_token(text[: at % len(text)])


@given(st.text())
def test_no_text_is_more_than_invalid(text: str) -> None:
    for attempt in (text, f"pileus1.{text}"):
        with pytest.raises(Invalid):
            read_token(attempt)


def test_every_token_has_its_own_secret_and_only_its_hash_is_needed() -> None:
    one, other = new_token("sha256:" + "00" * 32), new_token("sha256:" + "00" * 32)
    assert matches(one.secret, hashed(one.secret))
    assert not matches(other.secret, hashed(one.secret))
    assert one.secret not in hashed(one.secret)


HOST, OTHER = HostId("host-1"), HostId("host-2")


def test_a_ticket_is_good_for_what_it_was_made_for_until_it_is_over() -> None:
    clock = FrozenClock()
    tickets = Tickets(b"k" * 32, clock)
    ticket = tickets.issue("image.read", "image-1", HOST, lasts=timedelta(minutes=1))
    tickets.check(ticket, "image.read", "image-1", HOST)
    clock.advance(timedelta(minutes=1))
    with pytest.raises(Forbidden):
        tickets.check(ticket, "image.read", "image-1", HOST)


@pytest.mark.parametrize(
    ("purpose", "resource", "host"),
    [("image.write", "image-1", HOST), ("image.read", "image-2", HOST), ("image.read", "image-1", OTHER)],
)
def test_a_ticket_is_good_for_nothing_else(purpose: str, resource: str, host: HostId) -> None:
    tickets = Tickets(b"k" * 32, FrozenClock())
    ticket = tickets.issue("image.read", "image-1", HOST, lasts=timedelta(minutes=1))
    with pytest.raises(Forbidden):
        tickets.check(ticket, purpose, resource, host)


def test_a_ticket_of_another_key_is_refused() -> None:
    ticket = Tickets(b"k" * 32, FrozenClock()).issue("image.read", "image-1", HOST, lasts=timedelta(minutes=1))
    with pytest.raises(Forbidden):
        Tickets(b"l" * 32, FrozenClock()).check(ticket, "image.read", "image-1", HOST)


@given(st.integers(min_value=0), st.sampled_from(string.printable))
def test_a_changed_ticket_is_refused(at: int, typed: str) -> None:
    tickets = Tickets(b"k" * 32, FrozenClock())
    ticket = tickets.issue("image.read", "image-1", HOST, lasts=timedelta(minutes=1))
    at %= len(ticket)
    changed = ticket[:at] + typed + ticket[at + 1 :]
    if changed != ticket:
        with pytest.raises(Forbidden):
            tickets.check(changed, "image.read", "image-1", HOST)


@given(st.text())
def test_no_text_makes_a_ticket(text: str) -> None:
    with pytest.raises(Forbidden):
        Tickets(b"k" * 32, FrozenClock()).check(text, "image.read", "image-1", HOST)
