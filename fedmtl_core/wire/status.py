"""Maps FedMTL's errors to gRPC's status codes and to the reasons in `google.rpc.ErrorInfo`, and back."""

from collections.abc import Mapping
from typing import TypeVar

from grpc import StatusCode

from fedmtl_core import errors

STATUS_OF: dict[type[errors.RequestError], StatusCode] = {
    errors.InvalidRequestError: StatusCode.INVALID_ARGUMENT,  # correct the request
    errors.UnknownTaskError: StatusCode.NOT_FOUND,  # no head for this task
    errors.WrongRunError: StatusCode.FAILED_PRECONDITION,  # the server serves another run
    errors.StaleRoundError: StatusCode.ABORTED,  # wait for the next round, train again
    errors.ClientReplacedError: StatusCode.ALREADY_EXISTS,  # stop: another process has this client id
    errors.ChecksumError: StatusCode.DATA_LOSS,  # send the same update again
    errors.LimitExceededError: StatusCode.RESOURCE_EXHAUSTED,  # ask for less
    errors.UnauthenticatedError: StatusCode.UNAUTHENTICATED,  # stop: ask the operator for credentials
    errors.PermissionDeniedError: StatusCode.PERMISSION_DENIED,  # stop: another client's id or task
    errors.UnavailableError: StatusCode.UNAVAILABLE,  # call again later
    errors.ServerFaultError: StatusCode.INTERNAL,  # stop: the server's log says why
}

REASON_OF: dict[type[errors.RequestError], str] = {
    errors.InvalidRequestError: "INVALID_REQUEST",
    errors.LayoutMismatchError: "LAYOUT_MISMATCH",
    errors.NonFiniteError: "NON_FINITE",
    errors.NormExceededError: "NORM_EXCEEDED",
    errors.MalformedStreamError: "MALFORMED_STREAM",
    errors.UnknownTaskError: "UNKNOWN_TASK",
    errors.WrongRunError: "WRONG_RUN",
    errors.StaleRoundError: "STALE_ROUND",
    errors.ClientReplacedError: "CLIENT_REPLACED",
    errors.ChecksumError: "CHECKSUM_MISMATCH",
    errors.LimitExceededError: "LIMIT_EXCEEDED",
    errors.UnauthenticatedError: "UNAUTHENTICATED",
    errors.PermissionDeniedError: "PERMISSION_DENIED",
    errors.UnavailableError: "UNAVAILABLE",
    errors.ServerFaultError: "SERVER_FAULT",
}
"""By error, its reason. The reasons are part of the contract: the proto lists them, and they don't change."""

LOCAL: frozenset[type[errors.RequestError]] = frozenset(
    {
        errors.UnreachableError,
        errors.UntrustedServerError,
        errors.ConnectionLostError,
        errors.IntermediaryError,
        errors.TransferCutError,
    }
)
"""Errors that a client raises itself; no server sends them."""

_ERROR_OF = {code: error for error, code in STATUS_OF.items()}
_ERROR_OF_REASON = {reason: error for error, reason in REASON_OF.items()}
_T = TypeVar("_T")

_TEMPORARY = {StatusCode.DEADLINE_EXCEEDED, StatusCode.CANCELLED}


def status_of(error: errors.RequestError) -> StatusCode:
    """Return the status code of an error, from its nearest base class in the table; `UNKNOWN` without one."""
    return _nearest(error, STATUS_OF) or StatusCode.UNKNOWN


def reason_of(error: errors.RequestError) -> str:
    """Return the reason of an error, from its nearest base class in the table; empty without one."""
    return _nearest(error, REASON_OF) or ""


def error_from_status(code: StatusCode, message: str, reason: str = "") -> errors.RequestError:
    """Return the error of a failed call, so that callers catch FedMTL's errors instead of gRPC's.

    Args:
        code: the call's status code.
        message: the call's message.
        reason: the reason in the call's `ErrorInfo`, if it has one. It is more specific than the code. If it
            contradicts the code, the code counts.
    """
    if code in _TEMPORARY:
        return errors.UnavailableError(message)
    specific = _ERROR_OF_REASON.get(reason)
    if specific is not None and code in _ERROR_OF and issubclass(specific, _ERROR_OF[code]):
        return specific(message)
    if code in _ERROR_OF:
        return _ERROR_OF[code](message)
    return errors.RequestError(f"the server answered {code.name}: {message}")


def _nearest(error: errors.RequestError, table: Mapping[type[errors.RequestError], _T]) -> _T | None:
    return next((table[base] for base in type(error).__mro__ if base in table), None)
