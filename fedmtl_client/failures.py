"""Translates failed gRPC calls into FedMTL's errors, and tells a server's refusal from an intermediary's failure."""

from __future__ import annotations

import grpc

from fedmtl_client.credentials import why_unreachable
from fedmtl_core.addresses import host_of
from fedmtl_core.errors import (
    ConnectionLostError,
    IntermediaryError,
    LimitExceededError,
    RequestError,
    UnavailableError,
)
from fedmtl_core.runtime.proxies import proxy_of
from fedmtl_core.wire.details import read_details
from fedmtl_core.wire.status import error_from_status

_PASSING = {
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""gRPC's statuses, without FedMTL's reason, of a stream that a proxy resets or ends without a status."""
_RESET = "RST_STREAM"


def error_of(failure: grpc.RpcError, address: str) -> RequestError:
    """Return the error of a failed call.

    Every FedMTL server sends a reason with its errors. A status without a reason comes from gRPC itself, or from an
    intermediary such as a proxy or a load balancer. HAProxy forwards the details of a refusal, then resets the stream
    if the upload continues. gRPC then reports the status of the reset with the details of the refusal.

    Args:
        failure: gRPC's error.
        address: the server's address.
    """
    code, details = failure.code(), failure.details() or ""
    sent = read_details(failure.trailing_metadata())
    if not sent.reason:
        return _without_reason(code, details, address)
    if code in _PASSING and sent.code is not None:  # the reset's status replaced the refusal's, but not its details
        code, details = sent.code, sent.message
    error = error_from_status(code, details, sent.reason)
    error.field, error.metadata = sent.field, sent.facts
    if isinstance(error, LimitExceededError):
        error.retry_after_s = sent.retry_after_s
    return error


def _without_reason(code: grpc.StatusCode, details: str, address: str) -> RequestError:
    if code is grpc.StatusCode.UNAVAILABLE:
        unreachable = why_unreachable(address, details, proxy_of(host_of(address)))
        return ConnectionLostError(details) if type(unreachable) is UnavailableError else unreachable
    if code in _PASSING or _RESET in details:
        return IntermediaryError(f"an intermediary, such as a proxy, ended the call: {code.name}: {details}")
    error = error_from_status(code, details)
    between = proxy_of(host_of(address))
    hint = between or "is there a proxy or another server at that address?"
    sender = "gRPC itself or another server sent it"
    error.args = (f"{error} (the answer of {address} has no FedMTL error reason, so {sender}; {hint})",)
    return error
