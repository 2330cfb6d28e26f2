import pytest
from hypothesis import given
from hypothesis import strategies as st

from pileus.kernel.errors import Invalid
from pileus.link.addresses import Address, read_address


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("cloud.example", "cloud.example", 5870),
        ("cloud.example:1", "cloud.example", 1),
        ("192.0.2.7:65535", "192.0.2.7", 65535),
        ("[2001:db8::7]", "2001:db8::7", 5870),
        ("[2001:db8::7]:443", "2001:db8::7", 443),
    ],
)
def test_an_address_is_read_with_or_without_a_port(text: str, host: str, port: int) -> None:
    assert read_address(text, default_port=5870) == Address(host, port)


@pytest.mark.parametrize("text", ["", ":1", "a:b", "a:65536", "a:-1", "a/b", "user@a", "[::1", "a?b", "a#b", "a b"])
def test_what_is_no_address_is_invalid(text: str) -> None:
    with pytest.raises(Invalid):
        read_address(text, default_port=5870)


@given(st.ip_addresses().map(str), st.integers(0, 65535))
def test_an_address_is_read_as_it_was_written(host: str, port: int) -> None:
    assert read_address(str(Address(host, port)), default_port=0) == Address(host, port)
