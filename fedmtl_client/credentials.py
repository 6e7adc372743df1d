"""The client's certificates and token, and the CA that it trusts."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from fedmtl_core.addresses import host_of, is_loopback
from fedmtl_core.config import Config
from fedmtl_core.errors import ConfigError, UnavailableError, UnreachableError, UntrustedServerError
from fedmtl_core.logs import get_logger
from fedmtl_core.runtime import pem, proxies

TOKEN_VARIABLE = "FEDMTL_TOKEN"
"""Environment variable of the token, used if no file is given."""

_TOKEN = re.compile(r"[!-~]{16,512}")


@dataclass(frozen=True)
class Credentials:
    """Certificates in PEM, and the token. Without `ca` the connection is unencrypted."""

    ca: bytes | None = None
    """The CA of the server's certificate."""
    certificate: bytes | None = None
    """The client's own certificate, for mutual TLS."""
    key: bytes | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    insecure: bool = False
    """Whether connections to other machines are allowed without TLS."""

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The gRPC metadata sent with every call."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    def channel(self, address: str, options: Mapping[str, int]) -> grpc.Channel:
        """Return a channel to a server. A server on this machine is reached directly, without a proxy.

        Raises:
            ConfigError: the connection would reach another machine unencrypted.
        """
        self.require_safe(address)
        host = host_of(address)
        settled = list({**options, **proxies.channel_options(host)}.items())
        if proxy := proxies.proxy_of(host):
            get_logger().warning(
                "server.behind_proxy", address=address, variable=proxy.variable, proxy=proxy.address, reason=str(proxy)
            )
        if self.ca is not None:
            secured = grpc.ssl_channel_credentials(self.ca, self.key, self.certificate)
            return grpc.secure_channel(address, secured, options=settled)
        if self.token and not is_loopback(host):
            get_logger().warning("token.sent_in_the_clear", address=address)
        return grpc.insecure_channel(address, options=settled)

    def require_safe(self, address: str) -> None:
        """Check that no connection reaches another machine unencrypted by accident.

        Raises:
            ConfigError: it would; the message says how to encrypt it, or how to allow it.
        """
        if self.ca is None and not self.insecure and not is_loopback(host_of(address)):
            raise ConfigError(
                f"--server: {address} may be another machine, and everything would go over the network in the clear. "
                "Pass the CA of the server's certificate with --tls-ca, or pass --insecure if you trust the network"
            )


class Renewal:
    """Returns new credentials when called, if the credential files have changed; None otherwise.

    Args:
        config: names the files.
        environment: as for `load`.
    """

    def __init__(self, config: Config, environment: Mapping[str, str] = os.environ):
        self._config = config
        self._environment = environment
        self._stamp = self._stamps()
        self._lock = threading.Lock()

    def __call__(self) -> Credentials | None:
        with self._lock:
            stamp = self._stamps()
            if stamp == self._stamp:
                return None
            self._stamp = stamp
            try:
                renewed = load(self._config, self._environment)
            except ConfigError as error:  # perhaps only some of the files have been replaced so far
                get_logger().warning("credentials.not_renewed", reason=str(error))
                return None
        get_logger().info("credentials.renewed")
        return renewed

    def _stamps(self) -> tuple[object, ...]:
        client = self._config.client
        paths = (client.tls_ca, client.tls_certificate, client.tls_key, client.token_file)
        return tuple(_stamp(path) for path in paths if path is not None)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_ino, stat.st_size


def load(config: Config, environment: Mapping[str, str] = os.environ) -> Credentials:
    """Load the credentials that the configuration's section `client` names.

    Args:
        config: the configuration, including command-line options.
        environment: the environment variables; one of them may have the token.

    Raises:
        ConfigError: a file can't be read, or has the wrong contents.
    """
    client = config.client
    if bool(client.tls_certificate) != bool(client.tls_key):
        given, missing = ("certificate", "key") if client.tls_certificate else ("key", "certificate")
        raise ConfigError(f"client.tls_{given}: needs client.tls_{missing} too")
    if client.tls_certificate and not client.tls_ca:
        raise ConfigError("client.tls_certificate: needs client.tls_ca too, the CA of the server's certificate")
    ca = certificate = key = None
    if client.tls_ca:
        ca = pem.read_certificates("client.tls_ca", client.tls_ca)[0]
    if client.tls_certificate and client.tls_key:
        certificate, parsed = pem.read_certificates("client.tls_certificate", client.tls_certificate)
        key = pem.read_key("client.tls_key", client.tls_key, parsed)
        pem.require_valid_now("client.tls_certificate", client.tls_certificate, parsed)
    return Credentials(
        ca=ca,
        certificate=certificate,
        key=key,
        token=_token(client.token_file, environment),
        insecure=config.security.insecure,
    )


def _token(path: Path | None, environment: Mapping[str, str]) -> str | None:
    """Return the token. A malformed token isn't shown in the message: it may be another secret."""
    if path is not None:
        source, text = (
            f"client.token_file: {path}",
            pem.read("client.token_file", path).decode("utf-8", "replace").strip(),
        )
    elif environment.get(TOKEN_VARIABLE):
        source, text = f"the environment variable {TOKEN_VARIABLE}", environment[TOKEN_VARIABLE].strip()
    else:
        return None
    if not _TOKEN.fullmatch(text):
        raise ConfigError(
            f"{source}: expected one token as printed by `fedmtl-server clients add` (16 to 512 printable ASCII "
            f"characters without spaces), got {len(text)} characters of another form"
        )
    return text


def why_unreachable(address: str, details: str, proxy: proxies.Proxy | None = None) -> UnavailableError:
    """Return the error for a connection that can't be made: says whether credentials or a proxy may be the cause.

    Args:
        address: the server's address.
        details: gRPC's error details.
        proxy: the proxy that the connection goes through.
    """
    error = _why_unreachable(address, details)
    if proxy is None or not isinstance(error, UnreachableError | UntrustedServerError):
        return error
    return type(error)(f"{error}; {proxy}")


def _why_unreachable(address: str, details: str) -> UnavailableError:
    failed = "failed to connect" in details or details.startswith("errors resolving")
    if failed and (match := re.search(r"CERTIFICATE_VERIFY_FAILED: ([^:;]*)", details)):
        return UntrustedServerError(
            f"{address} shows a certificate that isn't trusted ({match[1].strip()}): expected a valid one issued by "
            "the CA in --tls-ca; check that the file is the CA of this server"
        )
    if failed and "Hostname Verification Check failed" in details:
        return UntrustedServerError(
            f"{address} shows a certificate that doesn't name {host_of(address)}; connect with a name that it has, or "
            "have it reissued"
        )
    if failed and "WRONG_VERSION_NUMBER" in details:
        return UntrustedServerError(f"{address} doesn't speak TLS, but --tls-ca is given; leave out --tls-ca")
    if not failed:
        return UnavailableError(details)
    cause = details.rstrip("] ").rpartition(": ")[2]
    if cause == "Socket closed":
        cause += "; does the server ask for TLS (--tls-ca), or for another certificate (--tls-certificate)?"
    return UnreachableError(cause)
