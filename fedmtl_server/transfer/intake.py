"""Receives one update: the header first, then every check, then the count. A broken stream has no effect on the round.

During each wait a round may close, the same client may begin another upload, and the server may stop. One check,
`Intake._require_wanted`, therefore follows each wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from fedmtl.v1 import federation_pb2 as pb

from fedmtl_core.errors import (
    ChecksumError,
    InvalidRequestError,
    LayoutMismatchError,
    RequestError,
    StaleRoundError,
    StoreError,
    UnavailableError,
    within,
)
from fedmtl_core.logs import get_logger
from fedmtl_core.tasks.spec import TaskSpec
from fedmtl_core.wire.chunks import Assembler, Chunk
from fedmtl_core.wire.encoded import EncodedLayout
from fedmtl_core.wire.layout import Layout
from fedmtl_core.wire.update_headers import components_from_header, update_from_header, with_components
from fedmtl_core.wire.updates import Update
from fedmtl_server.transfer.examination import Examination, NormReference
from fedmtl_server.transfer.incoming import Transfer, Transfers
from fedmtl_server.transfer.staging import StagingArea


class UploadStream(Protocol):
    """The transport of one upload."""

    async def header(self) -> pb.UpdateHeader:
        """Receive the first message.

        Raises:
            MalformedStreamError, UnavailableError: the message is not a header, or does not arrive.
        """

    async def ready(self) -> None:
        """Tell the client that the server is ready for its chunks."""

    def chunks(self) -> AsyncIterator[Chunk]:
        """Yield the chunks after the header.

        Raises:
            MalformedStreamError, UnavailableError: a message is not a chunk, or does not arrive.
        """

    async def end(self) -> None:
        """Check that no message follows the header of an update without tensors.

        Raises:
            MalformedStreamError: a message follows.
        """

    async def until_hung_up(self) -> None:
        """Give the transport time to cancel a stream that ended early because its client disconnected."""


class RoundsInProgress(Protocol):
    """The interface of the run's rounds that an intake uses."""

    def admit(self, update: Update) -> int | None:
        """Check that an update may count; see `OpenRound.admit`."""

    def place_of(self, client_id: str) -> int:
        """Return how many updates are accumulated before the client's update."""

    def received(self, num_bytes: int) -> None:
        """Record the number of bytes received from an upload."""

    def progress(self, client_id: str) -> None:
        """Record that a client's upload makes progress, so that its round keeps waiting for it."""

    def norm_reference(self, client_id: str) -> NormReference:
        """Return the reference values for the norms of a client's update in the round."""

    async def until_open(self, update: Update) -> None:
        """Wait until the round accepts updates, or refuses this one."""

    def count(self, transfer: Transfer) -> None:
        """Count an update."""


class CountedUpdates(Protocol):
    """The interface of the history that an intake uses."""

    def has_counted(self, client_id: str, update_id: str) -> bool:
        """Return whether an update counts in any round. This call blocks.

        Raises:
            StoreError: the history can't be read.
        """


class ExpectedLayouts(Protocol):
    """The layouts that updates must have; see `UpdateLayouts`."""

    def spec_of(self, task: str) -> TaskSpec: ...

    def layouts_of(self, update: Update) -> Sequence[Layout]: ...


@dataclass(frozen=True)
class Receipt:
    """The result of an update that was not refused."""

    round: int
    duplicate: bool
    num_bytes: int


class _CountedMeanwhileError(Exception):
    """The same update counts already, because another stream has completed it."""

    def __init__(self, round_: int):
        super().__init__(round_)
        self.round = round_


