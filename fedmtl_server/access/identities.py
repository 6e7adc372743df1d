"""The identity and the permissions of a caller: data and comparisons, without gRPC, files or a clock.

A client proves its identity with a certificate that names it, or with a token. The server stores only the SHA-256 of a
token. A token is 256 random bits, so a slow hash would not protect it better.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from fedmtl_core.errors import PermissionDeniedError, UnauthenticatedError

TOKEN_BYTES = 32
_PREFIX = "fedmtl."
_SCHEME = "bearer"
_NO_DIGEST = bytes(32)
_LONGEST = 80


@dataclass(frozen=True)
class Client:
    """A client that the server knows."""

    name: str
    """The client id."""
    tasks: tuple[str, ...] | None
    """The tasks that the client may take part in; None for all tasks."""
    token_digest: bytes | None = field(default=None, repr=False)
    """The SHA-256 of the client's token; None for a client with a certificate."""
    revoked: bool = False


@dataclass(frozen=True)
class Credentials:
    """The credentials of a call. The certificate, if there is one, has been verified."""

    certificate_name: str | None = None
    token: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Claim:
    """The client id and the tasks in a request, before they are checked against the caller's identity."""

    client_id: str = ""
    task: str = ""
    all_tasks: bool = False
    tasks: Sequence[str] = ()
    """Further tasks in the request."""


@dataclass(frozen=True)
class Identity:
    """The verified identity of a caller."""

    client_id: str
    tasks: frozenset[str] | None
    """The tasks that the caller may take part in; None for all tasks."""

    def require(self, claim: Claim) -> None:
        """Check that this caller may make a request with a claim. Empty fields of the claim are not checked.

        Raises:
            PermissionDeniedError: the claim names another client, or a task that isn't this client's.
        """
        if claim.client_id and claim.client_id != self.client_id:
            raise PermissionDeniedError(
                f"client_id: these credentials are client {self.client_id!r}'s, got {_shortened(claim.client_id)}"
            )
        if self.tasks is None:
            return
        allowed = ", ".join(sorted(self.tasks)) or "no task"
        if claim.all_tasks:
            raise PermissionDeniedError(f"all_tasks: client {self.client_id!r} may have {allowed}, not every task")
        for task in (claim.task, *claim.tasks):
            if task and task not in self.tasks:
                raise PermissionDeniedError(
                    f"task: client {self.client_id!r} may take part in {allowed}, got {_shortened(task)}"
                )


class KnownClients:
    """The clients of a server at one moment."""

    def __init__(self, clients: Iterable[Client] = ()):
        self._by_name = {client.name: client for client in clients}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KnownClients) and self._by_name == other._by_name

    __hash__ = None  # type: ignore[assignment]

    def __len__(self) -> int:
        return sum(not client.revoked for client in self._by_name.values())

    def identify(self, credentials: Credentials) -> Identity:
        """Return the identity of the caller with these credentials.

        Raises:
            UnauthenticatedError: the credentials are missing, unknown or contradictory, or the client was revoked.
        """
        named = credentials.certificate_name
        if credentials.token is not None:
            client = self._by_token(credentials.token)
            if named is not None and named != client.name:
                raise UnauthenticatedError(
                    f"the token is client {client.name!r}'s, but the certificate names {_shortened(named)}"
                )
        elif named is not None:
            client = self._by_certificate(named)
        else:
            raise UnauthenticatedError(
                "expected a client's certificate or its token, got neither; a client gives its token with "
                "--token-file or FEDMTL_TOKEN, and the server reads certificates only with security.tls.client_ca"
            )
        if client.revoked:
            raise UnauthenticatedError(f"client {client.name!r} was revoked")
        return Identity(client.name, None if client.tasks is None else frozenset(client.tasks))

    def _by_token(self, token: str) -> Client:
        """Return the client with this token. The comparison takes as long for an unknown token."""
        client = self._by_name.get(_name_in(token))
        known = client.token_digest if client and client.token_digest else _NO_DIGEST
        if not hmac.compare_digest(digest_of(token), known) or client is None:
            raise UnauthenticatedError("the token isn't valid on this server, or no longer is")
        return client

    def _by_certificate(self, name: str) -> Client:
        client = self._by_name.get(name)
        if client is None:
            raise UnauthenticatedError(f"the certificate names {_shortened(name)}, which isn't a client of this server")
        if client.token_digest is not None:
            raise UnauthenticatedError(f"client {client.name!r} was added with a token: expected that, got none")
        return client


def make_token(name: str) -> str:
    """Create a token for a client."""
    return f"{_PREFIX}{name}.{secrets.token_urlsafe(TOKEN_BYTES)}"


def digest_of(token: str) -> bytes:
    """Return the SHA-256 of a token, which the server stores."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def bearer_token(values: Sequence[str]) -> str | None:
    """Return the token in a call's `authorization` headers; None without such a header.

    Raises:
        UnauthenticatedError: the call has several headers, or the header isn't `Bearer TOKEN`. The message doesn't show
            the header, which can be a secret.
    """
    if not values:
        return None
    if len(values) > 1:
        raise UnauthenticatedError(f"authorization: expected one header, got {len(values)}")
    scheme, _, token = values[0].partition(" ")
    if scheme.lower() != _SCHEME or not token.strip():
        raise UnauthenticatedError("authorization: expected `Bearer TOKEN`, got something else")
    return token.strip()


def certificate_name(common_names: Sequence[str], alternatives: Sequence[str]) -> str:
    """Return the client that a certificate names: its common name, or without one its only alternative name.

    Raises:
        UnauthenticatedError: the certificate names no client, or several.
    """
    names = [name for name in common_names if name] or [name for name in alternatives if name]
    if len(names) != 1:
        raise UnauthenticatedError(
            f"the certificate: expected one common name, or one subject alternative name, got {len(names)}"
        )
    return names[0]


def _name_in(token: str) -> str:
    return token.removeprefix(_PREFIX).rpartition(".")[0]


def _shortened(text: str) -> str:
    return ascii(text if len(text) <= _LONGEST else text[:_LONGEST] + "...")
