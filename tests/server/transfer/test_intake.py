"""Receiving one update step by step: its round may close at every wait, and nothing is left of the update then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import torch
from fedmtl.v1 import federation_pb2 as pb

from fedmtl_core.config import NormsConfig
from fedmtl_core.errors import InvalidRequestError, MalformedStreamError, StaleRoundError, StoreError, UnavailableError
from fedmtl_core.tasks.glue import PRESETS
from fedmtl_core.wire.chunks import Chunk, ChunkedBytes, read_message
from fedmtl_core.wire.encoded import EncodedComponent
from fedmtl_core.wire.layout import Component
from fedmtl_core.wire.update_headers import update_to_header
from fedmtl_core.wire.updates import Update
from fedmtl_server.aggregation.stages.norms import NormScreening
from fedmtl_server.rounds.engine import RoundEngine
from fedmtl_server.rounds.exchanges import TRAIN, Exchange, everybody
from fedmtl_server.rounds.transitions import Step
from fedmtl_server.storage.spool import Spool
from fedmtl_server.transfer.buffers import BufferPool
from fedmtl_server.transfer.examination import Examination, NormReference
from fedmtl_server.transfer.incoming import Transfers
from fedmtl_server.transfer.intake import Intake
from fedmtl_server.transfer.staging import StagingArea
from tests.server.rounds.driven import round_rules

SENT = Component.pack("shared", {"encoder.w": torch.arange(40.0)})
BASE = Component.pack("shared", {"encoder.w": torch.zeros(40)})
UPDATE = Update(
    "a",
    "sst2",
    1,
    "u",
    "parameters",
    run_id="run",
    num_examples=3,
    components=(EncodedComponent.exact(SENT).layout,),
)
CLOSED = StaleRoundError("round 1 has closed")


class Rounds:
    """A round that closes, or counts the update by another stream, at a step of its intake."""

    def __init__(self, at: str = "", *, counts: bool = False):
        self.at, self.counts = at, counts
        self.is_closed = False
        self.counted: list[str] = []
        self.bytes_received = 0
        self.transfers: Transfers | None = None

    def reached(self, step: str) -> None:
        """A wait of the intake is over; the round may have closed in it."""
        if step == self.at:
            self.is_closed = True

    def admit(self, update: Update) -> int | None:
        if update.update_id in self.counted or (self.is_closed and self.counts):
            return 1
        if self.is_closed:
            raise CLOSED
        return None

    def place_of(self, client_id: str) -> int:
        return 0

    def received(self, num_bytes: int) -> None:
        self.bytes_received += num_bytes

    def progress(self, client_id: str) -> None:
        assert not self.is_closed

    def norm_reference(self, client_id: str) -> NormReference:
        return NormReference({"shared": BASE}, {}, {}, {})

    async def until_open(self, update: Update) -> None:
        self.reached("until_open")

    def count(self, transfer) -> None:
        assert not self.is_closed, f"counted after {self.at}"
        assert self.transfers is not None
        self.transfers.complete(transfer)
        self.counted.append(transfer.update.update_id)


class Stream:
    """An upload of two chunks."""

    def __init__(self, rounds: Rounds):
        self.rounds = rounds
        self.was_asked_for_chunks = False

    async def header(self) -> pb.UpdateHeader:
        raise AssertionError("it was read already")

    async def ready(self) -> None:
        self.rounds.reached("ready")

    async def chunks(self) -> AsyncIterator[Chunk]:
        self.was_asked_for_chunks = True
        chunked = ChunkedBytes("shared", SENT.buffer)
        for number, offset in enumerate(chunked.offsets(0, 80)):
            message = read_message(chunked.message(offset, "none", 80), pb.PushUpdateRequest)
            assert isinstance(message, Chunk)
            self.rounds.reached(f"chunk {number}")
            yield message

    async def end(self) -> None:
        raise AssertionError("the update has tensors")

    async def until_hung_up(self) -> None:
        pass


class Staging(StagingArea):
    """Tells the round of its waits."""

    rounds: Rounds

    async def make_room(self, staged):
        await super().make_room(staged)
        self.rounds.reached("room")

    async def secure(self, staged):
        await super().secure(staged)
        self.rounds.reached("secure")


class Examining(Examination):
    rounds: Rounds

    async def measure(self, transfer, reference):
        await super().measure(transfer, reference)
        self.rounds.reached("measure")


class Layouts:
    def spec_of(self, task):
        return PRESETS[task]

    def layouts_of(self, update):
        return (SENT.layout,)


class History:
    """The run's history, in a database that may be away."""

    def __init__(self, rounds: Rounds, *, has: bool = False, away: bool = False):
        self.rounds, self.has, self.away = rounds, has, away

    def has_counted(self, client_id: str, update_id: str) -> bool:
        if self.away:
            raise StoreError("the database is away")
        return self.has


def made(tmp_path, rounds: Rounds, **history) -> tuple[Intake, Staging]:
    staging = Staging(2**20, Spool(tmp_path / "spool"), BufferPool(2**20), durable=True)
    staging.rounds = rounds
    examination = Examining(NormScreening(NormsConfig()), staging)
    examination.rounds = rounds
    rounds.transfers = Transfers(staging, 10.0, lambda _: None)
    return Intake(rounds, Layouts(), staging, rounds.transfers, examination, History(rounds, **history), {}), staging


