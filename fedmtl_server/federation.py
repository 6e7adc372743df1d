"""One run: drives the round engine with time and events, and carries out what it decides.

Everything here happens on one event loop; tensor arithmetic and file I/O run in threads. It knows no gRPC.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from functools import partial
from typing import Any

from fedmtl_core.errors import (
    RequestError,
    StaleRoundError,
    StoreError,
    UnavailableError,
    UnknownTaskError,
    WrongRunError,
)
from fedmtl_core.identifiers import name_some, quoted
from fedmtl_core.logs import get_logger
from fedmtl_core.model.sharing import Partition
from fedmtl_core.tasks.plan import Purpose, TrainingPlan, round_title
from fedmtl_core.tasks.spec import TaskSpec
from fedmtl_core.wire.encoded import EncodedLayout
from fedmtl_core.wire.formats import DEFAULT_DENSITY, Encoding
from fedmtl_core.wire.layout import Component
from fedmtl_core.wire.updates import Update
from fedmtl_server.aggregation.aggregator import Aggregate, ClientUpdate, CohortOrder, MTLAggregator, RoundFold
from fedmtl_server.aggregation.norms import RecentNorms, are_ordinary, require_within, update_norms
from fedmtl_server.commits import Commits, EndRound
from fedmtl_server.events import EventKind, Listener, RoundEvent, Watcher, Watchers
from fedmtl_server.model import MTLServerModel
from fedmtl_server.rounds.engine import Phase, RoundEngine, RoundRules, Step
from fedmtl_server.rounds.report import RefusedUpdate, RoundReport, counted_norms
from fedmtl_server.rounds.stopping import EarlyStopping
from fedmtl_server.status import Status, client_statuses, task_statuses
from fedmtl_server.storage.bookkeeping import RoundFacts, log_report, round_report, update_records
from fedmtl_server.storage.results import Measurements, TaskResult
from fedmtl_server.storage.store import LeftOff, RunStore
from fedmtl_server.transfer.incoming import Transfer, Transfers
from fedmtl_server.transfer.slices import PublishedModel
from fedmtl_server.transfer.staging import StagedUpdate, StagingArea


class Federation:
    """One run over one model.

    Args:
        run_id: names the run for good.
        commits: its model, and what moves with it.
        specs: its tasks.
        aggregator: how updates are averaged.
        rules: when rounds open and close.
        plans: what clients are asked to do, by task.
        store: where commits go.
        staging: where updates lie until they are averaged.
        early_stopping: when training ends before its last round; None for never.
        topk_density: share of a component's elements in a `topk` slice.
        report_interval_s: how often the log says what the run waits for.
        listeners: told of what happens.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        *,
        run_id: str,
        commits: Commits,
        specs: Sequence[TaskSpec],
        aggregator: MTLAggregator,
        rules: RoundRules,
        plans: Mapping[str, TrainingPlan],
        store: RunStore,
        staging: StagingArea,
        early_stopping: EarlyStopping | None = None,
        topk_density: float = DEFAULT_DENSITY,
        report_interval_s: float = 10.0,
        listeners: Sequence[Listener] = (),
        clock: Callable[[], float] = time.monotonic,
    ):
        self.run_id = run_id
        self.rules = rules
        self.plans = plans
        self.last_report: RoundReport | None = None
        """Of the round before."""
        self._commits = commits
        self._measured = Measurements(specs, rules.auxiliary)
        self._aggregator = aggregator
        self._early_stopping = early_stopping
        self._store = store
        self._staging = staging
        self._topk_density = topk_density
        self._listeners = listeners
        self._clock = clock
        self._report_interval_s = report_interval_s
        self._started_at = clock()
        self._engine = RoundEngine(rules, self._started_at)
        self._fold: RoundFold | None = None
        self._weighting_states: Mapping[str, Mapping[str, Any]] = {}
        self._recent_norms = RecentNorms(aggregator.norms.window)
        self._bounds = self._norm_bounds()
        self._shares = aggregator.start_shares()
        self._order = CohortOrder(())
        self._transfers = Transfers(staging, rules.transfer_timeout_s / 2, self._keep_alive)
        self._arrived: list[str] = []
        self._complete: dict[str, Transfer] = {}
        self._reported: list[Transfer] = []
        self._facts = RoundFacts()
        self._watchers = Watchers(on_leave=self._left)
        self._waiting_announced = True
        self._announced = ""
        """What everybody was last told that the run waits for."""
        self._wake = asyncio.Event()
        commits.on_written = self._wake.set  # `_step` looks what came of it
        self._opened = asyncio.Event()
        self._stopped: UnavailableError | None = None
        self._untold: dict[str, float] = {}
        self._log = get_logger()

    # What the servicer asks.

    @property
    def published(self) -> PublishedModel:
        """The model as it goes out."""
        return self._commits.published

    @property
    def staged_bytes(self) -> int:
        """Bytes of updates in memory that are not averaged yet."""
        return self._staging.used_bytes

    @property
    def facts(self) -> RoundFacts:
        """What was gathered of the round in progress."""
        return self._facts

    @property
    def staging(self) -> StagingArea:
        return self._staging

    @property
    def purpose(self) -> Purpose:
        """What the round in progress, or the next, asks for."""
        return self._engine.purpose

    @property
    def model(self) -> MTLServerModel:
        return self._commits.model

    def control_scopes_for(self, task: str) -> Sequence[str]:
        """The scopes of the control variates in a task's slice; none in one of all tasks, or that isn't trained on."""
        return self._commits.control_scopes_for(task) if self.purpose == "train" else ()

    def require_run(self, run_id: str) -> None:
        """Check that a request means this run; an empty id means whichever it is.

        Raises:
            WrongRunError: it means another.
        """
        if run_id not in ("", self.run_id):
            raise WrongRunError(
                f"this server's run is {self.run_id!r}, the request is for {quoted(run_id)}",
                expected=self.run_id,
                got=run_id,
            )

    def require_task(self, task: str) -> None:
        """Check that a task is one of the run's.

        Raises:
            UnknownTaskError: it isn't.
        """
        if task not in self.model.tasks:
            raise UnknownTaskError(
                f"task: expected one of {', '.join(self.model.tasks)}, got {quoted(task)}", task=task
            )

    async def watch(self, client_id: str, task: str, tasks: Sequence[str] = ()) -> AsyncGenerator[RoundEvent, None]:
        """The run's events from now on; with a client id, this is the client's presence.

        Args:
            client_id: who watches; empty for an observer.
            task: its only task, or the one that it has chosen of several; empty if it leaves that to the server.
            tasks: if it has data for several, all of them.

        Raises:
            ClientReplacedError: another watcher took up the client id.
            LimitExceededError: the events aren't read.
            UnavailableError: the server is stopping.
        """
        watcher = Watcher(client_id, task, tuple(tasks))
        self._require_serving()
        self._join(watcher)
        try:
            async with contextlib.aclosing(watcher.events()) as events:
                async for event in events:
                    yield event
        finally:
            self._watchers.remove(watcher)

    def admit(self, update: Update) -> int | None:
        """Check an update before its bytes are taken.

        Returns:
            None if the bytes are wanted, or the round in which the update already counts.

        Raises:
            StaleRoundError, InvalidRequestError: see `RoundEngine.check` and `MTLAggregator.require`.
            UnavailableError: the server is stopping.
        """
        self._require_serving()
        counted_in = self._engine.counted_in(update)
        if counted_in is None:
            self._engine.check(update)
            self._aggregator.require(update)
        return counted_in

    async def stage(self, update: Update, parts: Sequence[EncodedLayout], stream: object) -> Transfer:
        """Room for an update that `admit` has let in, or what has arrived of it before; see `Transfers.begin`.

        Raises:
            StaleRoundError: it counts in an earlier round, though not as its client's last; `examine` says so too.
            UnavailableError: the history can't be read, or see `Transfers.begin`.
        """
        objection = asyncio.create_task(self._objection(update))  # looked for while the bytes come
        if update.client_id in self._transfers:  # what is there already isn't given up for one that is refused
            await _raise_if_any(objection)
        self._order.append(update.client_id)  # with asynchronous rounds it may be the next one's
        transfer = await self._transfers.begin(update, parts, stream, self._order.place(update.client_id))
        transfer.objection = objection
        return transfer

    async def _objection(self, update: Update) -> RequestError | None:
        """Why the history is against an update, if it is."""
        try:
            has_counted = await asyncio.to_thread(self._store.has_counted, update.client_id, update.update_id)
        except StoreError as error:
            self._log.error("history.unreadable", reason=str(error))
            return UnavailableError("the run's history can't be read just now; send the update again")
        if has_counted:  # though not as its client's last
            return StaleRoundError(f"update {update.update_id!r} already counts in an earlier round; train again")
        return None

    async def require_no_objection(self, transfer: Transfer) -> None:
        """Check what the history has of an update, once it has been read.

        Raises:
            StaleRoundError: it counts in an earlier round.
            UnavailableError: the history can't be read.
        """
        if transfer.objection is not None:
            await _raise_if_any(transfer.objection)

    def abandon(self, transfer: Transfer, stream: object, *, keep: bool) -> None:
        """Note that a stream ended before its update was complete; see `Transfers.abandon`."""
        self._transfers.abandon(transfer, stream, keep=keep)

    def upload_offsets(self, client_id: str, update_id: str) -> Mapping[str, int]:
        """By scope, how much has arrived of an upload that broke; it is the caller's to go on with from here."""
        return self._transfers.offsets(client_id, update_id)

    def received(self, transfer: Transfer, stream: object, num_bytes: int) -> None:
        """Note bytes of an upload in progress, and check that it may still count.

        Raises:
            StaleRoundError: it can't any more.
            UnavailableError: its client has opened another upload, or the server is stopping.
        """
        self._facts.bytes_received += num_bytes
        self.admit(transfer.update)
        transfer.require_stream(stream)
        self._keep_alive(transfer.update.client_id)

    async def examine(self, transfer: Transfer, stream: object) -> None:
        """Check that an update is new, its numbers are numbers, and it moves the model no further than it may.

        Its norms tell the latter two in one pass where it came as float32.

        Raises:
            StaleRoundError: it counts in an earlier round.
            UnavailableError: the history can't be read.
            NonFiniteError, MalformedStreamError: they aren't; see `StagedUpdate.require_valid`.
            NormExceededError: it moves it too far.
            StaleRoundError, InvalidRequestError, UnavailableError: it can't count any more, however far it moves it.
        """
        await self.require_no_objection(transfer)
        staged, rule = transfer.staged, self._aggregator.norms
        bounds = self._bounds if rule.action == "refuse" else {}
        limits = rule.limits(self._commits.model_norms)
        if rule.measures and staged.is_float32:
            transfer.norms = await self._measure(transfer)
        if not transfer.norms or not are_ordinary(transfer.norms):
            await asyncio.to_thread(staged.require_valid)
        if not transfer.norms and (bounds or await self._may_exceed(transfer, limits)):
            transfer.norms = await self._measure(transfer)
        if (bounds or limits) and transfer.norms and self.admit(transfer.update) is None:
            transfer.require_stream(stream)
            require_within(transfer.norms, bounds)
            require_within(transfer.norms, limits, ": robustness.norms.model_factor times the model's own")

    async def _may_exceed(self, transfer: Transfer, limits: Mapping[str, float]) -> bool:
        """Whether an update that wasn't measured could be beyond a limit, as far as it can be told without decoding."""
        if not limits or not transfer.staged.parts:
            return False
        base = self._commits.model_norms if transfer.update.kind == "parameters" else {}
        largest = await asyncio.to_thread(transfer.staged.largest_norms)
        return any(not norm + base.get(scope, 0.0) <= limits.get(scope, math.inf) for scope, norm in largest.items())

    async def _measure(self, transfer: Transfer) -> Mapping[str, float]:
        base = self.model.components
        return await self._staging.look(
            transfer.staged, lambda components: update_norms(transfer.update.kind, components, base)
        )

    def _norm_bounds(self) -> Mapping[str, float]:
        return self._aggregator.norms.bounds(self.model.components, self._recent_norms)

    async def until_countable(self, update: Update) -> None:
        """Wait for the round to be taking updates: while it opens, or with asynchronous rounds while one is averaged.

        Raises:
            StaleRoundError, InvalidRequestError, UnavailableError: as `admit`.
        """
        while not self._opened.is_set():
            if self.admit(update) is not None:
                return
            await self._opened.wait()

    def count(self, transfer: Transfer, stream: object) -> int | None:
        """Count an update whose bytes, if it has any, are complete and checked.

        Returns:
            None if it counts now, or the round in which it already did.

        Raises:
            StaleRoundError, InvalidRequestError: the round closed while the bytes came.
            UnavailableError: its client has opened another upload, or the server is stopping.
        """
        counted_in = self.admit(transfer.update)
        if counted_in is not None:
            return counted_in
        transfer.require_stream(stream)
        self._engine.count(transfer.update)
        self._transfers.complete(transfer)
        self._take(transfer)
        self._wake.set()
        for listener in self._listeners:
            listener.update_counted(transfer.update)
        return None

    def round_of(self, update: Update) -> int:
        """The round in which an update counts."""
        return self._engine.counted_in(update) or update.base_round

    def _take(self, transfer: Transfer) -> None:
        """Have an update that counts folded when its turn comes."""
        client_id = transfer.update.client_id
        self._reported.append(transfer)
        if transfer.staged.parts:
            scopes = [part.scope for part in transfer.staged.parts]
            self._shares.add(client_id, transfer.update.task, transfer.update.num_examples, scopes)
            self._order.append(client_id)
            self._complete[client_id] = transfer
            self._arrived.append(client_id)

    def _keep_alive(self, client_id: str) -> None:
        self._engine.progress(client_id, self._clock())

    async def prepare(self, published: PublishedModel, scopes: Sequence[str], encoding: Encoding) -> None:
        """Make what clients of an encoding get, once for all of them."""
        for scope in scopes:
            component = published.components[scope]
            if not component.is_ready(encoding):
                await asyncio.to_thread(component.prepare, encoding, self._topk_density)

    def note_refusal(self, refusal: RefusedUpdate) -> None:
        """Note a refused update for the round's report."""
        self._facts.note_refusal(refusal)
        for listener in self._listeners:
            listener.update_refused(refusal)

    def note_damaged_model(self, client_id: str, base_round: int, reason: str) -> None:
        """Note that a client of the round's cohort can't compute with the model that the round began with."""
        if client_id not in self._engine.cohort or base_round != self._engine.round:
            return
        if client_id not in self._facts.damaged:
            self._log.error(
                "model.damaged",
                **self._title(),
                client_id=client_id,
                reason=reason,
                hint="take the run back: fedmtl-server runs rollback RUN --to-round N",
            )
        self._facts.damaged[client_id] = reason

    def note_sent(self, num_bytes: int) -> None:
        """Note bytes of a slice that were sent."""
        self._facts.bytes_sent += num_bytes

    def require_round(self, round_: int) -> None:
        """Check that a slice is wanted for the current round; 0 means whichever it is.

        Raises:
            StaleRoundError: it is wanted for another.
        """
        if round_ not in (0, self.published.round):
            raise StaleRoundError(
                f"the slice is wanted for round {round_}, but the run is at round {self.published.round}",
                round=self.published.round,
                got=round_,
            )

    def status(self) -> Status:
        """Where the run stands."""
        engine = self._engine
        return Status(
            run_id=self.run_id,
            phase=engine.phase,
            round=engine.round,
            num_rounds=self.rules.num_rounds,
            waiting_for=engine.waiting_for(self._clock()),
            tasks=task_statuses(self.model.tasks, engine, self._measured.last),
            clients=client_statuses(engine),
            last_report=self.last_report,
            model=self.model.summary(),
            uptime_s=self._clock() - self._started_at,
            warnings=[
                *self._facts.warnings(engine.round),
                *(self.last_report.warnings if self.last_report else ()),
            ],
        )

    def results(self) -> dict[str, TaskResult]:
        """Every task's main metric by round."""
        return self._measured.results()

    # The run itself.

    async def run(self) -> None:
        """Hold the run's rounds until it is finished.

        Raises:
            StoreError: a commit can't be written; the model is then still that of the last commit, or with a store
                that writes behind, ahead of it.
        """
        reporter = asyncio.create_task(self._report_waiting())
        try:
            while self._engine.phase is not Phase.FINISHED:
                await self._step()
            await self._commits.until_written()
        finally:
            reporter.cancel()
            if self._engine.phase is not Phase.FINISHED:  # interrupted, or failed: nothing can count any more
                self._stopped = UnavailableError("the server is stopping")
            self._opened.set()  # for those who wait to hear of it
        self._log.info("run.finished", rounds=self.rules.num_rounds)
        self._publish(EventKind.FINISHED)

    async def until_all_know(self) -> None:
        """Wait until the clients that reported in the last round have heard that the run is over."""
        while self._untold:
            self._wake.clear()
            timeout_s = None
            # Who is there is waited for until it leaves; who is away no longer than a round would wait for it.
            if not self._untold.keys() & self._engine.present.keys():
                timeout_s = max(self._untold.values()) - self._clock()
                if timeout_s <= 0:
                    return
            await self._until_woken(timeout_s)

    async def stop(self, reason: str, patience_s: float = 0.0) -> None:
        """End every watcher's stream, after waiting for them to leave by themselves."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while self._watchers:
                    self._wake.clear()
                    await self._wake.wait()
        if error := await self._commits.settle():
            self._log.error("commit.failed", reason=str(error))
        self._stopped = UnavailableError(reason)
        self._watchers.end(self._stopped)
        self._staging.refuse_waiting(self._stopped)
        self._staging.close()

    async def _step(self) -> None:
        self._wake.clear()
        self._commits.require_written()
        step = self._engine.advance(self._clock())
        if step is Step.OPENED:
            await self._open()
        elif step is Step.EXTENDED:
            self._log.warning("round.extended", **self._title(), missing=self._engine.missing_quorum())
            self._publish(EventKind.OPENED)
        elif step is Step.CLOSED:
            await self._close()
        elif step is Step.FAILED:
            self._log.error("round.failed", **self._title(), missing=self._engine.missing_quorum())
            await self._close(failed=True)
        elif step is Step.ABANDONED:
            self._log.warning("round.abandoned", **self._title(), reason="no update arrived")
            self._end_round(self._engine.round)
            self._waiting_announced = False
        elif self._arrived:
            await self._fold_arrived()
        else:
            if self._engine.phase is Phase.WAITING and not self._waiting_announced:
                self._publish(EventKind.WAITING)
                self._waiting_announced = True
            await self._until_woken(self._engine.next_wakeup(self._clock()))

    async def _until_woken(self, timeout_s: float | None) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._wake.wait()

    async def _open(self) -> None:
        cohort = {member.client_id: member.task for member in self._engine.cohort.values()}
        self._facts.opened_at_unix_ms = time.time_ns() // 1_000_000
        if self._engine.opened_without:
            missing = name_some(self._engine.opened_without)
            waited_s = self.rules.await_clients_s
            self._log.warning("round.opens_without", **self._title(), missing=missing, waited_s=waited_s)
        await asyncio.to_thread(
            self._store.open_round, self._engine.round, self._engine.purpose, self._facts.opened_at_unix_ms, cohort
        )
        self._begin_round()

    def _begin_round(self) -> None:
        """Take updates for the round that the engine has opened."""
        cohort = self._engine.cohort
        self._bounds = self._norm_bounds()
        self._fold = self._aggregator.start_round(
            self.model.components, self._bounds, self._engine.round, self._weighting_states
        )
        self._commits.begin_round()
        members = {member.client_id: self.model.scopes_for(member.task) for member in cohort.values()}
        may_come = None if self._engine.asynchronous else members
        self._shares = self._aggregator.start_shares(self._engine.round, may_come)
        self._order = CohortOrder(list(cohort), self._shares.is_settled)
        self._log.info(
            "round.opened",
            **self._title(),
            cohort_size=len(cohort),
            cohort=name_some([f"{member.client_id} ({member.task})" for member in cohort.values()]),
            deadline_s=self.rules.deadline_s,
        )
        self._opened.set()
        self._publish(EventKind.OPENED)

    def resume(self, left_off: LeftOff, updates: Sequence[tuple[Update, StagedUpdate]]) -> None:
        """Take up the run where a server before this one left it. Before anything else is done.

        Args:
            left_off: where that was; its model is installed already, and what has moved in it taken up.
            updates: what was acknowledged in the round that was open, in any order.
        """
        for report in left_off.reports:
            self._learn(report)
            self._remember(report)
        is_over = self.last_report is not None and self.last_report.purpose == "evaluate"
        round_ = self.last_report.round if self.last_report and is_over else left_off.round  # it was the last one
        self._engine = RoundEngine(self.rules, self._clock(), round_, left_off.counted)
        self._engine.losses = self._measured.losses
        self._commits.take_up(round_, left_off.state, self.last_report)
        self._bounds = self._norm_bounds()
        self._stop_training_if_due()
        if is_over:
            self._engine.phase = Phase.FINISHED
            self._untold = dict.fromkeys(left_off.last_clients, self._clock() + self.rules.quorum_timeout_s)
        elif left_off.cohort is not None:
            self._facts.opened_at_unix_ms = left_off.opened_at_unix_ms
            updates = sorted(updates, key=lambda update: update[0].client_id)
            self._engine.reopen(left_off.cohort, [update for update, _ in updates], self._clock())
            self._begin_round()
            for update, staged in updates:
                self._take(Transfer(update, staged, stream=None))
        self._log.info(
            "run.resumed",
            **self._title(),
            phase=self._engine.phase.value,
            num_acknowledged=len(updates),
            acknowledged=name_some([update.client_id for update, _ in updates]),
        )

    async def _fold_arrived(self) -> None:
        arrived, self._arrived = self._arrived, []
        for client_id in arrived:
            await self._fold_all(self._order.arrive(client_id))

    async def _fold_all(self, client_ids: Sequence[str]) -> None:
        assert self._fold is not None
        for client_id in client_ids:
            transfer = self._complete.pop(client_id)
            staged = transfer.staged
            components = await self._staging.load(staged)
            update = self._client_update(transfer, components)
            kept = await asyncio.to_thread(self._commits.fold, self._fold, update, self._engine.round)
            self._staging.release(staged, components, kept)

    def _client_update(self, transfer: Transfer, components: Mapping[str, Component]) -> ClientUpdate:
        update = transfer.update
        rule, staleness = self._engine.asynchronous, self._engine.staleness(update)
        return ClientUpdate(
            update.client_id,
            update.task,
            update.num_examples,
            components,
            update.kind,
            staleness,
            rule.discount(staleness) if rule else 1.0,
            transfer.norms,
            num_eval_examples=update.received.num_examples,
            received_metrics=update.received.metrics,
            trained_metrics=update.trained.metrics,
            extras=update.extras,
            claimed_examples=update.claimed_examples,
            counted_examples=self._shares.counted(update.client_id),
        )

    def _end_round(self, round_: int) -> None:
        """Take no more updates, and drop what is on its way. With asynchronous rounds the next one takes it."""
        self._opened.clear()
        if not self._engine.asynchronous:
            self._transfers.end(StaleRoundError(f"round {round_} has closed"))

    async def _close(self, *, failed: bool = False) -> None:
        round_ = self._engine.round
        self._end_round(round_)
        self._publish(EventKind.CLOSING)
        for listener in self._listeners:
            listener.round_closing()
        began = self._clock()
        aggregate = Aggregate() if failed else await self._aggregate()
        before = self._commits.decide_moves(round_) if aggregate.components else {}
        report = self._report(aggregate, aggregation_s=self._clock() - began, failed=failed, moved=before)
        self._learn(report)
        await self._commits.commit(
            aggregate.components, report, self._end_in_history(report), self._measured.best_rounds()
        )
        self._remember(report)
        for listener in self._listeners:
            listener.round_ended(report)
        if not failed:
            log_report(self._log, self._title(), report)
        self._publish(EventKind.FAILED if failed else EventKind.COMMITTED, report)
        self._note_untold()
        self._forget_reported()
        self._engine.committed(self._clock())
        self._stop_training_if_due()
        if not self._engine.asynchronous:
            self._end_round(round_)  # what was on its way to one more round of training
        self._waiting_announced = False

    def _learn(self, report: RoundReport) -> None:
        self._measured.add(report)
        self._engine.losses = self._measured.losses

    def _remember(self, report: RoundReport) -> None:
        self.last_report = report
        self._weighting_states = report.weighting_states
        if report.moved:  # components aren't what they were
            self._recent_norms = RecentNorms(self._aggregator.norms.window)
        else:
            self._recent_norms.add(counted_norms(report))

    def _note_untold(self) -> None:
        """Note who is to hear that the run is over, if it is, and until when, if it is away."""
        now = self._clock()
        self._untold = {
            member.client_id: now if member.expected_until is None else member.expected_until
            for member in self._engine.cohort.values()
            if member.reported
        }

    def _forget_reported(self) -> None:
        """Give up the room of the round's updates: what became of them is in the history."""
        for transfer in self._reported:
            self._staging.release(transfer.staged)
            self._staging.forget(transfer.staged)
        self._reported, self._arrived, self._complete = [], [], {}

    def _stop_training_if_due(self) -> None:
        if self._early_stopping is None or self._engine.purpose != "train":
            return
        if self._early_stopping.is_due(self._measured.that_may_stop()):
            self._engine.stop_training()
            self._log.warning("training.stopped", reason=f"no better for {self._early_stopping.patience} rounds")

    def _end_in_history(self, report: RoundReport) -> EndRound:
        cohort = {member.client_id: member.task for member in self._engine.cohort.values()}
        reported = [transfer.update for transfer in self._reported]
        return partial(self._store.end_round, report, cohort, update_records(report, reported))

    async def _aggregate(self) -> Aggregate:
        if self._engine.purpose == "evaluate":
            return Aggregate()
        assert self._fold is not None
        await self._fold_arrived()
        self._shares.close()
        await self._fold_all(self._order.close())
        aggregate = await asyncio.to_thread(self._commits.finish, self._fold, self._engine.round, self._title())
        for buffer in self._fold.spare:
            self._staging.take_back(buffer)
        return aggregate

    def _report(
        self, aggregate: Aggregate, aggregation_s: float, *, failed: bool, moved: Mapping[str, Partition]
    ) -> RoundReport:
        facts, self._facts = self._facts, RoundFacts()  # what comes from now on belongs to the next report
        return round_report(
            facts,
            self._engine,
            aggregate,
            {task: self.model.scopes_for(task) for task in self.model.tasks},
            self._aggregator.factors(self._engine.round),
            **self._commits.report_facts({**self._weighting_states, **aggregate.weighting_states}),
            moved=moved,
            model_norms=self._commits.model_norms,
            duration_s=self._clock() - self._engine.opened_at,
            aggregation_s=aggregation_s,
            failed=failed,
        )

    # Watchers.

    def _require_serving(self) -> None:
        if self._stopped:
            raise self._stopped

    def _join(self, watcher: Watcher) -> None:
        self._watchers.add(watcher)
        if watcher.client_id:
            self._engine.join(watcher.client_id, watcher.task, self._clock(), watcher.tasks)
            self._log.info("client.joined", client_id=watcher.client_id, task=watcher.names)
        if self._engine.phase is not Phase.OPEN or self._opened.is_set():  # else it is told with the others
            self._watchers.send(watcher, self._current_event(watcher))
        self._wake.set()

    def _left(self, watcher: Watcher) -> None:
        if watcher.client_id:
            self._engine.leave(watcher.client_id, self._clock())
            self._log.info("client.left", client_id=watcher.client_id, task=watcher.names)
        if self._engine.phase is Phase.FINISHED:
            self._untold.pop(watcher.client_id, None)
        self._wake.set()

    def _publish(self, kind: EventKind, report: RoundReport | None = None) -> None:
        self._announced = self._engine.awaits(self._clock()) if kind is EventKind.WAITING else ""
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
        if member is not None and member.task not in (watcher.tasks or (watcher.task,)):
            member = None  # it came back with other tasks: its turn is the next round
        return RoundEvent(
            kind=kind,
            round=engine.round,
            purpose=engine.purpose,
            cohort_size=len(engine.cohort),
            in_cohort=member is not None,
            task=member.task if member is not None else "",
            reported=member is not None and member.reported,
            oldest_base_round=engine.oldest_base_round,
            deadline_s=max(0.0, engine.deadline_for(watcher.client_id) - now) if kind is EventKind.OPENED else 0.0,
            waiting_for=engine.waiting_for(now) if kind is EventKind.WAITING else "",
            report=report,
        )

    # The log.

    def _title(self) -> dict[str, str]:
        return {"progress": round_title(self._engine.purpose, self._engine.round, self.rules.num_rounds)}

    async def _report_waiting(self) -> None:
        while True:
            await asyncio.sleep(self._report_interval_s)
            text = self._engine.waiting_for(self._clock())
            if text:
                self._log.info("round.waiting", **self._title(), waiting_for=text)
            if self._engine.phase is Phase.WAITING and self._engine.awaits(self._clock()) != self._announced:
                self._publish(EventKind.WAITING)  # clients that came early were told of others that are there now


async def _raise_if_any(objection: asyncio.Task[RequestError | None]) -> None:
    error = await objection
    if error is not None:
        raise error
