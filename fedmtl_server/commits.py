"""The model from commit to commit: computing the next model, writing it, and publishing it to clients."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial

from fedmtl_core.identifiers import name_some
from fedmtl_core.logs import get_logger
from fedmtl_core.model.sharing import SharingTable
from fedmtl_core.tasks.plan import Purpose
from fedmtl_core.wire.layout import Component
from fedmtl_server.aggregation.blocks import UpdateBlocks
from fedmtl_server.aggregation.norms import reference_norm
from fedmtl_server.aggregation.pipeline import Pipeline, RoundAggregation
from fedmtl_server.aggregation.ranks import EQUAL_RANKS, Ranks
from fedmtl_server.aggregation.rearranging import rearranged
from fedmtl_server.aggregation.stages.norms import NormScreening
from fedmtl_server.aggregation.values import Aggregate, Regrouping
from fedmtl_server.aggregation.variants import Results, is_finite, require_valid, with_chosen
from fedmtl_server.model import MTLServerModel, changing
from fedmtl_server.rounds.report import RoundReport, counted_examples
from fedmtl_server.storage.store import RunStore
from fedmtl_server.transfer.offered import NO_VARIANTS, OfferedVariants
from fedmtl_server.transfer.slices import PublishedModel
from fedmtl_server.transfer.staging import StagingArea

EndRound = Callable[[Mapping[str, bytes] | None], None]
"""Writes a round's end to the history, with the digests of its checkpoint if there is one; see `RunStore.end_round`."""


