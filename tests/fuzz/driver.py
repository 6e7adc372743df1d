"""A server's servicer driven without a network: messages as bytes, a clock that stands still, and calm after each step.

Everything but gRPC itself is real: servicer, rounds, staging, files, history, model. What gRPC adds (connections, flow
control, cancellation) is in `tests/server` and `tests/faults`.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import grpc
from fedmtl.v1 import federation_pb2 as pb

from fedmtl_core.config import Config
from fedmtl_core.wire.chunks import Chunk, read_message
from fedmtl_server.aggregation.pipeline import Pipeline
from fedmtl_server.aggregation.ranks import EQUAL_RANKS
from fedmtl_server.aggregation.stages.norms import NormScreening
from fedmtl_server.commits import Commits
from fedmtl_server.federation import Federation
from fedmtl_server.model import MTLServerModel
from fedmtl_server.recovery import recovered_updates, restore
from fedmtl_server.rounds.report import RoundReport
from fedmtl_server.rounds.rules import RoundRules
from fedmtl_server.rpc.servicer import FederatedMtlServicer
from fedmtl_server.run_spec import RunParts, RunSpec
from fedmtl_server.storage.checkpoint_folder import CheckpointLayouts
from fedmtl_server.storage.records import UpdateRecord
from fedmtl_server.storage.store import RunStore
from fedmtl_server.transfer import streams
from fedmtl_server.transfer.buffers import BufferPool
from fedmtl_server.transfer.staging import StagingArea
from fedmtl_server.transfer.update_layouts import UpdateLayouts

LIMIT_S = 20.0
"""Real seconds in which everything has to have become calm."""


class Refused(Exception):
    """What `context.abort` ends a call with."""

    def __init__(self, code: grpc.StatusCode, text: str):
        super().__init__(f"{code.name}: {text}")
        self.code = code.name
        self.text = text


class _Context:
    """What a servicer needs of a call's context."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> None:
        assert isinstance(code, grpc.StatusCode)
        assert details.isascii()
        raise Refused(code, details)

    async def send_initial_metadata(self, metadata: Any) -> None:
        pass

    async def write(self, message: Any) -> None:
        self.written.append(message if isinstance(message, bytes) else message.SerializeToString())


class _Loop(asyncio.SelectorEventLoop):
    """An event loop whose time can be moved on, and of which it is known whether anything goes on."""

    moved_s = 0.0
    _num_working = 0

    def time(self) -> float:
        return super().time() + self.moved_s

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> asyncio.Future[Any]:
        self._num_working += 1
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(self._worked)  # before those who wait for it go on
        return future

    def _worked(self, _: asyncio.Future[Any]) -> None:
        self._num_working -= 1

    async def until_calm(self) -> None:
        """Wait until nothing goes on but what waits for a message or for time to pass."""
        calm = 0
        while calm < 3:
            await asyncio.sleep(0.0002 if self._num_working else 0)
            calm = 0 if self._num_working or self._ready else calm + 1  # type: ignore[attr-defined]


class Stream:
    """One `PushUpdate` in progress."""

    def __init__(self, driver: Driver):
        self._messages: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.task = driver.loop.create_task(driver.call("PushUpdate", self._iterate()))

    async def _iterate(self) -> AsyncIterator[pb.PushUpdateRequest | Chunk]:
        while (message := await self._messages.get()) is not None:
            yield read_message(message, pb.PushUpdateRequest)  # as gRPC does for the servicer

    def send(self, *messages: pb.PushUpdateRequest) -> None:
        for message in messages:
            self._messages.put_nowait(message.SerializeToString())

    def end(self) -> None:
        self._messages.put_nowait(None)

    def outcome(self) -> str:
        """A status code's name, `ACCEPTED` or `DUPLICATE`; of one that is done."""
        assert self.task.done(), "the call has not ended"
        error = self.task.exception()
        if isinstance(error, Refused):
            return error.code
        return pb.Outcome.Name(self.task.result().outcome).removeprefix("OUTCOME_")


class Watch:
    """One `WatchRounds` in progress."""

    def __init__(self, driver: Driver, client_id: str, task: str, run_id: str = ""):
        self.asked_as = task
        self._context = _Context()
        request = _travelled(pb.WatchRoundsRequest(client_id=client_id, task=task, run_id=run_id))
        self.task = driver.loop.create_task(driver.servicer.WatchRounds(request, self._context))  # type: ignore[arg-type]

    @property
    def events(self) -> list[pb.WatchRoundsResponse]:
        return [pb.WatchRoundsResponse.FromString(event) for event in self._context.written]

    def end_code(self) -> str | None:
        """The code that it was ended with by the server."""
        error = self.task.exception() if self.task.done() and not self.task.cancelled() else None
        assert error is None or isinstance(error, Refused), error
        return error.code if error else None


