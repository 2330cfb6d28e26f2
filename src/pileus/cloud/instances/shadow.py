"""Hashes of passwords as Linux keeps them: SHA-512 in the form of crypt(5), which every system of this century reads.

After the specification by Ulrich Drepper, https://www.akkadia.org/drepper/SHA-crypt.txt.
"""

import secrets
from hashlib import sha512
from typing import Final

_ALPHABET: Final = "./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ROUNDS: Final = 50_000
"""Ten times as many as nobody asks for otherwise."""
_SALT_CHARACTERS: Final = 16
_DIGEST_BYTES: Final = 64


def hashed(password: str) -> str:
    """A password as it stands in /etc/shadow, with a salt of its own; takes some 50 ms."""
    salt = "".join(secrets.choice(_ALPHABET) for _ in range(_SALT_CHARACTERS))
    return sha512_crypt(password, salt, rounds=_ROUNDS)


def sha512_crypt(password: str, salt: str, *, rounds: int) -> str:
    """The hash of a password with at most 16 characters of salt; the letters are those of the specification."""
    key, salted = password.encode(), salt.encode()
    b = sha512(key + salted + key).digest()
    a = sha512(key + salted + _repeated(b, len(key)))
    length = len(key)
    while length:
        a.update(b if length & 1 else key)
        length >>= 1
    digest = a.digest()
    p = _repeated(sha512(key * len(key)).digest(), len(key))
    s = _repeated(sha512(salted * (16 + digest[0])).digest(), len(salted))
    for number in range(rounds):
        c = sha512(p if number & 1 else digest)
        if number % 3:
            c.update(s)
        if number % 7:
            c.update(p)
        c.update(digest if number & 1 else p)
        digest = c.digest()
    return f"$6$rounds={rounds}${salt}${_encoded(digest)}"


def _repeated(digest: bytes, length: int) -> bytes:
    return (digest * (length // _DIGEST_BYTES + 1))[:length]


def _encoded(digest: bytes) -> str:
    """Three bytes at a time, 21 apart, each of the three first in its turn; six bits a character, lowest first."""
    text = ""
    for number in range(21):
        places = [number, number + 21, number + 42]
        first = number % 3
        high, middle, low = (digest[place] for place in (*places[first:], *places[:first]))
        text += _characters(high << 16 | middle << 8 | low, 4)
    return text + _characters(digest[63], 2)


def _characters(number: int, count: int) -> str:
    return "".join(_ALPHABET[number >> 6 * place & 0x3F] for place in range(count))