class Commits:
    """Commits the model of a run together with the state of the aggregation stages.

    Args:
        model: the server's model, which only this object may change from now on.
        pipeline: the aggregation pipeline.
        store: the storage for commits.
        staging: the owner of the buffers that hold updates.
        ranks: the ranks of the clients' adapters.
    """

    def __init__(
        self,
        model: MTLServerModel,
        pipeline: Pipeline,
        store: RunStore,
        staging: StagingArea,
        ranks: Ranks = EQUAL_RANKS,
    ):
        self.model = model
        self.pipeline = pipeline
        self.ranks = ranks
        self._store = store
        self._staging = staging
        norms = pipeline.find(NormScreening)
        self._measures_model = norms is not None and norms.has_limits
        self._writing: asyncio.Task[None] | None = None
        self._log = get_logger()
        self.model_norms: Mapping[str, float] = {}
        """The model's norm by scope, to compare the norms of updates with (`reference_norm`). Empty without limits."""
        self.model_norms = self._norms_of(model.components)
        self.published = self._publish(1)
        """The model that clients download."""
        self.offered = NO_VARIANTS
        """The variants of the model that clients compare with it in the round in progress."""
        self.on_written: Callable[[], None] = lambda: None
        """Called after a commit was written or its write has failed; `require_written` raises the failure."""

    def resume(self, round_: int) -> None:
        """Continue with the given round as the next one. `recovery` has restored the checkpoint before."""
        self.published = self.published.for_round(round_)

    def received_by(self, client_id: str) -> Mapping[str, Component]:
        """Return the model's components as a client of the round in progress receives them, without rounding."""
        rank = self.ranks.of(client_id)
        if rank is None:
            return self.model.components
        return {scope: one.component for scope, one in self.published.cut_to(rank, self.ranks).components.items()}

    def offer(self, purpose: Purpose) -> None:
        """Publish the variants of the round that opens. This is slow, and may run in any thread.

        Raises:
            AggregationError: a stage offers a variant that doesn't fit the model.
        """
        components, table = self.model.components, self.model.sharing
        offered = self.pipeline.variants(components, purpose)
        for task, variants in offered.items():
            require_valid(task, variants, components, table)
            offered[task] = [one for one in variants if is_finite(one)]
            for one in variants:
                if one not in offered[task]:
                    reason = "it has values that aren't finite"
                    self._log.warning("variant.discarded", task=task, variant=one.name, reason=reason)
        scopes = {task: self.model.scopes_for(task) for task in offered}
        self.offered = OfferedVariants(self.published, offered, scopes) if offered else NO_VARIANTS

    def withdraw(self) -> None:
        """Offer no variants until the next round opens."""
        self.offered = NO_VARIANTS

    def finish(
        self,
        aggregation: RoundAggregation,
        title: Mapping[str, str],
        variants: Results,
        blocks: UpdateBlocks | None = None,
    ) -> Aggregate:
        """Compute the next model. A component that left the range of its dtype is discarded and stays unchanged.

        Args:
            aggregation: the aggregation, with all updates of the round.
            title: the fields that name the round in the log.
            variants: by task, the results of the round's variants.
            blocks: the updates that the aggregation reads a second time; see `RoundAggregation.reads_again`.

        Raises:
            AggregationError, StoreError: see `RoundAggregation.close`.
        """
        aggregate = aggregation.close(blocks, variants)
        for one in aggregate.discarded:
            contributors = name_some(one.contributors)
            self._log.error(
                "component.discarded", **title, scope=one.scope, reason=one.reason, contributors=contributors
            )
        self._log_notices(aggregate, title)
        return aggregate

    def conclude(self, round_: int, title: Mapping[str, str], variants: Results) -> Aggregate:
        """Return the change of the model after the evaluation round.

        Args:
            round_: the round.
            title: the fields that name the round in the log.
            variants: by task, the results of the round's variants.

        Raises:
            AggregationError: see `Pipeline.conclude`.
        """
        aggregate = self.pipeline.conclude(round_, variants)
        self._log_notices(aggregate, title)
        return aggregate

    def _log_notices(self, aggregate: Aggregate, title: Mapping[str, str]) -> None:
        for notice in aggregate.notices:
            self._log.warning(notice.event, **title, reason=notice.reason)

    # Commits.

    async def commit(
        self, aggregate: Aggregate, report: RoundReport, end_round: EndRound, best: Collection[int]
    ) -> None:
        """Write the new model to disk, then install it. The old model is freed after its last download.

        With a store that writes behind, the write continues while the next round is in progress.

        Args:
            aggregate: the result of the round; without components if the model does not change.
            report: the report of the round.
            end_round: writes the round's end to the history.
            best: the rounds whose checkpoints are kept.

        Raises:
            AggregationError: a variant was chosen that can't replace tensors of its task's model.
            StoreError: the commit can't be written; the model is unchanged.
        """
        await self.until_written()
        replaced = {**aggregate.adjusted, **aggregate.chosen}
        if not (aggregate.components or aggregate.moved or replaced or aggregate.must_save):
            await asyncio.to_thread(end_round, None)
            await self._republish(report)
            return
        components, table = {**self.model.components, **aggregate.components}, self.model.sharing
        base = {**self.model.base, **aggregate.base}
        if report.moved:
            components, table = await asyncio.to_thread(self._regrouped, components, report)
        if replaced:
            components = await asyncio.to_thread(with_chosen, components, table, replaced)
        published, norms = await self._begin_writing(components, base, report, end_round, best)
        if not self._store.writes_behind:
            await self.until_written()
        if report.moved:
            self.model.rearrange(table, components)
        else:
            self.model.install({**components, **base})
        self.model_norms = norms
        self._replace(published)

    async def until_written(self) -> None:
        """Wait until the last commit is on disk. Canceling the wait does not cancel the commit.

        Raises:
            StoreError: the commit couldn't be written.
        """
        if self._writing is not None:
            await asyncio.shield(self._writing)

    def require_written(self) -> None:
        """Check that the last commit has not failed.

        Raises:
            StoreError: the last commit couldn't be written.
        """
        if self._writing is not None and self._writing.done():
            self._writing.result()

    async def settle(self) -> BaseException | None:
        """Wait until the last commit is on disk or has failed, and return the error; None if it succeeded."""
        if self._writing is None:
            return None
        await asyncio.wait([self._writing])
        return self._writing.exception()

    async def _republish(self, report: RoundReport) -> None:
        """Publish the unchanged model for the next round."""
        if self.published.control_since != self.pipeline.broadcast().since:
            self._replace(await asyncio.to_thread(self._publish, report.round + 1, self.model.components))
        elif report.purpose == "train":
            self.published = self.published.for_round(report.round + 1)

    async def _begin_writing(
        self,
        components: Mapping[str, Component],
        base: Mapping[str, Component],
        report: RoundReport,
        end_round: EndRound,
        best: Collection[int],
    ) -> tuple[PublishedModel, Mapping[str, float]]:
        """Start writing a model, without the part of its base that never changes, and prepare it for publication.

        Returns:
            The published model, and the model's norms.
        """
        state = self.pipeline.components()
        written = changing(components, base)
        model = asyncio.create_task(
            asyncio.to_thread(self._store.write_model, written, report.round, state, report.sharing)
        )
        published, norms = await asyncio.gather(
            asyncio.to_thread(self._publish, report.round + (report.purpose == "train"), components, base),
            asyncio.to_thread(self._norms_of, components),
        )
        digests = {scope: one.digest for scope, one in published.components.items()}
        digests |= {scope: one.digest for scope, one in published.base.items() if scope in written}
        if state:
            others = {scope: one for scope, one in state.items() if scope not in digests}
            digests |= await asyncio.to_thread(lambda: {scope: one.digest() for scope, one in others.items()})
        self._writing = asyncio.create_task(self._write(model, partial(end_round, digests), best))
        self._writing.add_done_callback(lambda _: self.on_written())
        return published, norms

    def _norms_of(self, components: Mapping[str, Component]) -> dict[str, float]:
        """Return a model's norms by scope; empty without norm limits. Unchanged components are not measured again."""
        if not self._measures_model:
            return {}
        known = self.model.components
        return {
            scope: self.model_norms[scope]
            if known.get(scope) is one and scope in self.model_norms
            else reference_norm(one)
            for scope, one in components.items()
        }

    async def _write(self, model: Awaitable[None], end_round: Callable[[], None], best: Collection[int]) -> None:
        await model
        await asyncio.to_thread(end_round)
        await asyncio.to_thread(self._store.prune, best)

    def _regrouped(
        self, components: Mapping[str, Component], report: RoundReport
    ) -> tuple[dict[str, Component], SharingTable]:
        """Regroup the model and the state of the stages after a sharing update; return the components and new table."""
        before, after = self.model.sharing, self.pipeline.table
        assert after is not None
        factors = self.pipeline.factors(report.round)
        counted = counted_examples(report)
        num_examples = {task: examples * factors.get(task, 1.0) for task, examples in counted.items()}
        self.pipeline.regroup(Regrouping(before, after, self.model.parts.shared_by(after).layouts(), num_examples))
        return rearranged(components, before, after, num_examples), after

    def _replace(self, published: PublishedModel) -> None:
        before, self.published = self.published, published
        before.release()

    def _publish(
        self,
        round_: int,
        components: Mapping[str, Component] | None = None,
        base: Mapping[str, Component] | None = None,
    ) -> PublishedModel:
        before = self.published if components else None
        published = PublishedModel.publish(
            round_,
            components or self.model.components,
            base or self.model.base,
            self.pipeline.broadcast(),
            before,
            self._staging.take_back,
        )
        published.acquire()
        return published
