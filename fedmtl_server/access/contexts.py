"""Wrappers of a call's context. Each wrapper adds one behavior to the context's methods."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NoReturn

import grpc

from fedmtl_core.errors import LimitExceededError
from fedmtl_server.access.rates import RETRY_S
from fedmtl_server.rpc.handlers import CallContext, Metadata

LAST_WORD_S = 1.0
"""The maximum time to send a call's status, in seconds. The status waits behind bytes that the client doesn't read."""


class _WrappedContext:
    """Passes everything on to a call's context; subclasses change some methods."""

    def __init__(self, context: CallContext):
        self._context = context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


class GuardedContext(_WrappedContext):
    """Limits how long a call waits for a client that doesn't read, and closes the connection if the client never reads.

    Args:
        context: gRPC's own context.
        timeout_s: the maximum time for a message to be read, in seconds. This is the only timer of a write.
        end_connection: closes a connection; called with the peer and the reason.
    """

    def __init__(self, context: CallContext, timeout_s: float, end_connection: Callable[[str, str], None]):
        super().__init__(context)
        self._timeout_s = timeout_s
        self._end_connection = end_connection
        self._has_begun = False
        self.ended_with: grpc.StatusCode | None = None
        """The status with which the call ended before its handler returned; None if it didn't."""

    async def send_initial_metadata(self, initial_metadata: Metadata) -> None:
        """Send the initial metadata, which tells the client that the call continues."""
        self._has_begun = True
        await self._context.send_initial_metadata(initial_metadata)

    async def write(self, message: object) -> None:
        """Send a message.

        Raises:
            LimitExceededError: the client doesn't read the message in time.
        """
        try:
            async with asyncio.timeout(self._timeout_s) as scope:
                if not self._has_begun:  # otherwise it waits with the message, and no status can precede it
                    await self.send_initial_metadata(())
                await self._context.write(message)
        except TimeoutError:
            if not scope.expired():
                raise
            raise LimitExceededError(f"the client read no message for {self._timeout_s:g} s", RETRY_S) from None

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()) -> NoReturn:
        """End the call with a status."""
        if self.ended_with is not None:
            raise asyncio.CancelledError  # the call was already ending
        self.ended_with = code
        try:
            async with asyncio.timeout(LAST_WORD_S) as scope:
                await self._context.abort(code, details, tuple(trailing_metadata))
        except TimeoutError:
            if not scope.expired():
                raise
            self._end_connection(self._context.peer(), "the client doesn't read the status of a call")
            raise asyncio.CancelledError from None
        raise AssertionError("abort raises")


class WriteProgressContext(_WrappedContext):
    """Reports every message that the client has read.

    Args:
        context: the call's context.
        on_write: called after each message.
    """

    def __init__(self, context: CallContext, on_write: Callable[[], None]):
        super().__init__(context)
        self._on_write = on_write

    async def write(self, message: object) -> None:
        await self._context.write(message)
        self._on_write()
