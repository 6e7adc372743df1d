"""The updates of the round in progress, from the moment they count until the model has moved."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from fedmtl_core.wire.layout import Component
from fedmtl_core.wire.updates import Update
from fedmtl_server.aggregation.aggregator import Aggregate, ClientUpdate, CohortOrder, MTLAggregator, RoundFold
from fedmtl_server.aggregation.norms import RecentNorms
from fedmtl_server.commits import Commits
from fedmtl_server.rounds.engine import AsyncRule, RoundEngine
from fedmtl_server.rounds.report import RoundReport, counted_norms
from fedmtl_server.transfer.incoming import Transfer
from fedmtl_server.transfer.staging import StagingArea


class RoundUpdates:
    """Has the updates of a round accumulated in the cohort's order, each as soon as its turn has come.

    Args:
        commits: the model, and what moves with it.
        aggregator: how updates are averaged.
        staging: where their bytes are.
    """

    def __init__(self, commits: Commits, aggregator: MTLAggregator, staging: StagingArea):
        self._commits = commits
        self._aggregator = aggregator
        self._staging = staging
        self._weighting_states: Mapping[str, Mapping[str, Any]] = {}
        self._recent_norms = RecentNorms(aggregator.norms.window)
        self._shares = aggregator.start_shares()
        self._order = CohortOrder(())
        self._round = 1
        self._asynchronous: AsyncRule | None = None
        self._fold: RoundFold | None = None
        self._arrived: list[str] = []
        self._complete: dict[str, Transfer] = {}
        self._reported: list[Transfer] = []
        self.bounds = self._norm_bounds()
        """By scope, the largest norm of an update that is neither clipped nor refused, where there is one."""

    # The round.

    def begin(self, engine: RoundEngine) -> None:
        """Take updates for the round that the engine has opened."""
        model, cohort = self._commits.model, engine.cohort
        self._round, self._asynchronous = engine.round, engine.asynchronous
        self.bounds = self._norm_bounds()
        self._fold = self._aggregator.start_round(model.components, self.bounds, self._round, self._weighting_states)
        self._commits.begin_round()
        members = {member.client_id: model.scopes_for(member.task) for member in cohort.values()}
        self._shares = self._aggregator.start_shares(self._round, None if self._asynchronous else members)
        self._order = CohortOrder(list(cohort), self._shares.is_settled)

    def place_of(self, client_id: str) -> int:
        """How many updates are accumulated before a client's; in an asynchronous round it may join here."""
        self._order.append(client_id)
        return self._order.place(client_id)

    def take(self, transfer: Transfer) -> None:
        """Have an update that counts accumulated when its turn comes."""
        update = transfer.update
        self._reported.append(transfer)
        if transfer.staged.parts:
            scopes = [part.scope for part in transfer.staged.parts]
            self._shares.add(update.client_id, update.task, update.num_examples, scopes)
            self._order.append(update.client_id)
            self._complete[update.client_id] = transfer
            self._arrived.append(update.client_id)

    @property
    def has_arrived(self) -> bool:
        """Whether there are updates that `accumulate_arrived` hasn't looked at."""
        return bool(self._arrived)

    @property
    def reported(self) -> list[Update]:
        """The updates that count, in the order they came."""
        return [transfer.update for transfer in self._reported]

    async def accumulate_arrived(self) -> None:
        """Accumulate the updates whose turn has come."""
        arrived, self._arrived = self._arrived, []
        for client_id in arrived:
            await self._accumulate(self._order.arrive(client_id))

    async def aggregate(self, title: Mapping[str, str]) -> Aggregate:
        """Accumulate what is left, and say what the model becomes.

        Args:
            title: names the round in the log.
        """
        assert self._fold is not None
        await self.accumulate_arrived()
        self._shares.close()
        await self._accumulate(self._order.close())
        aggregate = await asyncio.to_thread(self._commits.finish, self._fold, self._round, title)
        for buffer in self._fold.spare:
            self._staging.take_back(buffer)
        return aggregate

    def forget(self) -> None:
        """Give up the room of the round's updates: what became of them is in the history."""
        for transfer in self._reported:
            self._staging.release(transfer.staged)
            self._staging.forget(transfer.staged)
        self._reported, self._arrived, self._complete = [], [], {}

    # From round to round.

    def remember(self, report: RoundReport) -> None:
        """Keep of a round that has ended what the rounds after it need."""
        self._weighting_states = report.weighting_states
        if report.moved:  # components aren't what they were
            self._recent_norms = RecentNorms(self._aggregator.norms.window)
        else:
            self._recent_norms.add(counted_norms(report))

    def renew_bounds(self) -> None:
        """Take the bounds from what was remembered, before a round is begun."""
        self.bounds = self._norm_bounds()

    def state_after(self, aggregate: Aggregate) -> dict[str, Any]:
        """What a round's report keeps for the rounds after it."""
        return self._commits.report_facts({**self._weighting_states, **aggregate.weighting_states})

    def factors(self, round_: int) -> Mapping[str, float]:
        """By auxiliary task, what an example of it counts for in the encoder in a round."""
        return self._aggregator.factors(round_)

    async def _accumulate(self, client_ids: Sequence[str]) -> None:
        assert self._fold is not None
        for client_id in client_ids:
            transfer = self._complete.pop(client_id)
            components = await self._staging.load(transfer.staged)
            update = self._screened(transfer, components)
            kept = await asyncio.to_thread(self._commits.fold, self._fold, update, self._round)
            self._staging.release(transfer.staged, components, kept)

    def _screened(self, transfer: Transfer, components: Mapping[str, Component]) -> ClientUpdate:
        update, rule = transfer.update, self._asynchronous
        staleness = self._round - update.base_round
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

    def _norm_bounds(self) -> Mapping[str, float]:
        return self._aggregator.norms.bounds(self._commits.model.components, self._recent_norms)