class Driver:
    """A run in a folder, and calls to its servicer.

    Args:
        folder: the run's.
        config: the run's.
        model: the one before the first round.
        rules: when rounds open and close.
    """

    def __init__(self, folder: Path, config: Config, model: MTLServerModel, rules: RoundRules):
        self.loop = _Loop()
        self._config, self._rules, self.model = config, rules, model
        self._folder, self.run_id = folder, uuid.uuid4().hex
        self.reports: list[RoundReport] = []
        self._problems: list[Mapping[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self._problems.append(context))
        self._patches = mock.patch.object(streams, "HANG_UP_S", 0.0)  # nothing hangs up here
        self._patches.start()
        store = RunStore.create(config, self.run_id, model.components, model.summary(), folder)
        pipeline = self._pipeline()
        pipeline.restore({}, {}, model.layouts_for(None))
        self._serve(store, pipeline)

    def _pipeline(self) -> Pipeline:
        return Pipeline([NormScreening(self._config.robustness.norms.model_copy(update={"model_factor": None}))])

    def _serve(self, store: RunStore, pipeline: Pipeline) -> None:
        self.store = store
        end_round = store.end_round

        def end_and_note(report: RoundReport, *arguments: Any) -> None:
            end_round(report, *arguments)
            self.reports.append(report)

        store.end_round = end_and_note  # type: ignore[method-assign]
        staging = StagingArea(2**20, store.spool, BufferPool(2**20), durable=True)
        commits = Commits(self.model, pipeline, store, staging)
        spec = RunSpec(
            run_id=self.run_id,
            specs=self._config.task_specs(),
            rules=self._rules,
            plan=self._config.plan,
            report_interval_s=1e9,
        )
        parts = RunParts(commits, store, staging, clock=lambda: self.loop.moved_s)
        self.federation = Federation(spec, parts)
        self.servicer = FederatedMtlServicer(self.federation)

    def start(self) -> None:
        """Hold the rounds."""
        self._run = self.loop.create_task(self.federation.run())
        self.settle()

    def restart(self, model: MTLServerModel) -> None:
        """End the server as `kill` would, as far as what it acknowledged goes, and have another take the run up."""
        self._end("the server is stopping")
        self.model = model
        store = RunStore.resume(self._config, self.run_id, self._folder)
        layouts = CheckpointLayouts(model.layouts_for(None))
        left_off = store.left_off(lambda report: layouts)
        pipeline = self._pipeline()
        restore(left_off, model, pipeline)
        self._serve(store, pipeline)
        self.federation.resume(
            left_off, recovered_updates(store, left_off, UpdateLayouts(model, EQUAL_RANKS), self._config)
        )
        self.start()

    def close(self) -> list[UpdateRecord]:
        """End it all; what the history then says of updates."""
        self._end("the test is over")
        self.store = RunStore.resume(self._config, self.run_id, self._folder)
        records = self.store._history.updates(self.run_id)
        self.store.close()
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        self._patches.stop()
        assert not self._problems, self._problems
        return records

    def _end(self, reason: str) -> None:
        async def end() -> None:
            self._run.cancel()
            (result,) = await asyncio.gather(self._run, return_exceptions=True)
            assert result is None or isinstance(result, asyncio.CancelledError), result
            await self.federation.stop(reason)

        self.loop.run_until_complete(end())
        self.settle()
        self.loop.run_until_complete(asyncio.to_thread(self.store.close))

    # Calls.

    async def call(self, method: str, request: Any) -> Any:
        """A call that is answered with one message, as it arrives."""
        return _travelled(await getattr(self.servicer, method)(request, _Context()))

    def ask(self, method: str, request: Any) -> Any:
        """Call and wait; the answer, or a status code's name."""

        async def ask() -> Any:
            try:
                return await self.call(method, _travelled(request))
            except Refused as refusal:
                return refusal.code

        answer = self.loop.run_until_complete(asyncio.wait_for(ask(), LIMIT_S))
        self.settle()
        return answer

    def get_slice(self, request: pb.GetSliceRequest) -> list[pb.GetSliceResponse] | str:
        """A slice's messages, or a status code's name."""

        async def get() -> list[pb.GetSliceResponse] | str:
            context = _Context()
            try:
                await self.servicer.GetSlice(_travelled(request), context)  # type: ignore[arg-type]
            except Refused as refusal:
                return refusal.code
            return [pb.GetSliceResponse.FromString(message) for message in context.written]

        answer = self.loop.run_until_complete(asyncio.wait_for(get(), LIMIT_S))
        self.settle()
        return answer

    def refusal(self, method: str, request: Any) -> str:
        """The status code's name that a call is refused with."""
        if method == "PushUpdate":
            return self.push(request)
        if method == "WatchRounds":
            watch = Watch(self, request.client_id, request.task, request.run_id)
            self.settle()
            return watch.end_code() or "OK"
        answer = self.get_slice(request) if method == "GetSlice" else self.ask(method, request)
        return answer if isinstance(answer, str) else "OK"

    def push(self, messages: Sequence[pb.PushUpdateRequest]) -> str:
        """A whole stream, and what became of it."""
        stream = Stream(self)
        stream.send(*messages)
        stream.end()
        self.settle()
        return stream.outcome()

    def cancel(self, task: asyncio.Task[Any]) -> None:
        """End a call from the client's side."""
        task.cancel()
        self.settle()

    def on_its_way(self) -> dict[str, dict[str, int]]:
        """By client and scope, how much has arrived of uploads that aren't complete; a query would take them up."""
        current = self.federation._round.transfers._current
        return {client_id: dict(transfer.staged.offsets) for client_id, transfer in current.items()}

    # Time.

    def pass_time(self, seconds: float) -> None:
        """Move the time on, and let everything happen that then is due."""
        self.loop.moved_s += seconds
        self.settle()

    def settle(self) -> None:
        """Wait until nothing happens any more by itself."""
        self.loop.run_until_complete(asyncio.wait_for(self.loop.until_calm(), LIMIT_S))
        if self._run_failed():
            self._run.result()

    def _run_failed(self) -> bool:
        run = getattr(self, "_run", None)
        return bool(run and run.done() and not run.cancelled() and run.exception())


@contextlib.contextmanager
def quiet_log() -> Iterator[None]:
    """Without a log."""
    import structlog

    with structlog.testing.capture_logs():
        yield


def _travelled(message: Any) -> Any:
    """A message as the other side has it."""
    if isinstance(message, AsyncIterator) or not hasattr(message, "SerializeToString"):
        return message
    return type(message).FromString(message.SerializeToString())
