"""Contexts around a call's own, each of which adds one thing to what handlers do with theirs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NoReturn

import grpc

from fedmtl_core.errors import LimitExceededError
from fedmtl_server.access.rates import RETRY_S
from fedmtl_server.rpc.handlers import CallContext, Metadata

LAST_WORD_S = 1.0
"""How long a call's status may take to leave. It waits behind the bytes that the client doesn't take."""


class _WrappedContext:
    """A call's context as it is; subclasses change some of its methods."""

    def __init__(self, context: CallContext):
        self._context = context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


class GuardedContext(_WrappedContext):
    """Bounds how long a call waits for a client that doesn't read, and closes the connection of one that never does.

    Args:
        context: gRPC's own.
        timeout_s: how long a message may wait to be taken. This is the only timer of a write.
        end_connection: told the peer and the reason.
    """

    def __init__(self, context: CallContext, timeout_s: float, end_connection: Callable[[str, str], None]):
        super().__init__(context)
        self._timeout_s = timeout_s
        self._end_connection = end_connection
        self._has_begun = False
        self.ended_with: grpc.StatusCode | None = None
        """The status that the call was ended with before its handler was through."""

    async def send_initial_metadata(self, initial_metadata: Metadata) -> None:
        """Let the client know that the call goes on."""
        self._has_begun = True
        await self._context.send_initial_metadata(initial_metadata)

    async def write(self, message: object) -> None:
        """Send a message.

        Raises:
            LimitExceededError: the client doesn't take it.
        """
        try:
            async with asyncio.timeout(self._timeout_s) as scope:
                if not self._has_begun:  # else it would go with the message, and no status before that is taken
                    await self.send_initial_metadata(())
                await self._context.write(message)
        except TimeoutError:
            if not scope.expired():
                raise
            raise LimitExceededError(f"no message was taken for {self._timeout_s:g} s", RETRY_S) from None

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()) -> NoReturn:
        """End the call with a status."""
        if self.ended_with is not None:
            raise asyncio.CancelledError  # it had to go while it was going already
        self.ended_with = code
        try:
            async with asyncio.timeout(LAST_WORD_S) as scope:
                await self._context.abort(code, details, tuple(trailing_metadata))
        except TimeoutError:
            if not scope.expired():
                raise
            self._end_connection(self._context.peer(), "it doesn't read how a call ended")
            raise asyncio.CancelledError from None
        raise AssertionError("abort raises")


class WriteProgressContext(_WrappedContext):
    """Reports every message that the client has taken.

    Args:
        context: the call's.
        on_write: called after each message.
    """

    def __init__(self, context: CallContext, on_write: Callable[[], None]):
        super().__init__(context)
        self._on_write = on_write

    async def write(self, message: object) -> None:
        await self._context.write(message)
        self._on_write()
