"""Who may speak to whom: the cloud's own certificate authority, and the TLS contexts made from its certificates.

A cloud makes its CA when it is installed; nothing outside is asked or trusted. Two kinds of certificate come from it,
told apart by extended key usage, so that a stolen agent certificate cannot play the controller: the controller's
(server) for API and link, and one per host (client) whose SAN URI carries the host's id. Private keys never travel: an
agent sends a signing request.

Agents know the controller by `CONTROLLER_NAME`, which every server certificate carries, and not by its address: an
address may change, be found by multicast or be one of several.
"""

import ipaddress
import ssl
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pileus.kernel.clock import Clock
from pileus.kernel.errors import Forbidden, Invalid
from pileus.kernel.files import write_atomically
from pileus.kernel.ids import HostId

CONTROLLER_NAME: Final = "controller.pileus.internal"
"""The DNS name that stands for the controller in certificates, whatever its address."""

AUTHORITY_LIFETIME: Final = timedelta(days=3650)
LEAF_LIFETIME: Final = timedelta(days=90)
CLOCKS_MAY_DIFFER: Final = timedelta(hours=1)
"""How far a certificate is dated back, for hosts whose clock is behind the controller's."""

_HOST_URN: Final = "urn:pileus:host:"


class Peer(NamedTuple):
    """What a verified client certificate says: whose it is, and its serial number (for refusing one of several)."""

    host: HostId
    serial: int


def fingerprint(certificate: x509.Certificate) -> str:
    """What people compare: `sha256:` and 64 hexadecimal digits."""
    return f"sha256:{certificate.fingerprint(hashes.SHA256()).hex()}"


def is_due(certificate: x509.Certificate, now: datetime) -> bool:
    """Whether a certificate should be renewed: two thirds of its life are over, or it does not hold yet."""
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    return now >= certificate.not_valid_after_utc - life / 3 or now < certificate.not_valid_before_utc


def read_certificate(pem: bytes | str) -> x509.Certificate:
    """Read a certificate.

    Raises:
        Invalid: this is none.
    """
    try:
        return x509.load_pem_x509_certificate(pem.encode() if isinstance(pem, str) else pem)
    except ValueError as unreadable:
        raise Invalid("this is not a PEM certificate") from unreadable


def to_pem(certificate: x509.Certificate) -> bytes:
    """A certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


class Authority:
    """The cloud's certificate authority: its certificate, and the key that signs all others."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey, clock: Clock) -> None:
        self.certificate = certificate
        self.key = key
        self._clock = clock

    @classmethod
    def load_or_create(cls, folder: Path, clock: Clock) -> "Authority":
        """Read the authority from `authority.pem` in a folder, or make both when there is none yet."""
        path = folder / "authority.pem"
        if path.exists():
            return cls(*_read_identity(path), clock)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _self_signed(key, clock.now())
        write_atomically(path, _identity_pem(certificate, key))
        return cls(certificate, key, clock)

    @classmethod
    def create(cls, clock: Clock) -> "Authority":
        """Make a new authority, in memory only."""
        key = ec.generate_private_key(ec.SECP256R1())
        return cls(_self_signed(key, clock.now()), key, clock)

    @property
    def pem(self) -> bytes:
        """The authority's certificate, for whoever is to trust it."""
        return to_pem(self.certificate)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.certificate)

    def certify_host(self, request_pem: bytes | str, host: HostId) -> x509.Certificate:
        """A client certificate for the key of a signing request; who it is for, we say and not the request.

        Raises:
            Invalid: the request is unreadable, not signed by its own key, or of another kind of key than EC P-256.
        """
        return self._issue(
            _requested_key(request_pem),
            common_name=host,
            names=[x509.UniformResourceIdentifier(f"{_HOST_URN}{host}")],
            usage=ExtendedKeyUsageOID.CLIENT_AUTH,
        )

    def certify_server(self, key: ec.EllipticCurvePublicKey, names: Iterable[str]) -> x509.Certificate:
        """A server certificate for the names and addresses given, for this machine and for CONTROLLER_NAME."""
        return self._issue(
            key, common_name=CONTROLLER_NAME, names=_server_names(names), usage=ExtendedKeyUsageOID.SERVER_AUTH
        )

    def _issue(
        self,
        key: ec.EllipticCurvePublicKey,
        *,
        common_name: str,
        names: Iterable[x509.GeneralName],
        usage: x509.ObjectIdentifier,
    ) -> x509.Certificate:
        now = self._clock.now()
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
            .issuer_name(self.certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - CLOCKS_MAY_DIFFER)
            .not_valid_after(min(now + LEAF_LIFETIME, self.certificate.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()),
                critical=False,
            )
            .sign(self.key, hashes.SHA256())
        )


