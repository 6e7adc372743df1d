"""The one table between FedMTL's errors and gRPC's status codes, read in both directions."""

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

_ERROR_OF = {code: error for error, code in STATUS_OF.items()}
_COME_BACK = {StatusCode.DEADLINE_EXCEEDED, StatusCode.CANCELLED}


def status_of(error: errors.RequestError) -> StatusCode:
    """The code of an error's nearest base in the table; `UNKNOWN` if it has none."""
    return next((STATUS_OF[base] for base in type(error).__mro__ if base in STATUS_OF), StatusCode.UNKNOWN)


def error_from_status(code: StatusCode, message: str) -> errors.RequestError:
    """The error that a failed call stands for, so that callers catch FedMTL's errors and not gRPC's."""
    if code in _COME_BACK:
        return errors.UnavailableError(message)
    if code in _ERROR_OF:
        return _ERROR_OF[code](message)
    return errors.RequestError(f"the server answered {code.name}: {message}")
