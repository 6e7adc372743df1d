"""One `PushUpdate` stream, as the intake of updates takes it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from fedmtl.v1 import federation_pb2 as pb

from fedmtl_core.errors import MalformedStreamError, UnavailableError
from fedmtl_core.wire.chunks import Chunk
from fedmtl_server.transfer.streams import wait_for_hang_up


class Upload:
    """One `PushUpdate` stream.

    Args:
        messages: the stream, each message as `read_message` reads it. An iteration raises `MalformedStreamError` for
            bytes that are no message of an upload.
        timeout_s: how long a message may be waited for.
        on_ready: tells the client that there is room for its chunks. Before that it had better not send them: they
            would fill the transport's memory.
    """

    def __init__(
        self,
        messages: AsyncIterator[pb.PushUpdateRequest | Chunk],
        timeout_s: float,
        on_ready: Callable[[], Awaitable[None]],
    ):
        self._messages = messages
        self._timeout_s = timeout_s
        self._on_ready = on_ready
        self.opening = pb.UpdateHeader()
        """The header, as soon as it is there: for the log."""

    async def header(self) -> pb.UpdateHeader:
        """See `UploadStream.header`."""
        message = await self._next()
        if message is None:
            await self.until_hung_up()
            raise MalformedStreamError("the stream is empty, expected a header")
        if isinstance(message, Chunk) or message.WhichOneof("part") != "header":
            raise MalformedStreamError(f"expected a header first, got {_name(message)}")
        self.opening = message.header
        return self.opening

    async def ready(self) -> None:
        """See `UploadStream.ready`."""
        await self._on_ready()

    async def chunks(self) -> AsyncIterator[Chunk]:
        """See `UploadStream.chunks`."""
        while (message := await self._next()) is not None:
            if not isinstance(message, Chunk):
                raise MalformedStreamError(f"expected a chunk after the header, got {_name(message)}")
            yield message

    async def end(self) -> None:
        """See `UploadStream.end`."""
        if await self._next() is not None:
            raise MalformedStreamError("metrics come in the header alone, but another message followed")
        await self.until_hung_up()

    async def until_hung_up(self) -> None:
        """See `UploadStream.until_hung_up`."""
        await wait_for_hang_up()

    async def _next(self) -> pb.PushUpdateRequest | Chunk | None:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await anext(self._messages, None)
        except TimeoutError:
            raise UnavailableError(f"no message arrived for {self._timeout_s:g} s; send the update again") from None


def _name(message: pb.PushUpdateRequest | Chunk) -> str:
    return "chunk" if isinstance(message, Chunk) else message.WhichOneof("part") or "an empty message"
