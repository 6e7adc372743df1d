"""Reads and checks PEM files before gRPC uses them: gRPC's errors don't say why a certificate or key is bad."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from fedmtl_core.errors import ConfigError

EXPIRES_SOON_DAYS = 14
"""Certificates that expire within this many days give a warning."""


def read(setting: str, path: Path) -> bytes:
    """Read a file.

    Args:
        setting: the configuration key that names the file, for the error.
        path: the file.

    Raises:
        ConfigError: the file can't be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{setting}: can't read {path}: {error.strerror or error}") from None


def read_certificates(setting: str, path: Path) -> tuple[bytes, x509.Certificate]:
    """Read a file of certificates; return its bytes and the first certificate.

    Raises:
        ConfigError: the file can't be read, or has no certificate.
    """
    data = read(setting, path)
    try:
        return data, x509.load_pem_x509_certificates(data)[0]
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(
            f"{setting}: expected certificates in PEM (-----BEGIN CERTIFICATE-----), but {path} has none"
        ) from None


def read_key(setting: str, path: Path, certificate: x509.Certificate) -> bytes:
    """Read the private key of a certificate.

    Raises:
        ConfigError: the key can't be read, needs a password, or belongs to another certificate. The message doesn't
            show the key.
    """
    data = read(setting, path)
    try:
        key = serialization.load_pem_private_key(data, None)
        fits = key.public_key() == certificate.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError(
            f"{setting}: expected a private key in PEM that needs no password, but {path} isn't one"
        ) from None
    if not fits:
        raise ConfigError(
            f"{setting}: the key in {path} isn't that of the certificate; give the key that belongs to it"
        )
    return data


def require_valid_now(setting: str, path: Path, certificate: x509.Certificate) -> None:
    """Check that a certificate is valid now.

    Raises:
        ConfigError: it has expired, or isn't valid yet.
    """
    begins, ends, now = certificate.not_valid_before_utc, certificate.not_valid_after_utc, datetime.now(UTC)
    if not begins <= now <= ends:
        raise ConfigError(
            f"{setting}: {path} is valid from {begins:%Y-%m-%d %H:%M} to {ends:%Y-%m-%d %H:%M} UTC, which isn't now; "
            f"renew it, or correct this machine's clock"
        )
