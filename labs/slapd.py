"""OpenLDAP's server as a process of the test: a small directory with a certificate of its own, on loopback."""

import asyncio
import datetime as dt
import ipaddress
import os
import shutil
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from patience import WITHIN_S

from pileus.kernel.programs import run
from pileus.testing.contracts.directory import ANN, OPERATORS, SECRET

MISSING = "" if shutil.which("slapd") and os.geteuid() == 0 else "needs root and Debian's slapd"
BASE = "dc=example,dc=com"
SEARCHER = f"cn=searcher,{BASE}"
ADMIN = f"cn=admin,{BASE}"

_CONFIGURATION = """
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
pidfile {folder}/slapd.pid
modulepath /usr/lib/ldap
moduleload back_mdb
moduleload memberof
TLSCertificateFile {folder}/server.pem
TLSCertificateKeyFile {folder}/server.key
TLSVerifyClient never
database mdb
maxsize 10485760
suffix "{base}"
rootdn "{admin}"
rootpw {secret}
directory {folder}/data
overlay memberof
access to attrs=userPassword by anonymous auth by * none
access to * by dn.exact="{searcher}" read by * none
"""

_ENTRIES = f"""
dn: {BASE}
objectClass: dcObject
objectClass: organization
o: Example
dc: example

dn: {SEARCHER}
objectClass: organizationalRole
objectClass: simpleSecurityObject
cn: searcher
userPassword: {SECRET}

dn: ou=people,{BASE}
objectClass: organizationalUnit
ou: people

dn: uid=ann,ou=people,{BASE}
objectClass: inetOrgPerson
uid: ann
cn: Ann Arbor
sn: Arbor
mail: ann@example.com
userPassword: {ANN}
memberOf: {OPERATORS}

dn: uid=bob,ou=people,{BASE}
objectClass: inetOrgPerson
uid: bob
cn: Bob
sn: Bob
userPassword: staple

dn: uid=twin,ou=people,{BASE}
objectClass: inetOrgPerson
uid: twin
cn: Twin
sn: Twin
userPassword: staple

dn: cn=Other twin,ou=people,{BASE}
objectClass: inetOrgPerson
uid: twin
cn: Other twin
sn: Twin
userPassword: staple

dn: ou=groups,{BASE}
objectClass: organizationalUnit
ou: groups

dn: cn=Operators,ou=groups,{BASE}
objectClass: groupOfNames
cn: Operators
member: uid=ann,ou=people,{BASE}

dn: ou=elsewhere,{BASE}
objectClass: referral
objectClass: extensibleObject
ou: elsewhere
ref: ldap://192.0.2.1/{BASE}
"""


class Slapd:
    """A directory that answers."""

    def __init__(self, port: int, tls_port: int, authority: str) -> None:
        self.plain = f"ldap://127.0.0.1:{port}"
        self.encrypted = f"ldaps://127.0.0.1:{tls_port}"
        self.by_address = f"ldaps://127.0.0.2:{tls_port}"
        """By an address that its certificate does not name."""
        self.authority = authority


def authority() -> tuple[str, str, str]:
    """Certificates of an authority and, by it, of `localhost`, with the latter's key; all as PEM."""
    now = dt.datetime.now(dt.UTC)

    def certificate(
        name: str, key: ec.EllipticCurvePrivateKey, by: ec.EllipticCurvePrivateKey, *, is_authority: bool
    ) -> str:
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "authority of the test")]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(minutes=5))
            .not_valid_after(now + dt.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        )
        if not is_authority:
            names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        signed = builder.sign(by, hashes.SHA256())
        return signed.public_bytes(serialization.Encoding.PEM).decode()

    root, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    return (
        certificate("authority of the test", root, root, is_authority=True),
        certificate("localhost", key, root, is_authority=False),
        secret,
    )


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@asynccontextmanager
async def slapd(folder: Path) -> AsyncGenerator[Slapd]:
    """A directory in a folder of its own, for as long as this is open."""
    (folder / "data").mkdir(parents=True)
    root, certificate, key = authority()
    (folder / "server.pem").write_text(certificate)
    (folder / "server.key").write_text(key)
    configuration = folder / "slapd.conf"
    configuration.write_text(
        _CONFIGURATION.format(folder=folder, base=BASE, admin=ADMIN, secret=SECRET, searcher=SEARCHER)
    )
    await run("slapadd", "-q", "-f", str(configuration), stdin=_ENTRIES.encode(), timeout_s=WITHIN_S)
    for _ in range(5):
        served = Slapd(port := _free_port(), tls := _free_port(), root)
        urls = f"ldap://127.0.0.1:{port}/ ldaps://127.0.0.1:{tls}/ ldaps://127.0.0.2:{tls}/"
        process = await asyncio.create_subprocess_exec(
            "slapd", "-d", "none", "-h", urls, "-f", str(configuration), stderr=asyncio.subprocess.DEVNULL
        )
        try:
            if await _answers(process, port):
                yield served
                return
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()
    raise AssertionError("slapd did not begin; another program took its port each time")


async def _answers(process: asyncio.subprocess.Process, port: int) -> bool:
    """Whether it listens; False if it has ended instead."""
    async with asyncio.timeout(WITHIN_S):
        while process.returncode is None:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)
                continue
            writer.close()
            return True
    return False
