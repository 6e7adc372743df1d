"""The beginning and end of a client's message stream in a gRPC handler."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Generic, TypeVar

M = TypeVar("M")

HANG_UP_S = 0.1
"""The time within which gRPC cancels the handler of a client that hung up, in seconds. The stream ends at once."""


async def wait_for_hang_up() -> None:
    """Wait long enough for gRPC to cancel the handler of a client that hung up.

    The handler is not canceled if the client ended its stream early without hanging up.
    """
    await asyncio.sleep(HANG_UP_S)


class OpenedStream(Generic[M]):
    """A stream with a separate source for its opening message.

    A component that has read the opening message can so pass on the complete stream. The later messages come directly
    from the underlying stream, without overhead.

    Args:
        opening: called and awaited when the opening message is requested; may raise the message's error.
        rest: the messages after the opening message.
    """

    def __init__(self, opening: Callable[[], Awaitable[M]], rest: AsyncIterator[M]):
        self._opening: Callable[[], Awaitable[M]] | None = opening
        self._rest = rest

    def __aiter__(self) -> OpenedStream[M]:
        return self

    def __anext__(self) -> Awaitable[M]:
        if self._opening is None:
            return self._rest.__anext__()
        opening, self._opening = self._opening, None
        return opening()
