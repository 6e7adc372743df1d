"""Receiving one update: header first, every check before anything is counted, and no trace of a stream that breaks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from fedmtl.v1 import federation_pb2 as pb

from fedmtl_core.chunks import Assembler, verify_digests
from fedmtl_core.errors import MalformedStreamError, UnavailableError
from fedmtl_core.layout import Component
from fedmtl_server.federation import Federation
from fedmtl_server.messages import claim_from_header, require_layouts
from fedmtl_server.rounds import UpdateClaim


@dataclass(frozen=True)
class Receipt:
    """What became of an update that was not refused."""

    round: int
    duplicate: bool
    num_bytes: int


class Upload:
    """One `PushUpdate` stream.

    Args:
        messages: the stream.
        federation: the run it is for.
    """

    def __init__(self, messages: AsyncIterator[pb.PushUpdateRequest], federation: Federation):
        self._messages = messages
        self._federation = federation
        self._timeout_s = federation.rules.transfer_timeout_s
        self.header = pb.UpdateHeader()
        """The header, as soon as it is there: for the log."""

    async def receive(self) -> Receipt:
        """Take the stream in and count its update.

        Raises:
            RequestError: the update is refused, and nothing of it is kept.
        """
        claim = await self._receive_header()
        counted_in = self._federation.admit(claim)
        if counted_in is not None:
            return Receipt(counted_in, duplicate=True, num_bytes=0)
        if claim.kind == "metrics":
            return await self._receive_metrics(claim)
        staged = self._federation.stage(claim.task)
        counts = False
        try:
            num_bytes = await self._receive_components(claim, list(staged.components.values()))
            counted_in = self._federation.count(claim, staged)
            counts = counted_in is None
        finally:
            if not counts:
                staged.release()
        return Receipt(counted_in or claim.base_round, duplicate=not counts, num_bytes=num_bytes)

    async def _receive_header(self) -> UpdateClaim:
        message = await self._next()
        if message is None:
            raise MalformedStreamError("the stream is empty, expected a header")
        if message.WhichOneof("part") != "header":
            raise MalformedStreamError(
                f"expected a header first, got {message.WhichOneof('part') or 'an empty message'}"
            )
        self.header = message.header
        self._federation.require_run(self.header.run_id)
        self._federation.require_task(self.header.task)
        claim = claim_from_header(self.header)
        expected = () if claim.kind == "metrics" else self._federation.model.layouts_for(claim.task)
        require_layouts(expected, self.header.components)
        return claim

    async def _receive_metrics(self, claim: UpdateClaim) -> Receipt:
        if await self._next() is not None:
            raise MalformedStreamError("metrics come in the header alone, but another message followed")
        counted_in = self._federation.count(claim, None)
        return Receipt(counted_in or claim.base_round, duplicate=counted_in is not None, num_bytes=0)

    async def _receive_components(self, claim: UpdateClaim, components: Sequence[Component]) -> int:
        assembler = Assembler(components)
        while (message := await self._next()) is not None:
            if message.WhichOneof("part") != "chunk":
                raise MalformedStreamError(
                    f"expected a chunk after the header, got {message.WhichOneof('part') or 'an empty message'}"
                )
            assembler.add(message.chunk)
            self._federation.received(claim, len(message.chunk.data))
        assembler.finish()
        digests = [component.digest for component in self.header.components]
        await asyncio.to_thread(_verify, components, digests)
        return assembler.bytes_received

    async def _next(self) -> pb.PushUpdateRequest | None:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await anext(self._messages, None)
        except TimeoutError:
            raise UnavailableError(f"no message arrived for {self._timeout_s:g} s; send the update again") from None


def _verify(components: Sequence[Component], digests: Sequence[bytes]) -> None:
    verify_digests(components, digests)
    for component in components:
        component.require_finite()
