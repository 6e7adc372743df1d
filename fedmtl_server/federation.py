"""The interface of one run for the servicer, the monitoring and the server process. It does not use gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace

from fedmtl_core.errors import StaleRoundError, UnknownTaskError, WrongRunError
from fedmtl_core.identifiers import quoted
from fedmtl_core.tasks.plan import Purpose, TrainingPlan
from fedmtl_core.wire.formats import Encoding
from fedmtl_core.wire.updates import Update
from fedmtl_server.driver import Driver
from fedmtl_server.events import RoundEvent
from fedmtl_server.model import MTLServerModel
from fedmtl_server.rounds.report import RefusedUpdate, RoundReport
from fedmtl_server.run_spec import RunParts, RunSpec
from fedmtl_server.status import Status
from fedmtl_server.storage.bookkeeping import RoundStats
from fedmtl_server.storage.results import TaskResult
from fedmtl_server.storage.resume import LeftOff
from fedmtl_server.transfer.intake import Intake, Receipt, UploadStream
from fedmtl_server.transfer.offered import PublishedVariant
from fedmtl_server.transfer.slices import PublishedModel
from fedmtl_server.transfer.staging import StagedUpdate
from fedmtl_server.transfer.update_layouts import UpdateLayouts


class Federation:
    """One run that trains one model.

    Args:
        spec: the specification of the run.
        parts: the objects that carry out the run.
    """

    def __init__(self, spec: RunSpec, parts: RunParts):
        self.run_id = spec.run_id
        self.rules = spec.rules
        self._plan = spec.plan
        self.staging = parts.staging
        self._topk_density = spec.topk_density
        self._commits = parts.commits
        self._listeners = parts.listeners
        self._clock = parts.clock
        self._started_at = parts.clock()
        self._driver = Driver(spec, parts)
        self._round = self._driver.open_round
        self._intake = Intake(
            self._round,
            UpdateLayouts(parts.commits.model, parts.commits.ranks),
            parts.staging,
            self._round.transfers,
            self._round.examination,
            parts.store,
            spec.rules.max_examples,
        )

    # The run.

    async def run(self) -> None:
        """Drive the run's rounds until the run is over; see `Driver.run`."""
        await self._driver.run()

    def resume(self, left_off: LeftOff, updates: Sequence[tuple[Update, StagedUpdate]]) -> None:
        """Resume the run from the state that an earlier server left; see `Driver.resume`."""
        self._driver.resume(left_off, updates)

    async def drain(self) -> None:
        """Wait until the clients that reported in the last round were notified of the end of the run."""
        await self._driver.drain()

    async def stop(self, reason: str, patience_s: float = 0.0) -> None:
        """Wait up to `patience_s` for the watchers to leave, then end their streams."""
        await self._driver.stop(reason, patience_s)

    # The state of the run.

    @property
    def model(self) -> MTLServerModel:
        return self._commits.model

    @property
    def published(self) -> PublishedModel:
        """The model that clients download."""
        return self._commits.published

    @property
    def purpose(self) -> Purpose:
        """The purpose of the round in progress, or of the next round if none is open."""
        return self._driver.engine.purpose

    @property
    def stats(self) -> RoundStats:
        """The statistics of the round in progress."""
        return self._round.stats

    @property
    def last_report(self) -> RoundReport | None:
        """The report of the previous round; None before the first round has ended."""
        return self._driver.last_report

    def status(self) -> Status:
        view, now = self._driver.engine.view, self._clock()
        return Status.of(
            self.run_id,
            view,
            now,
            self.model.summary(),
            last_metrics=self._driver.measured.last,
            last_report=self.last_report,
            warnings=self.stats.warnings(view.round),
            uptime_s=now - self._started_at,
        )

    def results(self) -> dict[str, TaskResult]:
        """Every task's main metric by round."""
        return self._driver.measured.results()

    # Requests.

    def require_run(self, run_id: str) -> None:
        """Check that a request names this run; an empty id matches any run.

        Raises:
            WrongRunError: the request names another run.
        """
        if run_id not in ("", self.run_id):
            raise WrongRunError(
                f"run_id: expected this server's run {self.run_id!r}, got {quoted(run_id)}",
                expected=self.run_id,
                got=run_id,
            )

    def require_task(self, task: str) -> None:
        """Check that a task belongs to the run.

        Raises:
            UnknownTaskError: the run has no task of this name.
        """
        if task not in self.model.tasks:
            raise UnknownTaskError(
                f"task: expected one of {', '.join(self.model.tasks)}, got {quoted(task)}", task=task
            )

    def require_round(self, round_: int) -> None:
        """Check that a slice is requested for the current round; 0 matches any round.

        Raises:
            StaleRoundError: the slice is requested for another round.
        """
        if round_ not in (0, self.published.round):
            raise StaleRoundError(
                f"the slice was requested for round {round_}, but the run is at round {self.published.round}",
                round=self.published.round,
                got=round_,
            )

    def scopes_beside(self, task: str, published: PublishedModel) -> Sequence[str]:
        """Return the scopes sent in addition to the model's in a task's slice; none for a slice of all tasks."""
        return published.scopes_beside(self.model.scopes_for(task) if task else (), self.purpose)

    def plan(self, client_id: str, task: str, round_: int) -> TrainingPlan:
        """Return the training plan of a client of a task in a round."""
        plan, adapters = self._plan(task, round_), self._commits.ranks.settings_of(client_id)
        return plan if adapters is None else replace(plan, adapters=adapters)

    async def prepare(
        self, published: PublishedModel, client_id: str, scopes: Sequence[str], encoding: Encoding
    ) -> PublishedModel:
        """Return a published model as a client gets it, with the rank of the client's own adapters.

        The components of the given scopes are encoded, once for all clients with the encoding and the rank.
        """
        ranks = self._commits.ranks
        rank = ranks.of(client_id)
        if rank is not None:
            published = await asyncio.to_thread(published.cut_to, rank, ranks)
        for scope in scopes:
            component = published.components[scope]
            if not component.is_ready(encoding):
                await asyncio.to_thread(component.prepare, encoding, self._topk_density)
        return published

    async def variants_for(
        self, task: str, published: PublishedModel, encoding: Encoding
    ) -> Mapping[str, PublishedVariant]:
        """Return the variants of a task's slice that the round in progress offers, ready for an encoding.

        Args:
            task: the task.
            published: the model, whose components are ready for the encoding.
            encoding: the encoding.
        """
        variants = self._commits.offered.for_task(task, published)
        for variant in variants.values():
            if not variant.is_ready(encoding):
                await asyncio.to_thread(variant.prepare, encoding)
        return variants

    def watch(self, client_id: str, task: str, tasks: Sequence[str] = ()) -> AsyncGenerator[RoundEvent, None]:
        """Yield the run's events from now on. A client counts as connected while it watches.

        Args:
            client_id: the id of the watching client; empty for an observer.
            task: the client's only task, or its preferred task of several; empty to let the server choose.
            tasks: all tasks that the client has data for, if there are several.

        Raises:
            ClientReplacedError: another watcher has the same client id now.
            LimitExceededError: the watcher does not read its events.
            UnavailableError: the server is stopping.
        """
        self._round.require_serving()
        return self._driver.audience.watch(client_id, task, tasks)

    async def receive(self, stream: UploadStream) -> Receipt:
        """Receive and count an update; see `Intake.receive`."""
        header = await stream.header()
        self.require_run(header.run_id)
        self.require_task(header.task)
        return await self._intake.receive(stream, header)

    def upload_offsets(self, client_id: str, update_id: str) -> Mapping[str, int]:
        """Return the received bytes of a broken upload by scope. From now on the upload belongs to the caller."""
        return self._round.transfers.offsets(client_id, update_id)

    # Records of requests.

    def note_sent(self, num_bytes: int) -> None:
        """Record the number of slice bytes sent."""
        self.stats.bytes_sent += num_bytes

    def note_refusal(self, refusal: RefusedUpdate) -> None:
        """Record a refused update for the round's report."""
        self.stats.note_refusal(refusal)
        for listener in self._listeners:
            listener.update_refused(refusal)

    def note_damaged_model(self, client_id: str, base_round: int, reason: str) -> None:
        """Record that a client of the round's cohort can't compute with the model that the round began with."""
        engine = self._driver.engine
        if client_id not in engine.cohort or base_round != engine.round:
            return
        if client_id not in self.stats.damaged:
            self._driver.log.damaged_model(engine.view, client_id, reason)
        self.stats.damaged[client_id] = reason
