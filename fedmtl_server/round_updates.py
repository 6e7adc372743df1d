"""The counted updates of the round in progress, until the next model is computed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

from fedmtl_core.wire.layout import Component
from fedmtl_core.wire.updates import Update
from fedmtl_server.aggregation.norms import update_norms
from fedmtl_server.aggregation.order import CohortOrder
from fedmtl_server.aggregation.pipeline import RoundAggregation
from fedmtl_server.aggregation.stages.norms import NormScreening
from fedmtl_server.aggregation.values import Aggregate, ScreenedUpdate
from fedmtl_server.aggregation.variants import Results, results_of
from fedmtl_server.commits import Commits
from fedmtl_server.model import changing
from fedmtl_server.rounds.view import RoundView
from fedmtl_server.transfer.incoming import Transfer
from fedmtl_server.transfer.staged_blocks import StagedBlocks
from fedmtl_server.transfer.staging import StagedUpdate, StagingArea


class RoundUpdates:
    """Accumulates the updates of a round in the order of the cohort, each as early as that order permits.

    Args:
        commits: the model, and the pipeline that computes the next one.
        staging: the storage of the updates' bytes.
    """

    def __init__(self, commits: Commits, staging: StagingArea):
        self._commits = commits
        self._pipeline = commits.pipeline
        self._staging = staging
        self._order = CohortOrder(())
        self._view: RoundView | None = None
        self._aggregation: RoundAggregation | None = None
        self._arrived: list[str] = []
        self._complete: dict[str, Transfer] = {}
        self._retained: dict[str, StagedUpdate] = {}
        self._reported: list[Transfer] = []
        self._offered: Mapping[str, Sequence[str]] = {}

    def begin(self, view: RoundView) -> None:
        """Start accepting updates for a round that has opened.

        Args:
            view: the state of the round at its opening.
        """
        model, self._view, self._offered = self._commits.model, view, self._commits.offered.names
        contributors = {member.client_id: model.scopes_for(member.task, view.round) for member in view.cohort.values()}
        self._aggregation = self._pipeline.begin(
            changing(model.components, model.base), view.round, None if view.is_asynchronous else contributors
        )
        self._order = CohortOrder(list(view.cohort), self._pipeline.is_settled)

    def place_of(self, client_id: str) -> int:
        """Return how many updates are accumulated before the client's update.

        In an asynchronous round, this adds a new client to the order.
        """
        self._order.append(client_id)
        return self._order.place(client_id)

    def take(self, transfer: Transfer) -> None:
        """Accept a counted update, to be accumulated in its turn."""
        client_id = transfer.update.client_id
        self._reported.append(transfer)
        if transfer.staged.parts:
            self._pipeline.count(transfer.update, transfer.update.scopes)
            self._order.append(client_id)
            self._complete[client_id] = transfer
            self._arrived.append(client_id)

    @property
    def has_arrived(self) -> bool:
        """Whether updates have arrived since the last call of `accumulate_arrived`."""
        return bool(self._arrived)

    @property
    def reported(self) -> list[Update]:
        """The counted updates in order of arrival."""
        return [transfer.update for transfer in self._reported]

    async def accumulate_arrived(self) -> None:
        """Accumulate the arrived updates whose turn has come."""
        arrived, self._arrived = self._arrived, []
        for client_id in arrived:
            await self._accumulate(self._order.arrive(client_id))

    async def aggregate(self, title: Mapping[str, str]) -> Aggregate:
        """Accumulate the remaining updates, and compute the next model.

        Args:
            title: the fields that name the round in the log.

        Raises:
            AggregationError, StoreError: see `RoundAggregation.close`.
        """
        assert self._aggregation is not None
        await self.accumulate_arrived()
        self._pipeline.complete()
        await self._accumulate(self._order.close())
        blocks, variants = await self._blocks(), self._variant_results()
        aggregate = await asyncio.to_thread(self._commits.finish, self._aggregation, title, variants, blocks)
        for buffer in aggregate.spare:
            self._staging.take_back(buffer)
        return aggregate

    async def conclude(self, title: Mapping[str, str]) -> Aggregate:
        """Return the change of the model after the evaluation round, which has the results of its variants.

        Args:
            title: the fields that name the round in the log.

        Raises:
            AggregationError: see `Pipeline.conclude`.
        """
        assert self._view is not None
        return await asyncio.to_thread(self._commits.conclude, self._view.round, title, self._variant_results())

    def _variant_results(self) -> Results:
        """Return the results of the round's variants, with their clients in the order of the cohort."""
        assert self._view is not None
        updates = sorted(self.reported, key=lambda update: self._order.place(update.client_id))
        return results_of(self._offered, updates, self._view.round)

    def forget(self) -> None:
        """Free the memory and files of the round's updates, which the history has recorded."""
        for transfer in self._reported:
            self._staging.release(transfer.staged)
            self._staging.forget(transfer.staged)
        self._reported, self._arrived, self._complete, self._retained = [], [], {}, {}

    async def _accumulate(self, client_ids: Sequence[str]) -> None:
        assert self._aggregation is not None
        for client_id in client_ids:
            transfer = self._complete.pop(client_id)
            components = await self._staging.load(transfer.staged)
            update = self._with_tensors(transfer, components)
            if self._commits.ranks.of(client_id) is not None:
                update = await asyncio.to_thread(self._widened, update)
            kept_scopes = await asyncio.to_thread(self._aggregation.add, update, may_keep=True)
            kept_scopes = {scope for scope in kept_scopes if update.components[scope] is components[scope]}
            if self._aggregation.reads_again(update):
                self._retained[client_id] = transfer.staged
                self._staging.retain(transfer.staged, components)
            else:
                self._staging.release(transfer.staged, components, kept_scopes)

    async def _blocks(self) -> StagedBlocks | None:
        """Return the updates that the aggregation reads a second time; None if there are none."""
        if not self._retained:
            return None
        await self._staging.pin(self._retained.values())
        blocks = StagedBlocks(self._retained, self._staging.spool)
        await asyncio.to_thread(blocks.require_whole)
        return blocks

    def _with_tensors(self, transfer: Transfer, components: Mapping[str, Component]) -> ScreenedUpdate:
        assert self._view is not None
        staleness, discount = self._view.staleness(transfer.update), self._view.discount(transfer.update)
        return ScreenedUpdate(transfer.update, components, staleness, discount, transfer.norms)

    def _widened(self, update: ScreenedUpdate) -> ScreenedUpdate:
        """Return an update of a smaller rank in the model's layouts. Its norms are those of its own factors."""
        received = self._commits.received_by(update.client_id)
        norms = self._pipeline.find(NormScreening)
        if norms is not None and norms.measures and not update.norms:  # an update from before a restart
            update = replace(update, norms=update_norms(update.kind, update.components, received))
        return self._commits.ranks.widened(update, received, self._commits.model.components)
