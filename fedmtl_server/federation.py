"""One run: drives the round engine with time and events, and carries out what it decides.

Everything here happens on one event loop; tensor arithmetic and file I/O run in threads. It knows no gRPC.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from fedmtl_core.errors import (
    NonFiniteError,
    StaleRoundError,
    UnavailableError,
    UnknownTaskError,
    WrongRunError,
)
from fedmtl_core.formats import DEFAULT_DENSITY, Encoding
from fedmtl_core.layout import Component
from fedmtl_core.logs import get_logger
from fedmtl_core.plan import Purpose, TrainingPlan
from fedmtl_core.wire import EncodedLayout
from fedmtl_server.aggregator import Aggregate, ClientUpdate, CohortOrder, MTLAggregator, RoundFold
from fedmtl_server.events import EventKind, RoundEvent, Watcher, Watchers
from fedmtl_server.model import ModelSummary, MTLServerModel
from fedmtl_server.report import RefusedUpdate, RoundReport, component_reports, task_reports
from fedmtl_server.rounds import Phase, RoundEngine, RoundRules, Step, UpdateClaim
from fedmtl_server.slices import PublishedModel
from fedmtl_server.staging import StagedUpdate, StagingArea
from fedmtl_server.store import RunStore

MAX_REFUSALS_REPORTED = 100


@dataclass(frozen=True)
class TaskStatus:
    """One task at this moment."""

    task: str
    min_clients: int
    connected_clients: int
    cohort_size: int
    reported_clients: int
    last_metrics: Mapping[str, float]


@dataclass(frozen=True)
class ClientStatus:
    """One client at this moment."""

    client_id: str
    task: str
    connected: bool
    in_cohort: bool
    reported: bool


@dataclass(frozen=True)
class Status:
    """Where the run stands."""

    run_id: str
    phase: Phase
    round: int
    num_rounds: int
    waiting_for: str
    tasks: Sequence[TaskStatus]
    clients: Sequence[ClientStatus]
    last_report: RoundReport | None
    model: ModelSummary
    uptime_s: float


@dataclass(eq=False)
class Transfer:
    """An update on its way in, over however many streams."""

    claim: UpdateClaim
    staged: StagedUpdate
    stream: object
    """The stream that brings it now; another that was it before has nothing to say any more."""


@dataclass
class _RoundFacts:
    """What is gathered for the report of the round in progress."""

    opened_at_unix_ms: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0
    refused: list[RefusedUpdate] = field(default_factory=list)
    num_refused: int = 0


class Federation:
    """One run over one model.

    Args:
        run_id: names the run for good.
        model: the server's model; it is this object's alone from now on.
        aggregator: how updates are averaged.
        rules: when rounds open and close.
        plans: what clients are asked to do, by task.
        store: where commits go.
        staging: where updates lie until they are averaged.
        topk_density: share of a component's elements in a `topk` slice.
        report_interval_s: how often the log says what the run waits for.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        *,
        run_id: str,
        model: MTLServerModel,
        aggregator: MTLAggregator,
        rules: RoundRules,
        plans: Mapping[str, TrainingPlan],
        store: RunStore,
        staging: StagingArea,
        topk_density: float = DEFAULT_DENSITY,
        report_interval_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.run_id = run_id
        self.rules = rules
        self.plans = plans
        self.reports: list[RoundReport] = []
        self._model = model
        self._aggregator = aggregator
        self._store = store
        self._staging = staging
        self._topk_density = topk_density
        self._clock = clock
        self._report_interval_s = report_interval_s
        self._started_at = clock()
        self._engine = RoundEngine(rules, self._started_at)
        self._published = self._publish_model(1)
        self._fold: RoundFold | None = None
        self._order = CohortOrder(())
        self._transfers: dict[str, Transfer] = {}
        self._arrived: list[str] = []
        self._complete: dict[str, Transfer] = {}
        self._facts = _RoundFacts()
        self._watchers = Watchers(on_leave=self._left)
        self._waiting_announced = True
        self._wake = asyncio.Event()
        self._stopped: UnavailableError | None = None
        self._log = get_logger()

    # What the servicer asks.

    @property
    def published(self) -> PublishedModel:
        """The model as it goes out."""
        return self._published

    @property
    def staged_bytes(self) -> int:
        """Bytes of updates in memory that are not averaged yet."""
        return self._staging.used_bytes

    @property
    def staging(self) -> StagingArea:
        return self._staging

    @property
    def purpose(self) -> Purpose:
        """What the round in progress, or the next, asks for."""
        return self._engine.purpose

    @property
    def model(self) -> MTLServerModel:
        return self._model

    def require_run(self, run_id: str) -> None:
        """Check that a request means this run; an empty id means whichever it is.

        Raises:
            WrongRunError: it means another.
        """
        if run_id not in ("", self.run_id):
            raise WrongRunError(f"this server's run is {self.run_id!r}, the request is for {run_id!r}")

    def require_task(self, task: str) -> None:
        """Check that a task is one of the run's.

        Raises:
            UnknownTaskError: it isn't.
        """
        if task not in self._model.tasks:
            raise UnknownTaskError(f"task: expected one of {', '.join(self._model.tasks)}, got {task!r}")

    async def watch(self, client_id: str, task: str) -> AsyncGenerator[RoundEvent, None]:
        """The run's events from now on; with a client id, this is the client's presence.

        Raises:
            ClientReplacedError: another watcher took up the client id.
            LimitExceededError: the events aren't read.
            UnavailableError: the server is stopping.
        """
        watcher = Watcher(client_id, task)
        self._require_serving()
        self._join(watcher)
        try:
            async with contextlib.aclosing(watcher.events()) as events:
                async for event in events:
                    yield event
        finally:
            self._watchers.remove(watcher)

    def admit(self, claim: UpdateClaim) -> int | None:
        """Check an update before its bytes are taken.

        Returns:
            None if the bytes are wanted, or the round in which the update already counts.

        Raises:
            StaleRoundError, InvalidRequestError: see `RoundEngine.check`.
            UnavailableError: the server is stopping.
        """
        self._require_serving()
        counted_in = self._engine.counted_in(claim)
        if counted_in is None:
            self._engine.check(claim)
        return counted_in

    async def stage(
        self, claim: UpdateClaim, parts: Sequence[EncodedLayout], header: bytes, stream: object
    ) -> Transfer:
        """Room for an update, or what has arrived of it before.

        Args:
            claim: the update, which `admit` has let in.
            parts: its components; those of a retry start at what `upload_offsets` said.
            header: goes before the bytes in a file.
            stream: who brings it from now on.

        Raises:
            StaleRoundError: the round closed while there was no room.
            UnavailableError: there is no room, or what the retry continues from isn't here.
        """
        before = self._transfers.get(claim.client_id)
        starts = {part.scope: part.start for part in parts}
        if any(starts.values()):
            if before is None or before.claim != claim or before.staged.offsets != starts:
                raise UnavailableError("what the upload continues from is not staged here; ask QueryUpload again")
            before.stream = stream
            before.staged.in_use = True
            return before
        if before is not None:
            self._forget(before)
        place = self._order.place(claim.client_id)
        staged = StagedUpdate(header, place, parts)
        transfer = self._transfers[claim.client_id] = Transfer(claim, staged, stream)
        try:
            await self._wait_for_room(transfer)
        except BaseException:
            self.abandon(transfer, stream, keep=False)
            raise
        staged.offsets = dict.fromkeys(staged.buffers, 0)
        return transfer

    async def _wait_for_room(self, transfer: Transfer) -> None:
        room = asyncio.ensure_future(self._staging.make_room(transfer.staged))
        try:
            while not (await asyncio.wait([room], timeout=self.rules.transfer_timeout_s / 2))[0]:
                self._engine.progress(transfer.claim.client_id, self._clock())  # it's we who keep the client waiting
            room.result()
        finally:
            room.cancel()

    def abandon(self, transfer: Transfer, stream: object, *, keep: bool) -> None:
        """Note that a stream ended before its update was complete.

        Args:
            transfer: what it brought.
            stream: itself.
            keep: whether what has arrived is good, for a retry to go on with.
        """
        if transfer.stream is not stream:
            return
        self._staging.rest(transfer.staged)
        if not keep or self._transfers.get(transfer.claim.client_id) is not transfer:
            self._forget(transfer)

    def upload_offsets(self, client_id: str, update_id: str) -> Mapping[str, int]:
        """By scope, how much has arrived of an upload that broke; it is the caller's to go on with from here."""
        transfer = self._transfers.get(client_id)
        if transfer is None or transfer.claim.update_id != update_id:
            return {}
        transfer.stream = None
        self._staging.rest(transfer.staged)
        return dict(transfer.staged.offsets)

    def received(self, transfer: Transfer, stream: object, num_bytes: int) -> None:
        """Note bytes of an upload in progress, and check that it may still count.

        Raises:
            StaleRoundError: it can't any more.
            UnavailableError: its client has opened another upload, or the server is stopping.
        """
        self._facts.bytes_received += num_bytes
        self.admit(transfer.claim)
        _require_stream(transfer, stream)
        self._engine.progress(transfer.claim.client_id, self._clock())

    def count(self, claim: UpdateClaim, transfer: Transfer | None = None, stream: object = None) -> int | None:
        """Count an update whose bytes, if it has any, are complete and checked.

        Returns:
            None if it counts now, or the round in which it already did.

        Raises:
            StaleRoundError, InvalidRequestError: the round closed while the bytes came.
            UnavailableError: its client has opened another upload, or the server is stopping.
        """
        counted_in = self.admit(claim)
        if counted_in is not None:
            return counted_in
        if transfer is not None:
            _require_stream(transfer, stream)
        self._engine.count(claim)
        if transfer is not None:
            self._staging.rest(transfer.staged, complete=True)
            self._transfers.pop(claim.client_id, None)
            self._complete[claim.client_id] = transfer
            self._arrived.append(claim.client_id)
        self._wake.set()
        return None

    async def prepare(self, published: PublishedModel, scopes: Sequence[str], encoding: Encoding) -> None:
        """Make what clients of an encoding get, once for all of them."""
        for scope in scopes:
            component = published.components[scope]
            if not component.is_ready(encoding):
                await asyncio.to_thread(component.prepare, encoding, self._topk_density)

    def note_refusal(self, refusal: RefusedUpdate) -> None:
        """Note a refused update for the round's report."""
        self._facts.num_refused += 1
        if len(self._facts.refused) < MAX_REFUSALS_REPORTED:
            self._facts.refused.append(refusal)

    def note_sent(self, num_bytes: int) -> None:
        """Note bytes of a slice that were sent."""
        self._facts.bytes_sent += num_bytes

    def require_round(self, round_: int) -> None:
        """Check that a slice is wanted for the current round; 0 means whichever it is.

        Raises:
            StaleRoundError: it is wanted for another.
        """
        if round_ not in (0, self._published.round):
            raise StaleRoundError(
                f"the slice is wanted for round {round_}, but the run is at round {self._published.round}"
            )

    def status(self) -> Status:
        """Where the run stands."""
        engine = self._engine
        members, present = engine.cohort, engine.present
        last_metrics = {
            task.task: task.received_metrics
            for report in self.reports
            for task in report.tasks
            if task.received_metrics
        }
        return Status(
            run_id=self.run_id,
            phase=engine.phase,
            round=engine.round,
            num_rounds=self.rules.num_rounds,
            waiting_for=engine.waiting_for(self._clock()),
            tasks=[
                TaskStatus(
                    task=task,
                    min_clients=self.rules.min_clients[task],
                    connected_clients=sum(other == task for other in present.values()),
                    cohort_size=sum(member.task == task for member in members.values()),
                    reported_clients=sum(member.task == task and member.reported for member in members.values()),
                    last_metrics=last_metrics.get(task, {}),
                )
                for task in self._model.tasks
            ],
            clients=[
                ClientStatus(
                    client_id=client_id,
                    task=present.get(client_id) or members[client_id].task,
                    connected=client_id in present,
                    in_cohort=client_id in members,
                    reported=client_id in members and members[client_id].reported,
                )
                for client_id in sorted(present.keys() | members.keys())
            ],
            last_report=self.reports[-1] if self.reports else None,
            model=self._model.summary(),
            uptime_s=self._clock() - self._started_at,
        )

    # The run itself.

    async def run(self) -> None:
        """Hold the run's rounds until it is finished.

        Raises:
            StoreError: a commit can't be written; the model is then still that of the last commit.
        """
        reporter = asyncio.create_task(self._report_waiting())
        try:
            while self._engine.phase is not Phase.FINISHED:
                await self._step()
        finally:
            reporter.cancel()
            if self._engine.phase is not Phase.FINISHED:  # interrupted, or failed: nothing can count any more
                self._stopped = UnavailableError("the server is stopping")
        self._log.info("run.finished", rounds=self.rules.num_rounds)
        self._publish(EventKind.FINISHED)

    async def stop(self, reason: str, patience_s: float = 0.0) -> None:
        """End every watcher's stream, after waiting for them to leave by themselves."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while self._watchers:
                    self._wake.clear()
                    await self._wake.wait()
        self._stopped = UnavailableError(reason)
        self._watchers.end(self._stopped)
        self._staging.refuse_waiting(self._stopped)
        self._staging.close()

    async def _step(self) -> None:
        self._wake.clear()
        step = self._engine.advance(self._clock())
        if step is Step.OPENED:
            self._open()
        elif step is Step.CLOSED:
            await self._close()
        elif step is Step.ABANDONED:
            self._log.warning("round.abandoned", **self._title(), reason="no update arrived")
            self._end_transfers()
            self._waiting_announced = False
        elif self._arrived:
            await self._fold_arrived()
        else:
            if self._engine.phase is Phase.WAITING and not self._waiting_announced:
                self._publish(EventKind.WAITING)
                self._waiting_announced = True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._engine.next_wakeup(self._clock())):
                    await self._wake.wait()

    def _open(self) -> None:
        cohort = self._engine.cohort
        self._fold = self._aggregator.start_round(self._model.components)
        self._order = CohortOrder(list(cohort))
        self._facts.opened_at_unix_ms = time.time_ns() // 1_000_000
        self._log.info(
            "round.opened",
            **self._title(),
            cohort=", ".join(f"{member.client_id} ({member.task})" for member in cohort.values()),
            deadline_s=self.rules.deadline_s,
        )
        self._publish(EventKind.OPENED)

    async def _fold_arrived(self) -> None:
        arrived, self._arrived = self._arrived, []
        for client_id in arrived:
            await self._fold_all(self._order.arrive(client_id))

    async def _fold_all(self, client_ids: Sequence[str]) -> None:
        assert self._fold is not None
        for client_id in client_ids:
            transfer = self._complete.pop(client_id)
            claim, staged = transfer.claim, transfer.staged
            components = await self._staging.load(staged)
            update = ClientUpdate(claim.client_id, claim.task, claim.num_examples, components, claim.kind)
            kept = await asyncio.to_thread(self._fold.fold, update, may_keep=True)
            self._staging.release(staged, components, kept)

    def _end_transfers(self) -> None:
        """Drop what is on its way: its round takes no more."""
        self._staging.refuse_waiting(StaleRoundError(f"round {self._engine.round} has closed"))
        for transfer in list(self._transfers.values()):
            self._forget(transfer)

    def _forget(self, transfer: Transfer) -> None:
        """Drop what has arrived of an update that doesn't count."""
        transfer.stream = None
        if self._transfers.get(transfer.claim.client_id) is transfer:
            del self._transfers[transfer.claim.client_id]
        self._staging.release(transfer.staged)

    async def _close(self) -> None:
        self._publish(EventKind.CLOSING)
        self._end_transfers()
        began = self._clock()
        aggregate = await self._aggregate()
        report = self._report(aggregate, aggregation_s=self._clock() - began)
        if self._engine.purpose == "train":
            await self._commit(aggregate.components, report)
        else:
            await asyncio.to_thread(self._store.record, report)
        self.reports.append(report)
        self._log_commit(report)
        self._publish(EventKind.COMMITTED, report)
        self._engine.committed(self._clock())
        self._waiting_announced = False

    async def _commit(self, changed: Mapping[str, Component], report: RoundReport) -> None:
        """Make the average the model, on disk first; what was the model goes when nobody downloads it any more."""
        components = {**self._model.components, **changed}
        publish = asyncio.to_thread(self._publish_model, self._engine.round + 1, components)
        write = asyncio.to_thread(self._store.write_model, components, report.round)
        published, _ = await asyncio.gather(publish, write)
        facts = {scope: (one.layout.num_bytes, one.digest) for scope, one in published.components.items()}
        await asyncio.to_thread(self._store.commit, facts, report)
        self._model.install(changed)
        before, self._published = self._published, published
        before.let_go()

    def _publish_model(self, round_: int, components: Mapping[str, Component] | None = None) -> PublishedModel:
        before = self._published if components else None
        published = PublishedModel.publish(
            round_, components or self._model.components, before, on_free=self._staging.take_back
        )
        published.hold()
        return published

    async def _aggregate(self) -> Aggregate:
        if self._engine.purpose == "evaluate":
            return Aggregate()
        assert self._fold is not None
        await self._fold_arrived()
        await self._fold_all(self._order.close())
        return await asyncio.to_thread(self._finished, self._fold)

    def _finished(self, fold: RoundFold) -> Aggregate:
        return self._only_finite(fold.close())

    def _only_finite(self, aggregate: Aggregate) -> Aggregate:
        """The average without components that left the range of their dtype; those stay as they were."""
        good = {}
        for scope, component in aggregate.components.items():
            try:
                component.require_finite()
                good[scope] = component
            except NonFiniteError as error:
                self._log.error("component.discarded", **self._title(), reason=f"its average isn't finite: {error}")
        return Aggregate(good, {scope: aggregate.contributions[scope] for scope in good})

    def _report(self, aggregate: Aggregate, aggregation_s: float) -> RoundReport:
        engine, facts = self._engine, self._facts
        self._facts = _RoundFacts()  # what comes from now on belongs to the next report
        changed = aggregate.components.keys()
        return RoundReport(
            round=engine.round,
            purpose=engine.purpose,
            opened_at_unix_ms=facts.opened_at_unix_ms,
            duration_s=self._clock() - engine.opened_at,
            components=component_reports(aggregate),
            tasks=task_reports(self._model.tasks, engine.cohort.values(), aggregate),
            missing_clients=[member.client_id for member in engine.cohort.values() if not member.reported],
            refused=list(facts.refused),
            num_refused=facts.num_refused,
            bytes_received=facts.bytes_received,
            bytes_sent=facts.bytes_sent,
            unchanged_tasks=[task for task in self._model.tasks if self._model.scopes_for(task)[-1] not in changed],
            aggregation_s=aggregation_s,
        )

    # Watchers.

    def _require_serving(self) -> None:
        if self._stopped:
            raise self._stopped

    def _join(self, watcher: Watcher) -> None:
        self._watchers.add(watcher)
        if watcher.client_id:
            self._engine.join(watcher.client_id, watcher.task, self._clock())
            self._log.info("client.joined", client_id=watcher.client_id, task=watcher.task)
        self._watchers.send(watcher, self._current_event(watcher))
        self._wake.set()

    def _left(self, watcher: Watcher) -> None:
        if watcher.client_id:
            self._engine.leave(watcher.client_id, self._clock())
            self._log.info("client.left", client_id=watcher.client_id, task=watcher.task)
        self._wake.set()

    def _publish(self, kind: EventKind, report: RoundReport | None = None) -> None:
        for watcher in self._watchers:
            self._watchers.send(watcher, self._event(kind, watcher, report))

    def _current_event(self, watcher: Watcher) -> RoundEvent:
        kinds = {
            Phase.WAITING: EventKind.WAITING,
            Phase.OPEN: EventKind.OPENED,
            Phase.AGGREGATING: EventKind.CLOSING,
            Phase.FINISHED: EventKind.FINISHED,
        }
        return self._event(kinds[self._engine.phase], watcher)

    def _event(self, kind: EventKind, watcher: Watcher, report: RoundReport | None = None) -> RoundEvent:
        engine, now = self._engine, self._clock()
        member = engine.cohort.get(watcher.client_id)
        if member is not None and member.task != watcher.task:
            member = None  # it came back with another task: its turn is the next round
        return RoundEvent(
            kind=kind,
            round=engine.round,
            purpose=engine.purpose,
            cohort_size=len(engine.cohort),
            in_cohort=member is not None,
            reported=member is not None and member.reported,
            deadline_s=max(0.0, engine.deadline - now) if kind is EventKind.OPENED else 0.0,
            waiting_for=engine.waiting_for(now) if kind is EventKind.WAITING else "",
            report=report,
        )

    # The log.

    def _title(self) -> dict[str, str]:
        if self._engine.purpose == "evaluate":
            return {"progress": "Final evaluation"}
        return {"progress": f"Round {self._engine.round}/{self.rules.num_rounds}"}

    async def _report_waiting(self) -> None:
        while True:
            await asyncio.sleep(self._report_interval_s)
            text = self._engine.waiting_for(self._clock())
            if text:
                self._log.info("round.waiting", **self._title(), waiting_for=text)

    def _log_commit(self, report: RoundReport) -> None:
        title = self._title()
        for component in report.components:
            self._log.info(
                "component.averaged",
                **title,
                scope=component.scope,
                tensors=component.num_tensors,
                clients=len(component.contributions),
            )
        for task in report.tasks:
            self._log.info(
                "task.reported",
                **title,
                task=task.task,
                updates=task.num_updates,
                examples=task.num_examples,
                encoder_share=task.encoder_share,
                received=dict(task.received_metrics),
                trained=dict(task.trained_metrics),
            )
        self._log.info(
            "round.committed",
            **title,
            seconds=report.duration_s,
            bytes_in=report.bytes_received,
            bytes_out=report.bytes_sent,
            missing=list(report.missing_clients),
            refused=report.num_refused,
            heads_unchanged=list(report.unchanged_tasks),
        )


def _require_stream(transfer: Transfer, stream: object) -> None:
    if transfer.stream is not stream:
        raise UnavailableError("the client has opened another upload")
