"""Receiving one update: header first, every check before anything is counted, and no trace of a stream that breaks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

from fedmtl.v1 import federation_pb2 as pb

from fedmtl_core.errors import (
    ChecksumError,
    InvalidRequestError,
    LayoutMismatchError,
    MalformedStreamError,
    RequestError,
    UnavailableError,
    within,
)
from fedmtl_core.wire.chunks import Assembler, Chunk, read_message
from fedmtl_core.wire.encoded import EncodedLayout
from fedmtl_core.wire.update_headers import components_from_header, update_from_header, with_components
from fedmtl_core.wire.updates import Update
from fedmtl_server.federation import Federation
from fedmtl_server.transfer.incoming import Transfer

HANG_UP_S = 0.1
"""gRPC ends the stream of a client that has gone a moment before it cancels the handler: the time to tell it from one
that ended its stream early."""


@dataclass(frozen=True)
class Receipt:
    """What became of an update that was not refused."""

    round: int
    duplicate: bool
    num_bytes: int


class Upload:
    """One `PushUpdate` stream.

    Args:
        messages: the stream, serialised.
        federation: the run it is for.
        on_ready: tells the client that there is room for its chunks. Before that it had better not send them: they
            would fill the transport's memory.
    """

    def __init__(
        self,
        messages: AsyncIterator[bytes],
        federation: Federation,
        on_ready: Callable[[], Awaitable[None]],
    ):
        self._messages = messages
        self._federation = federation
        self._on_ready = on_ready
        self._timeout_s = federation.rules.rounds.transfer_timeout_s
        self.header = pb.UpdateHeader()
        """The header, as soon as it is there: for the log."""

    async def receive(self) -> Receipt:
        """Take the stream in and count its update.

        Raises:
            RequestError: the update is refused. Nothing of it is kept, unless the stream broke and a retry can go on.
        """
        update, parts = await self._receive_header()
        with within("header"):
            counted_in = self._federation.admit(update)
        if counted_in is not None:
            return Receipt(counted_in, duplicate=True, num_bytes=0)
        transfer = await self._federation.stage(update, parts, self)
        keep = True
        try:
            num_bytes = await self._receive_rest(transfer)
            await self._federation.examine(transfer, self)
            await self._federation.staging.secure(transfer.staged)
            await self._federation.until_countable(update)
            counted_in = self._federation.count(transfer, self)
        except RequestError as error:
            keep = isinstance(error, (UnavailableError, ChecksumError))  # what came before is good
            raise
        finally:
            if not transfer.staged.complete:
                self._federation.abandon(transfer, self, keep=keep and counted_in is None)
        return Receipt(
            counted_in or self._federation.round_of(update), duplicate=counted_in is not None, num_bytes=num_bytes
        )

    async def _receive_header(self) -> tuple[Update, Sequence[EncodedLayout]]:
        message = await self._next()
        if message is None:
            await asyncio.sleep(HANG_UP_S)
            raise MalformedStreamError("the stream is empty, expected a header")
        if isinstance(message, Chunk) or message.WhichOneof("part") != "header":
            raise MalformedStreamError(f"expected a header first, got {_name(message)}")
        self.header = message.header
        self._federation.require_run(self.header.run_id)
        self._federation.require_task(self.header.task)
        with within("header"):
            spec = self._federation.model.spec_of(self.header.task)
            update = update_from_header(self.header, spec)
            update = update.limited_to(self._federation.rules.max_examples.get(update.task))
            expected = () if update.kind == "metrics" else self._federation.model.layouts_for(update.task)
            try:
                parts = components_from_header(self.header, expected)
            except LayoutMismatchError:
                if self._is_counted(update):
                    return update, ()
                raise
            return with_components(update, self.header, parts), parts

    def _is_counted(self, update: Update) -> bool:
        """Whether an update of another layout counts already.

        Layers may have moved since it was made: that it is late, or was counted, is what its client has to know.

        Raises:
            StaleRoundError: it is late.
        """
        try:
            return self._federation.admit(update) is not None
        except InvalidRequestError:
            return False

    async def _receive_rest(self, transfer: Transfer) -> int:
        """Take in what follows the header. If the history is against the update, that is what is said, and not what is
        wrong with bytes that couldn't count."""
        try:
            return await (self._receive_chunks(transfer) if transfer.staged.parts else self._receive_end())
        except RequestError:
            await self._federation.require_no_objection(transfer)
            raise

    async def _receive_end(self) -> int:
        if await self._next() is not None:
            raise MalformedStreamError("metrics come in the header alone, but another message followed")
        await asyncio.sleep(HANG_UP_S)
        return 0

    async def _receive_chunks(self, transfer: Transfer) -> int:
        await self._on_ready()
        staged = transfer.staged
        assembler = Assembler(staged.buffers, staged.offsets, transfer.update.compression)
        staged.offsets = assembler.offsets
        while (message := await self._next()) is not None:
            if not isinstance(message, Chunk):
                raise MalformedStreamError(f"expected a chunk after the header, got {_name(message)}")
            self._federation.received(transfer, self, message.num_bytes)
            with within("chunk"):
                assembler.add(message)
        if not assembler.is_complete:
            await asyncio.sleep(HANG_UP_S)
        assembler.finish()
        return assembler.bytes_received

    async def _next(self) -> pb.PushUpdateRequest | Chunk | None:
        try:
            async with asyncio.timeout(self._timeout_s):
                message = await anext(self._messages, None)
        except TimeoutError:
            raise UnavailableError(f"no message arrived for {self._timeout_s:g} s; send the update again") from None
        return None if message is None else read_message(message, pb.PushUpdateRequest)


def _name(message: pb.PushUpdateRequest | Chunk) -> str:
    return "chunk" if isinstance(message, Chunk) else message.WhichOneof("part") or "an empty message"