async def receive(intake: Intake, rounds: Rounds):
    async with asyncio.timeout(20):
        return await intake.receive(Stream(rounds), update_to_header(UPDATE))


async def test_an_update_that_comes_whole_counts_once(tmp_path):
    rounds = Rounds()
    intake, staging = made(tmp_path, rounds)
    first = await receive(intake, rounds)
    assert (first.round, first.duplicate, first.num_bytes) == (1, False, 160)
    again = await receive(intake, rounds)
    assert (again.round, again.duplicate, again.num_bytes) == (1, True, 0)
    assert (rounds.counted, rounds.bytes_received) == (["u"], 160)
    staging.close()


WAITS = ["room", "ready", "chunk 0", "chunk 1", "measure", "secure", "until_open"]


@pytest.mark.parametrize("wait", WAITS)
async def test_a_round_that_closes_while_something_is_waited_for_refuses_the_update_and_keeps_nothing(tmp_path, wait):
    rounds = Rounds(at=wait)
    intake, staging = made(tmp_path, rounds)
    with pytest.raises(StaleRoundError, match="round 1 has closed"):
        await receive(intake, rounds)
    assert rounds.is_closed
    assert rounds.counted == []
    assert "a" not in rounds.transfers
    assert staging.used_bytes == 0
    staging.close()


@pytest.mark.parametrize("wait", ["measure", "secure", "until_open"])
async def test_an_update_that_another_stream_brings_meanwhile_is_a_duplicate(tmp_path, wait):
    rounds = Rounds(at=wait, counts=True)
    intake, staging = made(tmp_path, rounds)
    receipt = await receive(intake, rounds)
    assert (receipt.round, receipt.duplicate) == (1, True)
    assert (rounds.counted, staging.used_bytes) == ([], 0)
    staging.close()


async def test_an_update_of_an_earlier_round_is_refused_by_the_history(tmp_path):
    rounds = Rounds()
    intake, staging = made(tmp_path, rounds, has=True)
    with pytest.raises(StaleRoundError, match="already counts in an earlier round"):
        await receive(intake, rounds)
    assert (rounds.counted, staging.used_bytes) == ([], 0)
    staging.close()


async def test_while_the_history_is_away_what_came_is_kept_for_a_retry(tmp_path):
    rounds = Rounds()
    intake, staging = made(tmp_path, rounds, away=True)
    with pytest.raises(UnavailableError, match="history can't be read at the moment"):
        await receive(intake, rounds)
    assert rounds.transfers.offsets("a", "u") == {"shared": 160}
    staging.close()


async def test_a_stream_that_ends_early_is_refused_and_nothing_of_it_kept(tmp_path):
    rounds = Rounds()
    intake, staging = made(tmp_path, rounds)

    class Short(Stream):
        async def chunks(self):
            async for chunk in super().chunks():
                yield chunk
                return

    with pytest.raises(MalformedStreamError):
        await intake.receive(Short(rounds), update_to_header(UPDATE))
    assert staging.used_bytes == 0
    staging.close()


async def test_a_stream_that_is_cancelled_leaves_what_came_for_a_retry(tmp_path):
    rounds = Rounds()
    intake, staging = made(tmp_path, rounds)

    class Gone(Stream):
        async def chunks(self):
            async for chunk in super().chunks():
                yield chunk
                raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await intake.receive(Gone(rounds), update_to_header(UPDATE))
    assert rounds.transfers.offsets("a", "u") == {"shared": 80}
    staging.close()


# A round of two exchanges, the first of which is answered with nothing but a header.

HELLO = Exchange("hello", frozenset({"metrics"}), "no tensors", everybody)


class EngineRounds(Rounds):
    """A round engine, as the intake asks it."""

    def __init__(self, *exchanges: Exchange):
        super().__init__()
        self.engine = RoundEngine(round_rules(num_rounds=1, min_clients={"sst2": 1}), 0.0, exchanges=exchanges)
        self.engine.join("a", "sst2", 0.0)
        assert self.engine.advance(0.0) is Step.OPENED

    def admit(self, update: Update) -> int | None:
        counted_in = self.engine.counted_in(update)
        if counted_in is None:
            self.engine.check(update)
        return counted_in

    def count(self, transfer) -> None:
        self.engine.count(transfer.update)
        super().count(transfer)


class HeaderAlone(Stream):
    async def end(self) -> None:
        self.rounds.reached("end")


async def test_a_round_of_two_exchanges_goes_through_engine_and_intake(tmp_path):
    rounds = EngineRounds(HELLO, TRAIN)
    intake, staging = made(tmp_path, rounds)
    hello = replace(UPDATE, update_id="hello", kind="metrics", num_examples=0, components=())
    with pytest.raises(InvalidRequestError, match="expects no tensors, got parameters"):
        await receive(intake, rounds)
    await intake.receive(HeaderAlone(rounds), update_to_header(hello))
    assert rounds.engine.advance(1.0) is Step.NEXT_EXCHANGE
    with pytest.raises(InvalidRequestError, match="expects parameters or a delta, got metrics"):
        await intake.receive(HeaderAlone(rounds), update_to_header(replace(hello, update_id="again")))
    assert (await intake.receive(HeaderAlone(rounds), update_to_header(hello))).duplicate
    await receive(intake, rounds)
    assert rounds.engine.advance(2.0) is Step.CLOSED
    assert [one.update_id for one in rounds.engine.cohort["a"].answers] == ["hello", "u"]
    staging.close()
