"""One `PushUpdate` stream, in the form that the intake of updates reads."""

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
        messages: the messages, each as `read_message` returns it. Iteration raises `MalformedStreamError` for bytes
            that are not a message of an upload.
        timeout_s: the maximum wait for a message, in seconds.
        on_ready: notifies the client that the server has room for its chunks. Chunks that a client sends before that
            fill the transport's memory.
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
        """The header, for the log; empty until it has arrived."""

    async def header(self) -> pb.UpdateHeader:
        """See `UploadStream.header`."""
        message = await self._next()
        if message is None:
            await self.until_hung_up()
            raise MalformedStreamError("expected a header, got an empty stream")
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
            raise MalformedStreamError("expected no message after the header of an update without tensors, got one")
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
