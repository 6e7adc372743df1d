"""Everything that can go wrong, as one family of exceptions that knows nothing of gRPC.

Each message says what was expected and what came. `fedmtl_core.wire.status` gives each its status code and its reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager


def first_line(error: BaseException | str) -> str:
    """The first line of an error's message; the name of its type if there is no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class FedMTLError(Exception):
    """Base of every error that FedMTL raises on purpose."""


class UserError(FedMTLError):
    """Something the user asked for can't be done as asked; a command line ends with exit code 2."""


class ConfigError(UserError):
    """A setting is unknown, missing or out of range."""


class DataError(UserError):
    """A data set can't be found or read, or its rows aren't what the task says."""


class ModelUnavailableError(UserError):
    """A model or tokenizer can't be had under the given name."""


class DivergedError(UserError):
    """A model gives values that aren't finite.

    Args:
        message: which, and since when.
        loss: the one that it gives.
    """

    def __init__(self, message: str = "", loss: float = math.nan):
        super().__init__(message)
        self.loss = loss


class AggregationError(FedMTLError):
    """There is nothing to average."""


class RunStoppedError(FedMTLError):
    """A server was told to stop before its run was over. What was acknowledged is kept for the one that takes it up."""


class StoreError(FedMTLError):
    """The run's folder or its database can't be written or read."""


class CorruptCheckpointError(StoreError):
    """A checkpoint isn't what was written."""


class RequestError(FedMTLError):
    """A request that was refused. Nothing of it was kept.

    Args:
        message: what was expected, and what came.
        field: the path of the request's field that is to be mended, as the contract names it; empty if it is none.
        facts: what a program may want of the message, by a name such as `round`.
    """

    def __init__(self, message: str = "", *, field: str = "", **facts: object):
        super().__init__(message)
        self.field = field
        self.facts = {name: str(fact) for name, fact in facts.items()}


@contextmanager
def within(field: str) -> Iterator[None]:
    """Have the errors that are raised here name a field below this one, or this one."""
    try:
        yield
    except RequestError as error:
        error.field = f"{field}.{error.field}" if error.field else field
        raise


class InvalidRequestError(RequestError):
    """A field of the request is missing or out of range."""


class LayoutMismatchError(InvalidRequestError):
    """Tensors differ from the layout in name, shape, dtype or place."""


class NonFiniteError(InvalidRequestError):
    """A value is NaN or infinite."""


class NormExceededError(InvalidRequestError):
    """An update would move the model further than is allowed."""


class MalformedStreamError(InvalidRequestError):
    """Messages or bytes contradict the header, or come in the wrong order."""


class UnknownTaskError(RequestError):
    """There is no such task."""


class WrongRunError(RequestError):
    """The request belongs to another run."""


class StaleRoundError(RequestError):
    """The round has closed, or isn't the caller's to take part in."""


class ClientReplacedError(RequestError):
    """Another stream has taken up this client id."""


class ChecksumError(RequestError):
    """Bytes were damaged on the way."""


class LimitExceededError(RequestError):
    """A limit was passed.

    Args:
        message: which, what is allowed, and what came.
        retry_after_s: when the same request may be let through; None if never.
        field, facts: as for every request's.
    """

    def __init__(self, message: str = "", retry_after_s: float | None = None, *, field: str = "", **facts: object):
        super().__init__(message, field=field, **facts)
        self.retry_after_s = retry_after_s


class UnauthenticatedError(RequestError):
    """Nobody knows who calls: credentials are missing, not known, or revoked."""


class PermissionDeniedError(RequestError):
    """The caller is known, and what it asks for isn't its to ask."""


class UnavailableError(RequestError):
    """The server can't be reached, is stopping, lacks something for a moment, or saw no progress; come back later."""


class UnreachableError(UnavailableError):
    """Nobody answers where the server should be."""


class ConnectionLostError(UnavailableError):
    """The connection ended during a call."""


class IntermediaryError(UnavailableError):
    """A call ended in a way in which no FedMTL server ends one: something between client and server did it."""


class TransferCutError(LimitExceededError):
    """Something between client and server ends a transfer at the same byte again and again."""


class ServerFaultError(RequestError):
    """The server has failed at something that nobody foresaw."""


class UntrustedServerError(UnavailableError):
    """What answers can't prove that it is the server."""
