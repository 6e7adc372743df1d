"""Receiving one update: header first, every check before anything is counted, and no trace of a stream that breaks.

A round may close, another upload of the same client may begin, and the server may stop whenever something is waited
for. So there is one check, `Intake._require_wanted`, and it comes after each wait.
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
    """One upload, as its transport hands it over."""

    async def header(self) -> pb.UpdateHeader:
        """The first message.

        Raises:
            MalformedStreamError, UnavailableError: it is something else, or doesn't come.
        """

    async def ready(self) -> None:
        """Tell the client that there is room for its chunks."""

    def chunks(self) -> AsyncIterator[Chunk]:
        """What follows the header.

        Raises:
            MalformedStreamError, UnavailableError: it is something else, or doesn't come.
        """

    async def end(self) -> None:
        """Check that nothing follows the header of an update without tensors.

        Raises:
            MalformedStreamError: something does.
        """

    async def until_hung_up(self) -> None:
        """Give the transport the time to cancel a stream that ended early because its client has gone."""


class RoundsInProgress(Protocol):
    """What an intake asks of the run's rounds."""

    def admit(self, update: Update) -> int | None:
        """See `OpenRound.admit`."""

    def place_of(self, client_id: str) -> int:
        """How many updates are accumulated before a client's."""

    def received(self, num_bytes: int) -> None:
        """Note bytes of an upload."""

    def progress(self, client_id: str) -> None:
        """Note that a client's upload moves: its round waits for it."""

    def norm_reference(self) -> NormReference:
        """What the norms of the round's updates are held against."""

    async def until_open(self, update: Update) -> None:
        """Wait for the round to be taking updates, or for the update to be refused."""

    def count(self, transfer: Transfer) -> None:
        """Count an update."""


class CountedUpdates(Protocol):
    """What an intake asks of the history."""

    def has_counted(self, client_id: str, update_id: str) -> bool:
        """Whether an update counts in any round. Blocks.

        Raises:
            StoreError: the history can't be read.
        """


class SliceLayouts(Protocol):
    """What an intake asks of the model."""

    def spec_of(self, task: str) -> TaskSpec: ...

    def layouts_for(self, task: str | None) -> Sequence[Layout]: ...


@dataclass(frozen=True)
class Receipt:
    """What became of an update that was not refused."""

    round: int
    duplicate: bool
    num_bytes: int


class _CountedMeanwhileError(Exception):
    """Another stream has brought the same update, and it counts."""

    def __init__(self, round_: int):
        super().__init__(round_)
        self.round = round_


class Intake:
    """Takes in the updates of one run.

    Args:
        rounds: the run's rounds.
        model: whose layouts updates have.
        staging: where their bytes go.
        transfers: the updates on their way.
        examination: of updates that are whole.
        history: the updates that have counted.
        max_examples: by task with a limit, the examples that an update counts as at most.
    """

    def __init__(
        self,
        rounds: RoundsInProgress,
        model: SliceLayouts,
        staging: StagingArea,
        transfers: Transfers,
        examination: Examination,
        history: CountedUpdates,
        max_examples: Mapping[str, int],
    ):
        self._rounds = rounds
        self._model = model
        self._staging = staging
        self._transfers = transfers
        self._examination = examination
        self._history = history
        self._max_examples = max_examples
        self._log = get_logger()

    async def receive(self, stream: UploadStream, header: pb.UpdateHeader) -> Receipt:
        """Take a stream in and count its update.

        Args:
            stream: the upload.
            header: its first message.

        Raises:
            RequestError: the update is refused. Nothing of it is kept, unless the stream broke and a retry can go on.
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
            reference = self._rounds.norm_reference()
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
            keep = isinstance(error, (UnavailableError, ChecksumError))  # what came before is good
            raise
        except BaseException:  # the stream broke
            keep = True
            raise
        finally:
            if not transfer.staged.complete:
                self._transfers.abandon(transfer, stream, keep=keep)
        return Receipt(self._rounds.admit(update) or update.base_round, duplicate=False, num_bytes=num_bytes)

    def _require_wanted(self, transfer: Transfer, stream: UploadStream, *, whole: bool = False) -> None:
        """Check, after something was waited for, that the update may still count, and that this stream brings it.

        Args:
            transfer: the update.
            stream: the upload.
            whole: whether all of it has come: that another stream was faster is no loss then.

        Raises:
            StaleRoundError, InvalidRequestError: its round has closed.
            UnavailableError: its client has opened another upload, or the server is stopping.
            _CountedMeanwhileError: it counts already.
        """
        counted_in = self._rounds.admit(transfer.update)
        if whole and counted_in is not None:
            raise _CountedMeanwhileError(counted_in)
        transfer.require_stream(stream)

    def _opened(self, header: pb.UpdateHeader) -> tuple[Update, Sequence[EncodedLayout]]:
        """The update that a header announces, and its components from where this stream starts."""
        spec = self._model.spec_of(header.task)
        update = update_from_header(header, spec).limited_to(self._max_examples.get(header.task))
        expected = () if update.kind == "metrics" else self._model.layouts_for(update.task)
        try:
            parts = components_from_header(header, expected)
        except LayoutMismatchError:
            # Layers may have moved since it was made: that it is late, or was counted, is what its client has to know.
            if self._counts(update):
                return update, ()
            raise
        return with_components(update, header, parts), parts

    def _counts(self, update: Update) -> bool:
        """Whether an update counts already.

        Raises:
            StaleRoundError: it is late.
        """
        try:
            return self._rounds.admit(update) is not None
        except InvalidRequestError:
            return False

    async def _begin(
        self, update: Update, parts: Sequence[EncodedLayout], header: pb.UpdateHeader, stream: UploadStream
    ) -> Transfer:
        """Room for an update, or what has arrived of it before; see `Transfers.begin`.

        Raises:
            StaleRoundError: it counts in an earlier round, though not as its client's last.
            UnavailableError: the history can't be read, or there is no room.
        """
        refusal = asyncio.create_task(self._refusal_of_history(update))  # looked for while the bytes come
        if update.client_id in self._transfers:  # what is there already isn't given up for one that is refused
            await _raise_if_any(refusal)
        place = self._rounds.place_of(update.client_id)
        transfer = await self._transfers.begin(update, parts, header.SerializeToString(), stream, place)
        transfer.refusal_of_history = refusal
        return transfer

    async def _receive_rest(self, transfer: Transfer, stream: UploadStream) -> int:
        """Take in what follows the header. If the history is against the update, that is what is said, and not what is
        wrong with bytes that couldn't count.

        Returns:
            The encoded bytes that came.
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
        """The error to raise if the history already has an update; None otherwise."""
        try:
            has_counted = await asyncio.to_thread(self._history.has_counted, update.client_id, update.update_id)
        except StoreError as error:
            self._log.error("history.unreadable", reason=str(error))
            return UnavailableError("the run's history can't be read just now; send the update again")
        if has_counted:  # though not as its client's last
            return StaleRoundError(f"update {update.update_id!r} already counts in an earlier round; train again")
        return None

    async def _require_new(self, transfer: Transfer) -> None:
        """Check that the history doesn't have an update, once it has been read.

        Raises:
            StaleRoundError: it counts in an earlier round.
            UnavailableError: the history can't be read.
        """
        if transfer.refusal_of_history is not None:
            await _raise_if_any(transfer.refusal_of_history)


async def _raise_if_any(refusal: asyncio.Task[RequestError | None]) -> None:
    error = await refusal
    if error is not None:
        raise error
