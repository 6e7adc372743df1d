"""How a client's stream of messages begins and ends, as a gRPC handler sees it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Generic, TypeVar

M = TypeVar("M")

HANG_UP_S = 0.1
"""When a client hangs up, gRPC ends its stream at once and cancels the handler a moment later, within this time."""


async def wait_for_hang_up() -> None:
    """Wait until the handler of a client that hung up is cancelled; it isn't if the client ended its stream early."""
    await asyncio.sleep(HANG_UP_S)


class OpenedStream(Generic[M]):
    """A stream whose opening message comes from somewhere else than the messages after it.

    Whoever reads the opening message first can hand on what it has read. The messages after it are passed on as the
    stream under this one gives them, at no cost.

    Args:
        opening: awaited for the opening message, when it is asked for. It may raise what is wrong with the message.
        rest: the messages after it.
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
