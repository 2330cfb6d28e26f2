import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from pileus.kernel.clock import FrozenClock
from pileus.kernel.errors import Invalid
from pileus.kernel.ids import HostId
from pileus.link.certificates import (
    CONTROLLER_NAME,
    LEAF_LIFETIME,
    AgentIdentity,
    AgentKey,
    Authority,
    ServerIdentity,
    fingerprint,
    is_due,
    key_fingerprint,
    read_certificate,
    trusting,
)

HOST = HostId("0198c0de-0000-7000-8000-000000000001")


@pytest.fixture
def clock() -> FrozenClock:
    return FrozenClock(datetime(2026, 6, 1, tzinfo=UTC))


@pytest.fixture
def authority(clock: FrozenClock) -> Authority:
    return Authority.create(clock)


def test_the_authority_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path, clock: FrozenClock) -> None:
    folder = tmp_path / "ca"
    made = Authority.load_or_create(folder, clock)
    assert Authority.load_or_create(folder, clock).fingerprint == made.fingerprint
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}


def test_the_authority_signs_certificates_that_sign_none(authority: Authority) -> None:
    leaf = authority.certify_host(AgentKey().signing_request(), HOST)
    leaf.verify_directly_issued_by(authority.certificate)
    assert authority.certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_a_hosts_certificate_says_which_host_and_is_for_clients_only(authority: Authority) -> None:
    certificate = authority.certify_host(AgentKey().signing_request(), HOST)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [f"urn:pileus:host:{HOST}"]
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_what_a_signing_request_says_about_its_sender_is_ignored(authority: Authority) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "another host")]))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(CONTROLLER_NAME)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate = authority.certify_host(request.public_bytes(serialization.Encoding.PEM), HOST)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == []
    assert "another host" not in certificate.subject.rfc4514_string()
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


@pytest.mark.parametrize("key", [ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 1024)])
def test_a_signing_request_for_another_kind_of_key_is_refused(
    authority: Authority, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
) -> None:
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    with pytest.raises(Invalid):
        authority.certify_host(request.public_bytes(serialization.Encoding.PEM), HOST)


@pytest.mark.parametrize("request_pem", ["", "nonsense", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END"])
def test_an_unreadable_signing_request_is_invalid(authority: Authority, request_pem: str) -> None:
    with pytest.raises(Invalid):
        authority.certify_host(request_pem, HOST)


def test_two_requests_with_one_key_have_one_key_fingerprint() -> None:
    key, other = AgentKey(), AgentKey()
    assert key_fingerprint(key.signing_request()) == key_fingerprint(key.signing_request())
    assert key_fingerprint(key.signing_request()) != key_fingerprint(other.signing_request())


def test_a_certificate_is_due_when_a_third_of_its_life_is_left(authority: Authority, clock: FrozenClock) -> None:
    certificate = authority.certify_host(AgentKey().signing_request(), HOST)
    assert not is_due(certificate, clock.now())
    clock.advance(LEAF_LIFETIME * 2 / 3 - timedelta(hours=1))
    assert not is_due(certificate, clock.now())
    clock.advance(timedelta(hours=1))
    assert is_due(certificate, clock.now())


def test_a_certificate_never_outlives_its_authority(authority: Authority, clock: FrozenClock) -> None:
    clock.advance(timedelta(days=3649))
    certificate = authority.certify_host(AgentKey().signing_request(), HOST)
    assert certificate.not_valid_after_utc == authority.certificate.not_valid_after_utc


def test_the_servers_certificate_carries_names_and_addresses(
    tmp_path: Path, authority: Authority, clock: FrozenClock
) -> None:
    identity = ServerIdentity(authority, tmp_path, clock)
    identity.ensure(["cloud.example", "192.0.2.7", "2001:db8::7"])
    names = read_certificate(identity.path.read_bytes()).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert set(names.value.get_values_for_type(x509.DNSName)) == {CONTROLLER_NAME, "localhost", "cloud.example"}
    addresses = {str(address) for address in names.value.get_values_for_type(x509.IPAddress)}
    assert addresses == {"127.0.0.1", "::1", "192.0.2.7", "2001:db8::7"}
    assert stat.S_IMODE(identity.path.stat().st_mode) == 0o600


def test_the_servers_certificate_is_made_again_when_due_and_when_its_names_change(
    tmp_path: Path, authority: Authority, clock: FrozenClock
) -> None:
    identity = ServerIdentity(authority, tmp_path, clock)
    assert identity.ensure(["a.example"])
    assert not identity.ensure(["a.example"])
    assert identity.ensure(["b.example", "a.example"])
    assert not identity.ensure(["a.example", "b.example"])
    clock.advance(LEAF_LIFETIME * 2 / 3)
    assert identity.ensure(["a.example", "b.example"])


def test_a_name_that_is_no_name_is_invalid(tmp_path: Path, authority: Authority, clock: FrozenClock) -> None:
    with pytest.raises(Invalid):
        ServerIdentity(authority, tmp_path, clock).ensure(["bücher.example"])


def test_an_agent_keeps_its_joining_key_until_it_has_joined(tmp_path: Path, authority: Authority) -> None:
    folder = tmp_path / "agent"
    key = AgentKey.load_or_create(folder)
    again = AgentKey.load_or_create(folder)
    assert key_fingerprint(key.signing_request()) == key_fingerprint(again.signing_request())
    identity = AgentIdentity(folder)
    assert not identity.exists
    identity.install(again, authority.certify_host(key.signing_request(), HOST), authority.pem)
    assert identity.exists
    assert identity.host == HOST
    assert {file.name for file in folder.iterdir()} == {"agent.pem", "authority.crt"}
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}


def test_a_certificate_for_another_key_is_not_installed(tmp_path: Path, authority: Authority) -> None:
    identity = AgentIdentity(tmp_path / "agent")
    with pytest.raises(Invalid):
        identity.install(AgentKey(), authority.certify_host(AgentKey().signing_request(), HOST), authority.pem)
    assert not identity.exists


def test_trust_needs_a_certificate() -> None:
    with pytest.raises(Invalid):
        trusting(b"nonsense")


def test_a_fingerprint_is_sha256_in_hexadecimal(authority: Authority) -> None:
    kind, digits = fingerprint(authority.certificate).split(":")
    assert kind == "sha256"
    assert bytes.fromhex(digits) == authority.certificate.fingerprint(hashes.SHA256())
