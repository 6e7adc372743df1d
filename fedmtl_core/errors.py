"""All errors, as one family of exceptions that is independent of gRPC.

Each message says what was expected and what was received. `fedmtl_core.wire.status` maps each error to its status code
and its reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager


def first_line(error: BaseException | str) -> str:
    """Return the first line of an error's message; the name of its type if there is no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class FedMTLError(Exception):
    """Base class of all errors that FedMTL raises deliberately."""


class UserError(FedMTLError):
    """The user's request can't be fulfilled; a command line ends with exit code 2."""


class ConfigError(UserError):
    """A setting is unknown, missing or out of range."""


class DataError(UserError):
    """A data set can't be found or read, or its rows contradict the task."""


class ModelUnavailableError(UserError):
    """A model or tokenizer can't be loaded from the given name."""


class DivergedError(UserError):
    """A model gives values that aren't finite.

    Args:
        message: the value, and when it was first seen.
        loss: the model's loss.
    """

    def __init__(self, message: str = "", loss: float = math.nan):
        super().__init__(message)
        self.loss = loss


class AggregationError(FedMTLError):
    """There are no updates to average."""


class RunStoppedError(FedMTLError):
    """A server was asked to stop before its run was over. Acknowledged updates are kept for the resumed run."""


class StoreError(FedMTLError):
    """The run folder or its database can't be written or read."""


class CorruptCheckpointError(StoreError):
    """A checkpoint's contents differ from what was written."""


class RequestError(FedMTLError):
    """A request was refused, and none of it was kept.

    Args:
        message: what was expected, and what was received.
        field: the path of the invalid field, as the contract names it; empty if no field is invalid.
        metadata: the message's values for programs, by a name such as `round`.
    """

    def __init__(self, message: str = "", *, field: str = "", **metadata: object):
        super().__init__(message)
        self.field = field
        self.metadata = {name: str(value) for name, value in metadata.items()}


@contextmanager
def within(field: str) -> Iterator[None]:
    """Prefix the field of errors that are raised within the context with a parent field."""
    try:
        yield
    except RequestError as error:
        error.field = f"{field}.{error.field}" if error.field else field
        raise


class InvalidRequestError(RequestError):
    """A field of the request is missing or out of range."""


class LayoutMismatchError(InvalidRequestError):
    """Tensors differ from the layout in name, shape, dtype or position."""


class NonFiniteError(InvalidRequestError):
    """A value is NaN or infinite."""


class NormExceededError(InvalidRequestError):
    """An update would move the model further than the limit allows."""


class MalformedStreamError(InvalidRequestError):
    """Messages or bytes contradict the header, or arrive in the wrong order."""


class UnknownTaskError(RequestError):
    """The task doesn't exist."""


class WrongRunError(RequestError):
    """The request belongs to another run."""


class StaleRoundError(RequestError):
    """The round has closed, or the caller isn't selected for it."""


class ClientReplacedError(RequestError):
    """Another stream has connected with this client id."""


class ChecksumError(RequestError):
    """Bytes were corrupted in transit."""


class LimitExceededError(RequestError):
    """A limit was exceeded.

    Args:
        message: the limit, the allowed value, and the received value.
        retry_after_s: seconds after which the same request may succeed; None if it never will.
        field, metadata: as in `RequestError`.
    """

    def __init__(self, message: str = "", retry_after_s: float | None = None, *, field: str = "", **metadata: object):
        super().__init__(message, field=field, **metadata)
        self.retry_after_s = retry_after_s


class UnauthenticatedError(RequestError):
    """The caller isn't identified: credentials are missing, unknown, or revoked."""


class PermissionDeniedError(RequestError):
    """The caller is identified but not authorized for the request."""


class UnavailableError(RequestError):
    """The server can't be reached, is stopping, lacks something for a moment, or saw no progress; retry later."""


class UnreachableError(UnavailableError):
    """No server answers at the address."""


class ConnectionLostError(UnavailableError):
    """The connection ended during a call."""


class IntermediaryError(UnavailableError):
    """A call ended in a way that no FedMTL server ends one, so an intermediary ended it."""


class TransferCutError(LimitExceededError):
    """An intermediary ends a transfer repeatedly at the same byte."""


class ServerFaultError(RequestError):
    """The server has failed with an unexpected error."""


class UntrustedServerError(UnavailableError):
    """The server at the address can't prove its identity."""
