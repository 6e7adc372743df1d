"""The server's TLS certificate and the CA of its clients, which are reloaded when the files change."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509

from fedmtl_core.addresses import is_loopback
from fedmtl_core.config import Config, TlsConfig
from fedmtl_core.errors import ConfigError
from fedmtl_core.logs import get_logger
from fedmtl_core.runtime import pem

_Stamp = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Loaded:
    """The content of the files."""

    configuration: grpc.ServerCertificateConfiguration
    certificate: x509.Certificate
    """The server's certificate."""
    client_ca: x509.Certificate | None


def read(certificate: Path, key: Path, client_ca: Path | None) -> Loaded:
    """Read a server's certificate, key and client CA, and check that they are valid and belong together.

    Raises:
        ConfigError: a file can't be read or has the wrong content, or the certificate isn't valid now.
    """
    setting = "security.tls.certificate"
    chain, own = pem.read_certificates(setting, certificate)
    private = pem.read_key("security.tls.key", key, own)
    pem.require_valid_now(setting, certificate, own)
    roots, authority = pem.read_certificates("security.tls.client_ca", client_ca) if client_ca else (None, None)
    return Loaded(grpc.ssl_server_certificate_configuration([(private, chain)], roots), own, authority)


def is_readable_by_others(key: Path) -> bool:
    """Whether users other than the owner can read a private key."""
    return bool(key.stat().st_mode & 0o077)


class CertificateFiles:
    """The files of `security.tls`, which gRPC requests at every handshake.

    Two files can't be replaced in one step. Until certificate and key match, the old ones stay in use.

    Args:
        tls: the configuration, with a certificate.

    Raises:
        ConfigError: a file can't be read or has the wrong content, or the certificate isn't valid now.
    """

    def __init__(self, tls: TlsConfig):
        if tls.certificate is None or tls.key is None:
            raise ConfigError("security.tls: expected a certificate and its key")
        self._certificate = tls.certificate
        self._key = tls.key
        self._client_ca = tls.client_ca
        self._lock = threading.Lock()
        self._log = get_logger()
        self._stamp = self._stamps()
        self._loaded = self._load()
        self._tell("certificate.loaded")

    @property
    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """The last valid content of the files."""
        return self._loaded.configuration

    def fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """Return the new content if the files changed and are valid; None otherwise. gRPC calls this on its threads."""
        with self._lock:
            try:
                stamp = self._stamps()
                if stamp == self._stamp:
                    return None
                self._stamp = stamp
                self._loaded = self._load()
                self._tell("certificate.renewed")
            except (ConfigError, OSError) as error:
                self._log.warning("certificate.not_renewed", reason=str(error))
                return None
            return self._loaded.configuration

    def _stamps(self) -> _Stamp:
        paths = [self._certificate, self._key] + ([self._client_ca] if self._client_ca else [])
        try:
            stats = [path.stat() for path in paths]
        except OSError as error:
            raise ConfigError(f"security.tls: can't read {error.filename}: {error.strerror}") from None
        return tuple((one.st_mtime_ns, one.st_ino, one.st_size) for one in stats)

    def _load(self) -> Loaded:
        return read(self._certificate, self._key, self._client_ca)

    def _tell(self, event: str) -> None:
        until = self._loaded.certificate.not_valid_after_utc
        facts = {"path": str(self._certificate), "valid_until": until.isoformat()}
        self._log.info(event, **facts)
        if (until - datetime.now(UTC)).days < pem.EXPIRES_SOON_DAYS:
            self._log.warning("certificate.expires_soon", **facts)
        if is_readable_by_others(self._key):
            self._log.warning("key.readable_by_others", path=str(self._key), expected="mode 0600")


def server_credentials(tls: TlsConfig) -> grpc.ServerCredentials:
    """Return the credentials with which a server listens.

    Raises:
        ConfigError: see `CertificateFiles`.
    """
    files = CertificateFiles(tls)
    fetch: Any = files.fetch  # gRPC's stubs lack the result None
    return grpc.dynamic_ssl_server_credentials(files.configuration, fetch, tls.client_ca is not None)


def require_safe(config: Config) -> None:
    """Check that a server that other machines can reach has TLS and authentication, unless `insecure` is set.

    Raises:
        ConfigError: the server has no TLS or no authentication; the message says how to fix it.
    """
    security, host = config.security, config.server.host
    if is_loopback(host) or security.insecure:
        return
    if security.tls.certificate is None:
        raise ConfigError(
            f"server.host: {host} can be reached from other machines, and everything would go over the network in the "
            "clear. Set security.tls.certificate and security.tls.key (`fedmtl-server certs init DIR` creates them "
            "for a trial), or pass --insecure on a network that you trust"
        )
    if not is_authenticating(config):
        raise ConfigError(
            f"security.authentication: {host} can be reached from other machines, and anybody there could take part. "
            "Keep the default and add clients with `fedmtl-server clients add`, or pass --insecure"
        )


def is_authenticating(config: Config) -> bool:
    """Whether the server authenticates its callers."""
    security = config.security
    if security.authentication is not None:
        return security.authentication
    return security.tls.client_ca is not None or not (is_loopback(config.server.host) or security.insecure)
