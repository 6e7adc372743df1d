"""The tables between FedMTL's errors, gRPC's status codes and the reasons in `google.rpc.ErrorInfo`, read both ways."""

from collections.abc import Mapping
from typing import TypeVar

from grpc import StatusCode

from fedmtl_core import errors

STATUS_OF: dict[type[errors.RequestError], StatusCode] = {
    errors.InvalidRequestError: StatusCode.INVALID_ARGUMENT,  # mend the request
    errors.UnknownTaskError: StatusCode.NOT_FOUND,  # no head for this task
    errors.WrongRunError: StatusCode.FAILED_PRECONDITION,  # another run is being served
    errors.StaleRoundError: StatusCode.ABORTED,  # wait for the next round, train again
    errors.ClientReplacedError: StatusCode.ALREADY_EXISTS,  # stop: another process has this client id
    errors.ChecksumError: StatusCode.DATA_LOSS,  # send the same again
    errors.LimitExceededError: StatusCode.RESOURCE_EXHAUSTED,  # ask for less
    errors.UnauthenticatedError: StatusCode.UNAUTHENTICATED,  # stop: the operator gives out credentials
    errors.PermissionDeniedError: StatusCode.PERMISSION_DENIED,  # stop: another client's id or task
    errors.UnavailableError: StatusCode.UNAVAILABLE,  # come back
    errors.ServerFaultError: StatusCode.INTERNAL,  # stop: the server's log says at what it failed
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
"""A reason is part of the contract: the proto lists it, and it stays what it is."""

LOCAL: frozenset[type[errors.RequestError]] = frozenset(
    {
        errors.UnreachableError,
        errors.UntrustedServerError,
        errors.ConnectionLostError,
        errors.IntermediaryError,
        errors.TransferCutError,
    }
)
"""What a client finds by itself, and no server says."""

_ERROR_OF = {code: error for error, code in STATUS_OF.items()}
_ERROR_OF_REASON = {reason: error for error, reason in REASON_OF.items()}
_T = TypeVar("_T")

_COME_BACK = {StatusCode.DEADLINE_EXCEEDED, StatusCode.CANCELLED}


def status_of(error: errors.RequestError) -> StatusCode:
    """The code of an error's nearest base in the table; `UNKNOWN` if it has none."""
    return _nearest(error, STATUS_OF) or StatusCode.UNKNOWN


def reason_of(error: errors.RequestError) -> str:
    """The reason of an error's nearest base in the table; empty if it has none."""
    return _nearest(error, REASON_OF) or ""


def error_from_status(code: StatusCode, message: str, reason: str = "") -> errors.RequestError:
    """The error that a failed call stands for, so that callers catch FedMTL's errors and not gRPC's.

    Args:
        code: the call's.
        message: likewise.
        reason: of its `ErrorInfo`, if it has one. It says more than the code; where the two don't go together, the code
            counts.
    """
    if code in _COME_BACK:
        return errors.UnavailableError(message)
    told = _ERROR_OF_REASON.get(reason)
    if told is not None and code in _ERROR_OF and issubclass(told, _ERROR_OF[code]):
        return told(message)
    if code in _ERROR_OF:
        return _ERROR_OF[code](message)
    return errors.RequestError(f"the server answered {code.name}: {message}")


def _nearest(error: errors.RequestError, table: Mapping[type[errors.RequestError], _T]) -> _T | None:
    return next((table[base] for base in type(error).__mro__ if base in table), None)