class Intake:
    """Receives the updates of one run.

    Args:
        rounds: the run's rounds.
        layouts: the layouts that the updates must have.
        staging: the storage of the updates' bytes.
        transfers: the uploads in progress.
        examination: the checks of complete updates.
        history: the updates that have counted.
        max_examples: the maximum weight of an update in examples, by task; only tasks with a limit.
    """

    def __init__(
        self,
        rounds: RoundsInProgress,
        layouts: ExpectedLayouts,
        staging: StagingArea,
        transfers: Transfers,
        examination: Examination,
        history: CountedUpdates,
        max_examples: Mapping[str, int],
    ):
        self._rounds = rounds
        self._layouts = layouts
        self._staging = staging
        self._transfers = transfers
        self._examination = examination
        self._history = history
        self._max_examples = max_examples
        self._log = get_logger()

    async def receive(self, stream: UploadStream, header: pb.UpdateHeader) -> Receipt:
        """Receive an upload and count its update.

        Args:
            stream: the upload.
            header: the upload's first message.

        Raises:
            RequestError: the update is refused. Its bytes are dropped, unless a retry can continue a broken stream.
        """
        with within("header"):
            update, parts = self._opened(header)
            counted_in = self._rounds.admit(update)
        if counted_in is not None:
            return Receipt(counted_in, duplicate=True, num_bytes=0)
        transfer = await self._begin(update, parts, header, stream)
        keep, num_bytes = False, 0
        try:
            self._require_wanted(transfer, stream)
            num_bytes = await self._receive_rest(transfer, stream)
            await self._require_new(transfer)
            self._require_wanted(transfer, stream, whole=True)
            reference = self._rounds.norm_reference(update.client_id)
            await self._examination.measure(transfer, reference)
            self._require_wanted(transfer, stream, whole=True)
            self._examination.require_within(transfer, reference)
            await self._staging.secure(transfer.staged)
            self._require_wanted(transfer, stream, whole=True)
            await self._rounds.until_open(update)
            self._require_wanted(transfer, stream, whole=True)
            self._rounds.count(transfer)
        except _CountedMeanwhileError as counted:
            return Receipt(counted.round, duplicate=True, num_bytes=num_bytes)
        except RequestError as error:
            keep = isinstance(error, (UnavailableError, ChecksumError))  # the bytes received before are valid
            raise
        except BaseException:  # the stream broke
            keep = True
            raise
        finally:
            if not transfer.staged.complete:
                self._transfers.abandon(transfer, stream, keep=keep)
        return Receipt(self._rounds.admit(update) or update.base_round, duplicate=False, num_bytes=num_bytes)

    def _require_wanted(self, transfer: Transfer, stream: UploadStream, *, whole: bool = False) -> None:
        """Check after a wait that the update may still count, and that this stream carries it.

        Args:
            transfer: the upload of the update.
            stream: the stream of this call.
            whole: whether the update has arrived completely, so that it may have been counted by another stream.

        Raises:
            StaleRoundError, InvalidRequestError: the update's round has closed.
            UnavailableError: the client has opened another upload, or the server is stopping.
            _CountedMeanwhileError: the update is complete and counts already.
        """
        counted_in = self._rounds.admit(transfer.update)
        if whole and counted_in is not None:
            raise _CountedMeanwhileError(counted_in)
        transfer.require_stream(stream)

    def _opened(self, header: pb.UpdateHeader) -> tuple[Update, Sequence[EncodedLayout]]:
        """Return the update that a header announces, and its components with this stream's start offsets."""
        spec = self._layouts.spec_of(header.task)
        update = update_from_header(header, spec).limited_to(self._max_examples.get(header.task))
        expected = () if update.kind == "metrics" else self._layouts.layouts_of(update)
        try:
            parts = components_from_header(header, expected)
        except LayoutMismatchError:
            # Layers may have been regrouped since the update's round. Report first that it is late or counted already.
            if self._counts(update):
                return update, ()
            raise
        return with_components(update, header, parts), parts

    def _counts(self, update: Update) -> bool:
        """Return whether an update counts already.

        Raises:
            StaleRoundError: the update's round has closed.
        """
        try:
            return self._rounds.admit(update) is not None
        except InvalidRequestError:
            return False

    async def _begin(
        self, update: Update, parts: Sequence[EncodedLayout], header: pb.UpdateHeader, stream: UploadStream
    ) -> Transfer:
        """Begin an upload, or continue one; see `Transfers.begin`.

        Raises:
            StaleRoundError: the update counts in an earlier round, though not as its client's last.
            UnavailableError: the history can't be read, or there is no memory.
        """
        refusal = asyncio.create_task(self._refusal_of_history(update))  # reads the history while the bytes arrive
        if update.client_id in self._transfers:  # a refused update must not replace an upload in progress
            await _raise_if_any(refusal)
        place = self._rounds.place_of(update.client_id)
        transfer = await self._transfers.begin(update, parts, header.SerializeToString(), stream, place)
        transfer.refusal_of_history = refusal
        return transfer

    async def _receive_rest(self, transfer: Transfer, stream: UploadStream) -> int:
        """Receive the messages after the header.

        An error of the history check takes precedence over errors in the bytes.

        Returns:
            The number of encoded bytes received.
        """
        try:
            if not transfer.staged.parts:
                await stream.end()
                return 0
            return await self._receive_chunks(transfer, stream)
        except RequestError:
            await self._require_new(transfer)
            raise

    async def _receive_chunks(self, transfer: Transfer, stream: UploadStream) -> int:
        await stream.ready()
        self._require_wanted(transfer, stream)
        staged = transfer.staged
        assembler = Assembler(staged.buffers, staged.offsets, transfer.update.compression)
        staged.offsets = assembler.offsets
        async for chunk in stream.chunks():
            self._rounds.received(chunk.num_bytes)
            self._require_wanted(transfer, stream)
            self._rounds.progress(transfer.update.client_id)
            with within("chunk"):
                assembler.add(chunk)
        if not assembler.is_complete:
            await stream.until_hung_up()
        assembler.finish()
        return assembler.bytes_received

    async def _refusal_of_history(self, update: Update) -> RequestError | None:
        """Return the error to raise if the history already has an update; None otherwise."""
        try:
            has_counted = await asyncio.to_thread(self._history.has_counted, update.client_id, update.update_id)
        except StoreError as error:
            self._log.error("history.unreadable", reason=str(error))
            return UnavailableError("the run's history can't be read at the moment; send the update again")
        if has_counted:  # as an update of the client before its last one
            return StaleRoundError(f"update {update.update_id!r} already counts in an earlier round; train again")
        return None

    async def _require_new(self, transfer: Transfer) -> None:
        """Wait for the history to be read, and check that it does not have the update.

        Raises:
            StaleRoundError: the update counts in an earlier round.
            UnavailableError: the history can't be read.
        """
        if transfer.refusal_of_history is not None:
            await _raise_if_any(transfer.refusal_of_history)


async def _raise_if_any(refusal: asyncio.Task[RequestError | None]) -> None:
    error = await refusal
    if error is not None:
        raise error
