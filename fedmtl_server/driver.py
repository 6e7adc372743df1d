"""Drives one run: passes time and events to the round engine, and carries out the engine's decisions.

Everything here runs on one event loop, except tensor arithmetic and file I/O, which run in threads. This module does
not use gRPC.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from functools import partial

from fedmtl_core.errors import StaleRoundError, UnavailableError
from fedmtl_core.runtime.clock import now_ms
from fedmtl_core.wire.updates import Update
from fedmtl_server.aggregation.values import Aggregate
from fedmtl_server.audience import Audience
from fedmtl_server.commits import EndRound
from fedmtl_server.events import EventKind
from fedmtl_server.open_round import OpenRound
from fedmtl_server.rounds.engine import RoundEngine
from fedmtl_server.rounds.report import RoundReport, round_record
from fedmtl_server.rounds.stopping import should_stop
from fedmtl_server.rounds.transitions import Phase, Step
from fedmtl_server.run_log import RunLog, title
from fedmtl_server.run_spec import RunParts, RunSpec
from fedmtl_server.storage.bookkeeping import round_report, update_records
from fedmtl_server.storage.results import Measurements
from fedmtl_server.storage.resume import LeftOff
from fedmtl_server.transfer.incoming import Transfer
from fedmtl_server.transfer.staging import StagedUpdate


class Driver:
    """Drives the rounds of one run.

    Args:
        spec: the specification of the run.
        parts: the objects that carry out the run.
    """

    def __init__(self, spec: RunSpec, parts: RunParts):
        self.rules = rules = spec.rules
        self.engine = RoundEngine(rules, parts.clock())
        self.last_report: RoundReport | None = None
        """The report of the previous round; None before the first round has ended."""
        self.measured = Measurements(spec.specs, rules.auxiliary)
        self.log = RunLog()
        self._commits, self._store, self._staging = parts.commits, parts.store, parts.staging
        self._listeners, self._clock = parts.listeners, parts.clock
        self._early_stopping, self._may_stop_after = spec.early_stopping, spec.may_stop_after
        self._report_interval_s = spec.report_interval_s
        self._wake = asyncio.Event()
        self.audience = Audience(self.engine, parts.clock, self._wake.set)
        self.open_round = OpenRound(self.engine, parts, rules.rounds.transfer_timeout_s, self._wake.set)
        """The round in progress, which accepts updates."""
        self._updates = self.open_round.updates
        parts.commits.on_written = self._wake.set  # `_step` checks whether the write succeeded

    # The run.

    async def run(self) -> None:
        """Drive the run's rounds until the run is finished.

        Raises:
            StoreError: a commit can't be written. The model is then still the model of the last commit; with a store
                that writes behind, it may be newer.
        """
        reporter = asyncio.create_task(self._report_waiting())
        try:
            while self.engine.phase is not Phase.FINISHED:
                await self._step()
            await self._commits.until_written()
        finally:
            reporter.cancel()
            if self.engine.phase is not Phase.FINISHED:  # interrupted or failed: no update can count from now on
                self.open_round.stopped = UnavailableError("the server is stopping")
            self.open_round.is_open.set()  # wakes the uploads that wait for the round to open
        self.log.finished(self.rules.num_rounds)
        self.audience.publish(EventKind.FINISHED)

    async def drain(self) -> None:
        """Wait until the clients that reported in the last round were notified of the end of the run."""
        while not self.audience.is_notified:
            self._wake.clear()
            timeout_s = self.audience.patience()
            if timeout_s is not None and timeout_s <= 0:
                return
            await self._until_woken(timeout_s)

    async def stop(self, reason: str, patience_s: float = 0.0) -> None:
        """Wait up to `patience_s` for the watchers to leave, then end their streams."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while len(self.audience):
                    self._wake.clear()
                    await self._wake.wait()
        if error := await self._commits.settle():
            self.log.commit_failed(error)
        self.open_round.stopped = stopped = UnavailableError(reason)
        self.audience.end(stopped)
        self._staging.refuse_waiting(stopped)
        self._staging.close()

    def resume(self, left_off: LeftOff, updates: Sequence[tuple[Update, StagedUpdate]]) -> None:
        """Resume the run from the state that an earlier server left. This must be called before anything else.

        Args:
            left_off: the state of the run; the model and the state of the aggregation stages are restored already.
            updates: the acknowledged updates of the round that was open, in any order.
        """
        for report in left_off.reports:
            self._learn(report)
            self.last_report = report
        is_over = self.last_report is not None and self.last_report.purpose == "evaluate"
        round_ = self.last_report.round if self.last_report and is_over else left_off.round  # the evaluation was last
        self.engine = self.audience.engine = self.open_round.engine = RoundEngine(
            self.rules, self._clock(), round_, left_off.counted
        )
        self.engine.note_losses(self.measured.losses)
        self._commits.resume(round_)
        self._stop_training_if_due()
        if is_over:
            self.engine.finish()
            until = self._clock() + self.rules.rounds.quorum_timeout_s
            self.audience.expect(dict.fromkeys(left_off.last_clients, until))
        elif left_off.cohort is not None:
            self.open_round.stats.opened_at_unix_ms = left_off.opened_at_unix_ms
            updates = sorted(updates, key=lambda update: update[0].client_id)
            self.engine.reopen(left_off.cohort, [update for update, _ in updates], self._clock())
            self._commits.offer(self.engine.purpose)
            self._begin_round()
            for update, staged in updates:
                self._updates.take(Transfer(update, staged, stream=None))
        self.log.resumed(self.engine.view, [update for update, _ in updates])

    # The steps of a round.

    async def _step(self) -> None:
        self._wake.clear()
        self._commits.require_written()
        step = self.engine.advance(self._clock())
        if step is Step.OPENED:
            await self._open()
        elif step is Step.EXTENDED:
            self.log.extended(self.engine.view)
            self.audience.publish(EventKind.OPENED)
        elif step is Step.NEXT_EXCHANGE:
            self.audience.publish(EventKind.OPENED)
        elif step is Step.CLOSED:
            await self._close()
        elif step is Step.FAILED:
            self.log.failed(self.engine.view)
            await self._close(failed=True)
        elif step is Step.ABANDONED:
            self.log.abandoned(self.engine.view)
            self._end_round(self.engine.round)
            self.audience.round_ended()
        elif self._updates.has_arrived:
            await self._updates.accumulate_arrived()
        else:
            self.audience.announce_waiting()
            await self._until_woken(self.engine.next_wakeup(self._clock()))

    async def _until_woken(self, timeout_s: float | None) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._wake.wait()

    async def _open(self) -> None:
        self.audience.opening()
        cohort = {member.client_id: member.task for member in self.engine.cohort.values()}
        opened_at_unix_ms = self.open_round.stats.opened_at_unix_ms = now_ms()
        self.log.clients_missing(self.engine.view)
        await asyncio.to_thread(
            self._store.open_round, self.engine.round, self.engine.purpose, opened_at_unix_ms, cohort
        )
        await asyncio.to_thread(self._commits.offer, self.engine.purpose)
        self._begin_round()

    def _begin_round(self) -> None:
        """Accept updates for the round that the engine has opened."""
        self._updates.begin(self.engine.view)
        self.log.opened(self.engine.view)
        self.open_round.is_open.set()
        self.audience.publish(EventKind.OPENED)

    def _end_round(self, round_: int) -> None:
        """Stop accepting updates and drop uploads in progress, which asynchronous rounds keep for the next round."""
        self.open_round.is_open.clear()
        self._commits.withdraw()
        if not self.engine.view.is_asynchronous:
            self.open_round.transfers.end(StaleRoundError(f"round {round_} has closed"))

    async def _close(self, *, failed: bool = False) -> None:
        round_ = self.engine.round
        self._end_round(round_)
        self.audience.publish(EventKind.CLOSING)
        for listener in self._listeners:
            listener.round_closing()
        began = self._clock()
        aggregate = Aggregate() if failed else await self._aggregate()
        report = self._report(aggregate, aggregation_s=self._clock() - began, failed=failed)
        self._learn(report)
        await self._commits.commit(aggregate, report, self._end_in_history(report), self.measured.best_rounds())
        previous = self.last_report
        self._remember(report)
        for listener in self._listeners:
            listener.round_ended(report)
        if not failed:
            self.log.committed(self.engine.view, report, previous)
        self.audience.publish(EventKind.FAILED if failed else EventKind.COMMITTED, report)
        self._expect_reported()
        self._updates.forget()
        self.engine.committed(self._clock())
        self._stop_training_if_due()
        if not self.engine.view.is_asynchronous:
            self._end_round(round_)  # after the last round of training, drops uploads for another one
        self.audience.round_ended()

    async def _aggregate(self) -> Aggregate:
        """Return the result of a round that has closed with its quorum."""
        view = self.engine.view
        work = self._updates.aggregate if view.purpose == "train" else self._updates.conclude
        return await work(title(view))

    def _expect_reported(self) -> None:
        """Record which clients to notify if the run is over, and how long to wait for absent clients."""
        now = self._clock()
        self.audience.expect(
            {
                member.client_id: now if member.expected_until is None else member.expected_until
                for member in self.engine.cohort.values()
                if member.reported
            }
        )

    def _report(self, aggregate: Aggregate, aggregation_s: float, *, failed: bool) -> RoundReport:
        stats = self.open_round.take_stats()
        model, pipeline = self._commits.model, self._commits.pipeline
        return round_report(
            stats,
            self.engine.view,
            aggregate,
            {task: model.scopes_for(task) for task in model.tasks},
            pipeline.factors(self.engine.round),
            stages=pipeline.metadata(),
            model_norms=self._commits.model_norms,
            duration_s=self._clock() - self.engine.view.opened_at,
            aggregation_s=aggregation_s,
            failed=failed,
        )

    def _end_in_history(self, report: RoundReport) -> EndRound:
        cohort = {member.client_id: member.task for member in self.engine.cohort.values()}
        return partial(self._store.end_round, report, cohort, update_records(report, self._updates.reported))

    def _learn(self, report: RoundReport) -> None:
        self.measured.add(report)
        self.engine.note_losses(self.measured.losses)

    def _remember(self, report: RoundReport) -> None:
        self.last_report = report
        self._commits.pipeline.record(round_record(report))

    def _stop_training_if_due(self) -> None:
        if self.engine.purpose != "train":
            return
        if should_stop(self._early_stopping, self.measured.that_may_stop(), self._may_stop_after):
            self.engine.stop_training()
            self.log.training_stopped(self._early_stopping.patience)

    async def _report_waiting(self) -> None:
        while True:
            await asyncio.sleep(self._report_interval_s)
            self.log.waiting(self.engine.view, self._clock())
            self.audience.announce_waiting(again=True)  # the missing clients may have changed since the last event
