"""Creates certificates for trials: a small CA, a server's certificate, and clients' certificates.

Keys are on the curve P-256. An organization with a CA uses its own certificates, and doesn't need this module.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedmtl_core.addresses import without_brackets
from fedmtl_core.errors import ConfigError, InvalidRequestError
from fedmtl_core.identifiers import require_identifier

LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""The hosts that every server certificate names."""

_SKEW = timedelta(minutes=5)
"""Certificates are valid from this time before now, because clocks differ."""


@dataclass(frozen=True)
class KeyPair:
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def certificate_pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    @classmethod
    def from_pem(cls, certificate: bytes, key: bytes) -> KeyPair:
        """Read a certificate and its key from PEM.

        Raises:
            ConfigError: the input isn't PEM, or the key isn't the certificate's.
        """
        try:
            loaded = serialization.load_pem_private_key(key, None)
            pair = x509.load_pem_x509_certificate(certificate)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"expected a certificate and an unencrypted key in PEM: {error}") from None
        if not isinstance(loaded, ec.EllipticCurvePrivateKey) or pair.public_key() != loaded.public_key():
            raise ConfigError("the key isn't the certificate's")
        return cls(pair, loaded)


def make_authority(name: str, *, days: float, now: datetime | None = None) -> KeyPair:
    """Create a CA, which can sign only certificates of servers and clients."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(name)
    builder = _builder(subject, subject, key, days, now)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=True), critical=True)
    return KeyPair(builder.sign(key, hashes.SHA256()), key)


def make_server(authority: KeyPair, hosts: Sequence[str], *, days: float, now: datetime | None = None) -> KeyPair:
    """Create a server certificate.

    Args:
        authority: the CA.
        hosts: the names and IP addresses under which clients reach the server, besides those of loopback.
        days: the validity in days.
        now: the start of the validity; the clock's time if None.

    Raises:
        ConfigError: a host is neither a name nor an address.
    """
    names = [_host(host) for host in dict.fromkeys([*LOOPBACK, *hosts])]
    return _issue(authority, "fedmtl-server", names, ExtendedKeyUsageOID.SERVER_AUTH, days, now)


def make_client(authority: KeyPair, client_id: str, *, days: float, now: datetime | None = None) -> KeyPair:
    """Create a client certificate, whose common name and only alternative name are the client's id.

    Raises:
        ConfigError: the id is not an identifier.
    """
    try:
        require_identifier("a client's name", client_id)
    except InvalidRequestError as error:
        raise ConfigError(str(error)) from None
    names: list[x509.GeneralName] = [x509.DNSName(client_id)]
    return _issue(authority, client_id, names, ExtendedKeyUsageOID.CLIENT_AUTH, days, now)


def hosts_of(certificate: x509.Certificate) -> list[str]:
    """Return the names and addresses in a certificate."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in names if isinstance(name, x509.DNSName | x509.IPAddress)]


def is_signed_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether a CA signed a certificate."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _issue(
    authority: KeyPair,
    name: str,
    alternatives: Sequence[x509.GeneralName],
    usage: x509.ObjectIdentifier,
    days: float,
    now: datetime | None,
) -> KeyPair:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(_name(name), authority.certificate.subject, key, days, now)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    builder = builder.add_extension(issuer, critical=False)
    return KeyPair(builder.sign(authority.key, hashes.SHA256()), key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: float, now: datetime | None
) -> x509.CertificateBuilder:
    now = now or datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _host(host: str) -> x509.GeneralName:
    with suppress(ValueError):  # then it is a name
        return x509.IPAddress(ipaddress.ip_address(without_brackets(host)))
    labels = host.removeprefix("*.").rstrip(".").split(".")
    if not all(
        0 < len(one) <= 63 and one.isascii() and one.replace("-", "").replace("_", "").isalnum() for one in labels
    ):
        raise ConfigError(f"--host: expected a host's name or IP address, got {host!r}")
    return x509.DNSName(host.rstrip("."))