class ServerIdentity:
    """The controller's certificate and key in one file, made again when it is due or when the names change."""

    def __init__(self, authority: Authority, folder: Path, clock: Clock) -> None:
        self._authority = authority
        self._path = folder / "server.pem"
        self._clock = clock
        self._contexts: list[ssl.SSLContext] = []

    @property
    def path(self) -> Path:
        """The PEM file with key and certificate, for servers that read it themselves."""
        return self._path

    def ensure(self, names: Iterable[str]) -> bool:
        """Make the certificate if there is none, it is due, or it is not for these names; true if it was made.

        Contexts handed out before use the new one from their next connection on.

        Raises:
            Invalid: one of them is neither an IP address nor an ASCII name.
        """
        wanted = _server_names(names)
        if self._path.exists() and not self._is_outdated(wanted):
            return False
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._authority.certify_server(key.public_key(), [_text(name) for name in wanted])
        write_atomically(self._path, _identity_pem(certificate, key))
        for context in self._contexts:
            context.load_cert_chain(self._path)
        return True

    def api_context(self) -> ssl.SSLContext:
        """For the API: TLS 1.2 and later, nobody needs a client certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return self._with_identity(context)

    def link_context(self) -> ssl.SSLContext:
        """For the link: TLS 1.3, and a client certificate of this cloud is required."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.load_verify_locations(cadata=self._authority.pem.decode())
        # Agents do not resume sessions, and a resumed one would not show its certificate anew.
        context.num_tickets = 0
        return self._with_identity(context)

    def _with_identity(self, context: ssl.SSLContext) -> ssl.SSLContext:
        context.load_cert_chain(self._path)
        self._contexts.append(context)
        return context

    def _is_outdated(self, wanted: Sequence[x509.GeneralName]) -> bool:
        certificate, _ = _read_identity(self._path)
        has = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return (
            is_due(certificate, self._clock.now())
            or set(has) != set(wanted)
            or certificate.issuer != self._authority.certificate.subject
        )


class AgentKey:
    """An agent's private key while it has no certificate for it yet."""

    def __init__(self, key: ec.EllipticCurvePrivateKey | None = None) -> None:
        self._key = key or ec.generate_private_key(ec.SECP256R1())

    @classmethod
    def load_or_create(cls, folder: Path) -> "AgentKey":
        """The key to join with. It is kept (`joining.pem`), so that a join whose answer was lost can be repeated."""
        path = folder / "joining.pem"
        if path.exists():
            return cls(_read_key(path.read_bytes()))
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        made = cls()
        write_atomically(path, _key_pem(made._key))
        return made

    def signing_request(self) -> str:
        """The PEM of a certificate signing request; it names nobody, the authority knows who asks."""
        request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(self._key, hashes.SHA256())
        return request.public_bytes(serialization.Encoding.PEM).decode()

    def with_certificate(self, certificate: x509.Certificate) -> bytes:
        """The PEM of key and certificate.

        Raises:
            Invalid: the certificate is for another key.
        """
        if certificate.public_key() != self._key.public_key():
            raise Invalid("the certificate is for another key than ours")
        return _identity_pem(certificate, self._key)


