"""What an error tells a caller besides its code and message: google.rpc details in a call's trailing metadata."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from fedmtl_core.errors import LimitExceededError, RequestError
from fedmtl_core.status import status_of

DETAILS_KEY = "grpc-status-details-bin"
MAX_RETRY_S = 3600.0
"""A server that asks for more isn't listened to."""


def trailing_metadata(error: RequestError, text: str) -> tuple[tuple[str, bytes], ...]:
    """An error's details, for the end of the call that fails with it.

    Args:
        error: what the call fails with.
        text: the message it fails with; the details repeat it, as their readers expect.
    """
    if not isinstance(error, LimitExceededError) or error.retry_after_s is None:
        return ()
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromNanoseconds(round(error.retry_after_s * 1e9))
    status = status_pb2.Status(code=status_of(error).value[0], message=text)
    status.details.add().Pack(retry)
    return tuple(rpc_status.to_status(status).trailing_metadata)


def retry_after_s(metadata: Iterable[Any] | None) -> float | None:
    """Seconds that a failed call's trailing metadata asks to wait; None if it doesn't, or can't be read."""
    for key, value in metadata or ():
        if key != DETAILS_KEY:
            continue
        try:
            details = status_pb2.Status.FromString(value).details
            for detail in details:
                retry = error_details_pb2.RetryInfo()
                if detail.Is(retry.DESCRIPTOR) and detail.Unpack(retry) and retry.HasField("retry_delay"):
                    return min(max(float(retry.retry_delay.ToNanoseconds()) / 1e9, 0.0), MAX_RETRY_S)
        except (DecodeError, ValueError):
            return None
    return None
