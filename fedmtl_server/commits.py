"""The model from commit to commit: what a round makes of it, how that is written, and how it goes out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

from fedmtl_core.errors import NonFiniteError
from fedmtl_core.identifiers import name_some
from fedmtl_core.logs import get_logger
from fedmtl_core.model.sharing import Partition, SharingTable
from fedmtl_core.wire.controls import control_scope
from fedmtl_core.wire.layout import Component
from fedmtl_server.aggregation.aggregator import Aggregate, ClientUpdate, DiscardedComponent, MTLAggregator, RoundFold
from fedmtl_server.aggregation.control_variates import ControlVariates
from fedmtl_server.aggregation.norms import reference_norm
from fedmtl_server.aggregation.optimizer_state import OptimizerState
from fedmtl_server.aggregation.rearranging import rearranged
from fedmtl_server.model import MTLServerModel
from fedmtl_server.rounds.report import RoundReport, counted_examples
from fedmtl_server.sharing.layer_moves import Mover
from fedmtl_server.storage.store import RunStore
from fedmtl_server.transfer.slices import PublishedModel
from fedmtl_server.transfer.staging import StagingArea

EndRound = Callable[[Mapping[str, bytes] | None], None]
"""Writes a round's end to the history, with its checkpoint's digests if it has one; see `RunStore.end_round`."""


class Commits:
    """A run's model, with all that moves with it: the server optimiser's state, control variates, who shares what.

    Args:
        model: the server's model; it is this object's alone from now on.
        aggregator: how updates are averaged.
        store: where commits go.
        staging: where the buffers come from that updates lie in.
        optimizer: what makes the next model of the average; None if the average is it.
        controls: the clients' and the server's control variates; None if there are none.
        mover: what has layers move from one scope to another; None if they stay.
    """

    def __init__(
        self,
        model: MTLServerModel,
        aggregator: MTLAggregator,
        store: RunStore,
        staging: StagingArea,
        *,
        optimizer: OptimizerState | None = None,
        controls: ControlVariates | None = None,
        mover: Mover | None = None,
    ):
        self.model = model
        self._aggregator = aggregator
        self._store = store
        self._staging = staging
        self._optimizer = optimizer
        self._controls = controls
        self._mover = mover
        self._writing: asyncio.Task[None] | None = None
        self._log = get_logger()
        self.model_norms: Mapping[str, float] = {}
        """By scope, what the norms of updates are held against; see `reference_norm`. Empty if they aren't."""
        self.model_norms = self._norms_of(model.components)
        self.published = self._publish(1)
        """The model as it goes out."""
        self.on_written: Callable[[], None] = lambda: None
        """Told when a commit is on disk, or has failed to get there; `require_written` knows which."""

    def take_up(self, round_: int, state: Mapping[str, Component], last_report: RoundReport | None) -> None:
        """Go on from what a checkpoint has besides the model, which is installed already; `round_` is next."""
        if self._optimizer is not None:
            self._optimizer.install(state)
        if self._controls is not None:
            self._controls.install(state, last_report.control_variates if last_report else {})
            self.published = self._publish(round_)
        self.published = self.published.for_round(round_)

    def control_scopes_for(self, task: str) -> Sequence[str]:
        """The scopes of the control variates in a task's slice of a round of training; none in one of all tasks."""
        if self._controls is None or not task:
            return ()
        return tuple(map(control_scope, self.model.scopes_for(task)))

    # A round.

    def begin_round(self) -> None:
        """Begin to take in a round's updates."""
        if self._controls is not None:
            self._controls.begin_round()

    def fold(self, fold: RoundFold, update: ClientUpdate, round_: int) -> set[str]:
        """Take in an update, and say which of its components are kept."""
        if self._controls is not None:
            self._controls.fold(update, round_, self.model.components)
        return fold.fold(update, may_keep=True)

    def finish(self, fold: RoundFold, round_: int, title: Mapping[str, str]) -> Aggregate:
        """What the model becomes, without components that left the range of their dtype; those stay as they were.

        Args:
            fold: with all of the round's updates.
            round_: the round.
            title: names it in the log.
        """
        if self._mover is not None:
            self._mover.look(fold)
        aggregate = fold.close()
        good, discarded = {}, []
        for scope in self.model.components:  # from what most share to the heads, whoever was folded first
            if (component := aggregate.components.get(scope)) is None:
                continue
            what = "average"
            try:
                component.require_finite()
                if self._optimizer is not None:
                    what = "server_optimizer's step"
                    self._optimizer.step(self.model.components[scope], component)
                good[scope] = component
            except NonFiniteError as error:
                reason = f"its {what} isn't finite: {error}"
                contributors = [part.client_id for part in aggregate.contributions[scope]]
                discarded.append(DiscardedComponent(scope, reason, contributors))
                self._log.error(
                    "component.discarded", **title, scope=scope, reason=reason, contributors=name_some(contributors)
                )
        if self._controls is not None and (reason := self._controls.close(round_, good.keys())):
            self._log.warning("control_variates.began_anew", **title, reason=reason)
        states = {scope: state for scope, state in aggregate.weighting_states.items() if scope in good}
        return Aggregate(good, {scope: aggregate.contributions[scope] for scope in good}, states, discarded)

    def decide_moves(self, round_: int) -> Mapping[str, Partition]:
        """Have the policy say what moves after a round that changed the model.

        Returns:
            By part that moves, the blocks of tasks that shared it before.

        Raises:
            AggregationError: see `Mover.decide`.
        """
        return self._mover.decide(round_) if self._mover else {}

    def report_facts(self, weighting_states: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """What a round's report keeps for the rounds after it.

        Args:
            weighting_states: what the weighting remembers, by scope; those of scopes that are gone are left out.
        """
        if self._mover is not None:
            scopes = self._mover.table.scopes
            weighting_states = {scope: state for scope, state in weighting_states.items() if scope in scopes}
        return {
            "weighting_states": weighting_states,
            "sharing": dict(self._mover.moved) if self._mover else {},
            "sharing_state": self._mover.state if self._mover else {},
            "control_variates": self._controls.facts if self._controls else {},
        }

    # A commit.

    async def commit(
        self, changed: Mapping[str, Component], report: RoundReport, end_round: EndRound, best: Collection[int]
    ) -> None:
        """Make the average the model, on disk first; what was the model goes when nobody downloads it any more.

        With a store that writes behind, the disk follows while the next round is held already.

        Args:
            changed: by scope, what is new; empty where the model stays.
            report: of the round.
            end_round: writes the round's end.
            best: rounds whose checkpoints are kept.

        Raises:
            StoreError: it can't be written; the model is what it was.
        """
        await self.until_written()
        if not changed:
            await asyncio.to_thread(end_round, None)
            await self._follow(report)
            return
        components, table = {**self.model.components, **changed}, self.model.sharing
        if report.moved:
            components, table = await asyncio.to_thread(self._moved, components, report)
        published, norms = await self._begin_writing(components, report, end_round, best)
        if not self._store.writes_behind:
            await self.until_written()
        if report.moved:
            self.model.rearrange(table, components)
        else:
            self.model.install(changed)
        self.model_norms = norms
        self._replace(published)

    async def until_written(self) -> None:
        """Wait for the last commit to be on disk. Whoever waits may be cancelled, the commit isn't.

        Raises:
            StoreError: it couldn't be written.
        """
        if self._writing is not None:
            await asyncio.shield(self._writing)

    def require_written(self) -> None:
        """Check that no commit has failed to get to the disk.

        Raises:
            StoreError: the last one has.
        """
        if self._writing is not None and self._writing.done():
            self._writing.result()

    async def settle(self) -> BaseException | None:
        """Wait for the last commit to be on disk, and say why it isn't if it can't be."""
        if self._writing is None:
            return None
        await asyncio.wait([self._writing])
        return self._writing.exception()

    async def _follow(self, report: RoundReport) -> None:
        """Have the model that stays go out in the next round."""
        if self._controls and self.published.control_since != self._controls.since:
            self._replace(await asyncio.to_thread(self._publish, report.round + 1, self.model.components))
        elif report.purpose == "train":
            self.published = self.published.for_round(report.round + 1)

    async def _begin_writing(
        self, components: Mapping[str, Component], report: RoundReport, end_round: EndRound, best: Collection[int]
    ) -> tuple[PublishedModel, Mapping[str, float]]:
        """Write a model while it is made ready to go out.

        Returns:
            What goes out, and the model's norms.
        """
        state = dict(self._optimizer.components) if self._optimizer else {}
        state |= self._controls.components if self._controls else {}
        model = asyncio.create_task(
            asyncio.to_thread(self._store.write_model, components, report.round, state, report.sharing)
        )
        published, norms = await asyncio.gather(  # both need as long as the slower one
            asyncio.to_thread(self._publish, report.round + 1, components),
            asyncio.to_thread(self._norms_of, components),
        )
        digests = {scope: one.digest for scope, one in published.components.items()}
        if state:
            others = {scope: one for scope, one in state.items() if scope not in digests}
            digests |= await asyncio.to_thread(lambda: {scope: one.digest() for scope, one in others.items()})
        self._writing = asyncio.create_task(self._write(model, partial(end_round, digests), best))
        self._writing.add_done_callback(lambda _: self.on_written())
        return published, norms

    def _norms_of(self, components: Mapping[str, Component]) -> dict[str, float]:
        """A model's norms by scope, where updates are held against them; those that didn't change aren't measured."""
        if not self._aggregator.norms.limits({"": 1.0}):
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

    def _moved(
        self, components: Mapping[str, Component], report: RoundReport
    ) -> tuple[dict[str, Component], SharingTable]:
        """The model, and what its optimiser remembers, by the table in which what moves has moved."""
        assert self._mover is not None
        before, after = self.model.sharing, self._mover.table
        factors = self._aggregator.factors(report.round)
        counted = counted_examples(report)
        num_examples = {task: examples * factors.get(task, 1.0) for task, examples in counted.items()}
        if self._optimizer is not None:
            self._optimizer.rearrange(self.model.layouts_of(after), before, after, num_examples)
        return rearranged(components, before, after, num_examples), after

    def _replace(self, published: PublishedModel) -> None:
        before, self.published = self.published, published
        before.let_go()

    def _publish(self, round_: int, components: Mapping[str, Component] | None = None) -> PublishedModel:
        before = self.published if components else None
        controls, since = (self._controls.components, self._controls.since) if self._controls else ({}, 0)
        whole = {**(components or self.model.components), **controls}
        published = PublishedModel.publish(round_, whole, before, self._staging.take_back, since)
        published.hold()
        return published