class AgentIdentity:
    """An agent's certificate with its key, and the authority it trusts, in a folder that only it may read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / "agent.pem"
        self._authority_path = folder / "authority.crt"

    @property
    def exists(self) -> bool:
        """Whether this host has joined a cloud."""
        return self._path.exists()

    @property
    def certificate(self) -> x509.Certificate:
        return _read_identity(self._path)[0]

    @property
    def host(self) -> HostId:
        """The host's id, as its certificate has it."""
        names = self.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return _host_among(names.get_values_for_type(x509.UniformResourceIdentifier))

    def install(self, key: AgentKey, certificate: x509.Certificate, authority_pem: bytes | None = None) -> None:
        """Keep a new certificate with its key, and with the first one the authority to trust."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        if authority_pem is not None:
            write_atomically(self._authority_path, authority_pem)
        # Key and certificate are one file, so that they change together; last, for it says that we joined.
        write_atomically(self._path, key.with_certificate(certificate))
        (self.folder / "joining.pem").unlink(missing_ok=True)

    def context(self) -> ssl.SSLContext:
        """For dialling the link: TLS 1.3, our certificate, and a server that our authority made (CONTROLLER_NAME)."""
        context = trusting(self._authority_path.read_bytes())
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(self._path)
        return context


def trusting(authority_pem: bytes) -> ssl.SSLContext:
    """A client's context that trusts this authority and no other: for the CLI, and for joining.

    Raises:
        Invalid: this is no certificate.
    """
    read_certificate(authority_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_verify_locations(cadata=authority_pem.decode())
    return context


def peer_of(connection: ssl.SSLObject) -> Peer:
    """Whose client certificate the other side of a connection has shown and TLS has verified.

    Raises:
        Forbidden: there is none, or it is not a host's.
    """
    shown = connection.getpeercert(binary_form=True)
    if shown is None:
        raise Forbidden("no client certificate was shown")
    certificate = x509.load_der_x509_certificate(shown)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound as nameless:
        raise Forbidden("the client certificate names nobody") from nameless
    return Peer(_host_among(names.get_values_for_type(x509.UniformResourceIdentifier)), certificate.serial_number)


def key_fingerprint(request_pem: bytes | str) -> str:
    """Tells the key of a signing request: the same for every request made with it.

    Raises:
        Invalid: the request is unreadable or not signed by its own key.
    """
    key = _requested_key(request_pem)
    spki = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    digest = hashes.Hash(hashes.SHA256())
    digest.update(spki)
    return f"sha256:{digest.finalize().hex()}"


def _self_signed(key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    serial = x509.random_serial_number()
    # The serial number in the name keeps two clouds apart in a browser that knows both.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Pileus cloud {serial:x}"[:32])])
    public = key.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(serial)
        .not_valid_before(now - CLOCKS_MAY_DIFFER)
        .not_valid_after(now + AUTHORITY_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )


def _host_among(uris: Sequence[str]) -> HostId:
    hosts = [uri.removeprefix(_HOST_URN) for uri in uris if uri.startswith(_HOST_URN)]
    if len(hosts) != 1 or not hosts[0]:
        raise Forbidden("the client certificate is not a host's")
    return HostId(hosts[0])


def _requested_key(request_pem: bytes | str) -> ec.EllipticCurvePublicKey:
    try:
        request = x509.load_pem_x509_csr(request_pem.encode() if isinstance(request_pem, str) else request_pem)
        signed = request.is_signature_valid
        key = request.public_key()
    except (ValueError, InvalidSignature) as unreadable:
        raise Invalid("this is not a PEM certificate signing request", fields={"csr": "unreadable"}) from unreadable
    if not signed:
        raise Invalid("the signing request is not signed by its own key", fields={"csr": "bad signature"})
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise Invalid("the signing request is for another kind of key than EC P-256", fields={"csr": "wrong key"})
    return key


def _server_names(names: Iterable[str]) -> list[x509.GeneralName]:
    every = dict.fromkeys((CONTROLLER_NAME, "localhost", "127.0.0.1", "::1", *names))
    return [_general_name(name) for name in every]


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        return x509.DNSName(name)
    except ValueError as wrong:
        raise Invalid(f"{name!r} is neither an address nor an ASCII name", fields={"names": name}) from wrong


def _text(name: x509.GeneralName) -> str:
    return str(name.value)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _identity_pem(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> bytes:
    return _key_pem(key) + to_pem(certificate)


def _read_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise Invalid("the private key is not an EC key")
    return key


def _read_identity(path: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    pem = path.read_bytes()
    return read_certificate(pem), _read_key(pem)
