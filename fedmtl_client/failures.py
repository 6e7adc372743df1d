"""What a failed call stands for: FedMTL's errors instead of gRPC's, and who ended it."""

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
"""Without a reason: what gRPC makes of a stream that a proxy resets, or ends without a status."""
_RESET = "RST_STREAM"


def error_of(failure: grpc.RpcError, address: str) -> RequestError:
    """The error of a failed call.

    Every FedMTL server sends a reason with its errors. A status without one is from gRPC itself, or from something
    between client and server, such as a proxy or a load balancer. HAProxy passes the details of a refusal on before it
    resets the stream of an upload that goes on; gRPC then has the status of the reset, and the details of the refusal.

    Args:
        failure: gRPC's.
        address: the server's.
    """
    code, details = failure.code(), failure.details() or ""
    told = read_details(failure.trailing_metadata())
    if not told.reason:
        return _without_reason(code, details, address)
    if code in _PASSING and told.code is not None:  # a reset took the status' place, behind its details
        code, details = told.code, told.message
    error = error_from_status(code, details, told.reason)
    error.field, error.facts = told.field, told.facts
    if isinstance(error, LimitExceededError):
        error.retry_after_s = told.retry_after_s
    return error


def _without_reason(code: grpc.StatusCode, details: str, address: str) -> RequestError:
    if code is grpc.StatusCode.UNAVAILABLE:
        unreachable = why_unreachable(address, details, proxy_of(host_of(address)))
        return ConnectionLostError(details) if type(unreachable) is UnavailableError else unreachable
    if code in _PASSING or _RESET in details:
        return IntermediaryError(f"something between client and server ended the call: {code.name}: {details}")
    error = error_from_status(code, details)
    between = proxy_of(host_of(address))
    hint = between or "is there a proxy or another server at that address?"
    error.args = (f"{error} ({address} gave no reason, as a FedMTL server does; {hint})",)
    return error
