"""Ends a refused call with the code, message and details of its error."""

from __future__ import annotations

from typing import NoReturn

from fedmtl_core.errors import RequestError
from fedmtl_core.wire.details import text_of, trailing_metadata
from fedmtl_core.wire.status import status_of
from fedmtl_server.rpc.handlers import CallContext


async def abort(context: CallContext, error: RequestError) -> NoReturn:
    """End a call with an error's status.

    Args:
        context: the call's context, gRPC's own or a wrapper.
        error: the reason.
    """
    text = text_of(error)
    await context.abort(status_of(error), text, trailing_metadata(error, text))
    raise AssertionError("abort raises")
