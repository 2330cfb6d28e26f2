"""An OpenID provider on loopback that tells the truth, unless a test would have it lie."""

import asyncio
import base64
import secrets
import ssl
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from hashlib import sha256
from typing import Any
from urllib.parse import parse_qs, parse_qsl, unquote_plus, urlsplit

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

CLIENT = "pileus"
SECRET = "a client's secret"  # noqa: S105 - of a provider of the tests


class SimulatedOpenIdProvider:
    """Discovery, keys and tokens; `visit` is what a person does in a browser."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self.issuer = ""
        self.claims: dict[str, Any] = {"sub": "1", "preferred_username": "ann", "name": "Ann Arbor"}
        """What it says of whoever signs in."""
        self.lies: dict[str, Any] = {}
        """What it says otherwise than it should in ID tokens; None leaves it out."""
        self.discovery: dict[str, Any] = {}
        """The same of what it says of itself."""
        self.key, self.kid = ec.generate_private_key(ec.SECP256R1()), "first"
        self.asked: list[str] = []
        """The paths that were asked for."""
        self._codes: dict[str, Mapping[str, str]] = {}

    def turn_keys(self) -> None:
        """Sign by a new key from now on."""
        self.key, self.kid = ec.generate_private_key(ec.SECP256R1()), secrets.token_hex(4)

    def visit(self, url: str) -> dict[str, str]:
        """Sign in at this address; what the browser then brings to the redirect address."""
        asked = dict(parse_qsl(urlsplit(url).query))
        assert asked["client_id"] == CLIENT
        assert asked["response_type"] == "code"
        assert asked["code_challenge_method"] == "S256"
        code = secrets.token_urlsafe(16)
        self._codes[code] = asked
        return {"code": code, "state": asked["state"], "iss": self.issuer}

    def token(self, nonce: str) -> str:
        """An ID token."""
        now = int(self._now().timestamp())
        claims = {"iss": self.issuer, "aud": CLIENT, "exp": now + 300, "iat": now, "nonce": nonce, **self.claims}
        told = {name: value for name, value in {**claims, **self.lies}.items() if value is not None}
        return jwt.encode(told, self.key, algorithm="ES256", headers={"kid": self.kid})

    def answer(self, method: str, path: str, headers: Mapping[str, str], body: str) -> tuple[int, dict[str, Any]]:
        """What it answers to a request: status, and JSON."""
        self.asked.append(path)
        if path == "/.well-known/openid-configuration":
            said = {
                "issuer": self.issuer,
                "authorization_endpoint": f"{self.issuer}/authorize",
                "token_endpoint": f"{self.issuer}/token",
                "jwks_uri": f"{self.issuer}/keys",
                "authorization_response_iss_parameter_supported": True,
                "id_token_signing_alg_values_supported": ["ES256"],
            }
            return 200, {**said, **self.discovery}
        if path == "/keys":
            public: dict[str, Any] = ECAlgorithm.to_jwk(self.key.public_key(), as_dict=True)
            return 200, {"keys": [{**public, "kid": self.kid, "use": "sig"}, {"kty": "oct", "k": "c2VjcmV0"}]}
        if (method, path) == ("POST", "/token"):
            return self._redeemed(headers, {name: values[0] for name, values in parse_qs(body).items()})
        return 404, {"error": "not_found"}

    def _redeemed(self, headers: Mapping[str, str], form: Mapping[str, str]) -> tuple[int, dict[str, Any]]:
        pair = base64.b64decode(headers.get("authorization", "").removeprefix("Basic ")).decode().split(":")
        if [unquote_plus(part) for part in pair] != [CLIENT, SECRET]:
            return 401, {"error": "invalid_client"}
        asked = self._codes.pop(form.get("code", ""), None)
        challenge = base64.urlsafe_b64encode(sha256(form["code_verifier"].encode()).digest()).rstrip(b"=").decode()
        if asked is None or asked["code_challenge"] != challenge or asked["redirect_uri"] != form["redirect_uri"]:
            return 400, {"error": "invalid_grant", "error_description": "no such code"}
        return 200, {"access_token": "opaque", "token_type": "Bearer", "id_token": self.token(asked["nonce"])}


@asynccontextmanager
async def openid_provider(
    now: Callable[[], datetime], context: ssl.SSLContext | None = None
) -> AsyncGenerator[SimulatedOpenIdProvider]:
    """A provider that listens on loopback for as long as this is open; with a context, as `localhost` by TLS."""
    provider = SimulatedOpenIdProvider(now)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.rstrip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = (await reader.readexactly(int(headers.get("content-length", "0")))).decode()
        method, path, _ = first.split(" ")
        status, said = provider.answer(method, path, headers, body)
        text = msgspec.json.encode(said)
        writer.write(
            f"HTTP/1.1 {status} Said\r\ncontent-type: application/json\r\ncontent-length: {len(text)}\r\n"
            f"connection: close\r\n\r\n".encode()
            + text
        )
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    provider.issuer = f"http://127.0.0.1:{port}" if context is None else f"https://localhost:{port}"
    async with server:
        yield provider
