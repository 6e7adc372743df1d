"""Certificates and keys in PEM files, checked before gRPC takes them: it says of a bad one only that it is."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from fedmtl_core.errors import ConfigError

EXPIRES_SOON_DAYS = 14
"""So long before its end, it is said of a certificate that it ends."""


def read(setting: str, path: Path) -> bytes:
    """A file's bytes.

    Args:
        setting: the configuration key that names it, for the error.
        path: the file.

    Raises:
        ConfigError: it can't be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{setting}: can't read {path}: {error.strerror or error}") from None


def read_certificates(setting: str, path: Path) -> tuple[bytes, x509.Certificate]:
    """A file of certificates, as it is, and the first of them.

    Raises:
        ConfigError: it can't be read, or holds none.
    """
    data = read(setting, path)
    try:
        return data, x509.load_pem_x509_certificates(data)[0]
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(f"{setting}: expected certificates in PEM, {path} holds none") from None


def read_key(setting: str, path: Path, certificate: x509.Certificate) -> bytes:
    """The private key of a certificate.

    Raises:
        ConfigError: it can't be read, needs a password, or is another's. It isn't shown.
    """
    data = read(setting, path)
    try:
        key = serialization.load_pem_private_key(data, None)
        fits = key.public_key() == certificate.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError(
            f"{setting}: expected a private key in PEM that needs no password, {path} isn't one"
        ) from None
    if not fits:
        raise ConfigError(f"{setting}: the key in {path} isn't that of the certificate")
    return data


def require_valid_now(setting: str, path: Path, certificate: x509.Certificate) -> None:
    """Check a certificate's dates.

    Raises:
        ConfigError: it has expired, or isn't valid yet.
    """
    begins, ends, now = certificate.not_valid_before_utc, certificate.not_valid_after_utc, datetime.now(UTC)
    if not begins <= now <= ends:
        raise ConfigError(
            f"{setting}: {path} is valid from {begins:%Y-%m-%d %H:%M} to {ends:%Y-%m-%d %H:%M} UTC, which isn't now"
        )
