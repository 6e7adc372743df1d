"""The google.rpc details of an error, in the trailing metadata of a failed call.

`ErrorInfo` has the reason, `BadRequest` the field to correct, and `RetryInfo` the delay before a retry.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode
from grpc_status import rpc_status

from fedmtl_core.errors import LimitExceededError, RequestError
from fedmtl_core.wire.status import reason_of, status_of

DETAILS_KEY = "grpc-status-details-bin"
DOMAIN = "fedmtl.v1"
"""The domain of the reasons: the contract's package."""
MAX_RETRY_S = 3600.0
"""The longest delay in seconds that a client accepts from a server."""
MAX_TEXT, MAX_FIELD, MAX_FACT = 600, 200, 100
"""The maximum number of characters of a message, of a field's path, and of one fact. A status travels in headers, and
many clients accept at most 8 KiB of headers. The message is in them twice, and base64 makes details a third larger."""
MAX_FACTS = 8

_CODES = {code.value[0]: code for code in StatusCode}


@dataclass(frozen=True)
class Details:
    """The details of a failed call. Details that the call lacks are empty or None."""

    reason: str = ""
    facts: dict[str, str] = field(default_factory=dict)
    field: str = ""
    """The path of the first field to correct."""
    retry_after_s: float | None = None
    code: StatusCode | None = None
    """The status code that the details repeat."""
    message: str = ""
    """The message that the details repeat."""


def text_of(error: RequestError) -> str:
    """Return the message that a call fails with, in ASCII and short enough for a header."""
    return _shortened(str(error), MAX_TEXT)


def trailing_metadata(error: RequestError, text: str) -> tuple[tuple[str, bytes], ...]:
    """Return an error's details as the trailing metadata of the call that fails with it.

    Args:
        error: the error.
        text: the message that the call fails with; the details repeat it, as their readers expect.
    """
    facts = {name: _shortened(fact, MAX_FACT) for name, fact in list(error.metadata.items())[:MAX_FACTS]}
    status = status_pb2.Status(code=status_of(error).value[0], message=text)
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason_of(error), domain=DOMAIN, metadata=facts))
    if error.field and status_of(error) is StatusCode.INVALID_ARGUMENT:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=_shortened(error.field, MAX_FIELD), description=_shortened(text, MAX_FIELD), reason=reason_of(error)
        )
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    if isinstance(error, LimitExceededError) and error.retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(round(error.retry_after_s * 1e9))
        status.details.add().Pack(retry)
    return tuple(rpc_status.to_status(status).trailing_metadata)


def read_details(metadata: Iterable[Any] | None) -> Details:
    """Read the details in a failed call's trailing metadata, as far as they are valid and belong to the contract."""
    found: dict[str, Any] = {}
    for key, value in metadata or ():
        if key != DETAILS_KEY:
            continue
        try:
            status = status_pb2.Status.FromString(value)
            for detail in status.details:
                found |= _read(detail)
            if "reason" in found:
                found |= {"code": _CODES.get(status.code), "message": status.message}
        except (DecodeError, ValueError, TypeError):
            break
    return Details(**found)


def _read(detail: Any) -> dict[str, Any]:
    info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    if detail.Unpack(info) and info.domain == DOMAIN:
        return {"reason": info.reason, "facts": dict(info.metadata)}
    if detail.Unpack(bad) and bad.field_violations:
        return {"field": bad.field_violations[0].field}
    if detail.Unpack(retry) and retry.HasField("retry_delay"):
        return {"retry_after_s": min(max(float(retry.retry_delay.ToNanoseconds()) / 1e9, 0.0), MAX_RETRY_S)}
    return {}


def _shortened(text: str, limit: int) -> str:
    text = text.encode("ascii", "backslashreplace").decode()
    return text if len(text) <= limit else text[:limit] + "..."
