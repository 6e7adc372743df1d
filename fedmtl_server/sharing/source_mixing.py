"""The stage that mixes other tasks' updates into a task's own layers, as clients' paired losses decide."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fedmtl_core.config.stages import SOURCES
from fedmtl_core.errors import NonFiniteError
from fedmtl_core.json_types import JsonObject
from fedmtl_core.model.scopes import task_of, task_scope
from fedmtl_core.tasks.plan import Purpose
from fedmtl_core.wire.layout import Component, Layout
from fedmtl_server.aggregation.stages.base import Ending, Outcome, Stage
from fedmtl_server.aggregation.values import Notice, RoundContext, StageState
from fedmtl_server.aggregation.variants import Variant, VariantResult, is_finite, make_variant
from fedmtl_server.model_parts import ModelParts
from fedmtl_server.sharing.last_round import LastRound, wide
from fedmtl_server.sharing.selection_rules import DIVERGED, Comparison, SelectionRules, beyond_control
from fedmtl_server.sharing.source_selection import (
    SHORTER,
    Candidate,
    Selection,
    Sources,
    adds_sources,
    candidates,
    decided,
    sources_of,
)

START_MARGIN = 2.5
"""A client trains from a candidate whose loss is lower by this many standard errors on the client's own rows."""

_EMBEDDINGS = "embeddings"


class SourceMixing(Stage):
    """Lets each task's own layers take the updates of its source tasks, and tries other sources by variants.

    At first, a task takes its own updates only. After each round, its clients compare its model with candidates' models
    before they train. The candidates' models differ in the update of the last round only: they have the mean of the
    candidate's sources instead of the task's. A control has the task's own update, but shorter. An accepted candidate
    replaces that update too. A client whose own rows show that a candidate is better trains from it at once. So nothing
    is lost by the round that the trial takes.

    The first trials of a task are with tasks of the same type, with as many texts and labels, in the order of the
    cosines of their deltas.

    The mean of several tasks' deltas keeps the mean of their norms, part by part: deltas of different tasks are nearly
    at right angles, and their plain mean would be shorter than each of them.

    Trials leave the word embeddings out if other parts are mixed too: most of a small encoder's bytes are embeddings,
    and the difference shows without them. The sources in effect count for all parts. An accepted candidate replaces the
    last update of the tried parts only.

    An auxiliary task has no trials. It takes the updates of the tasks that take its updates, so that they train
    together.

    Args:
        parts: the parts of the server's model.
        mixed: by part of the encoder that is mixed, its parameters; each task must own them.
        kin: by task, the tasks of the same type.
        auxiliary: the auxiliary tasks.
        main_metrics: by task, the name of its main metric.
        rules: the limits of trials and the margins of decisions.
    """

    rule = SOURCES

    def __init__(
        self,
        parts: ModelParts,
        mixed: Mapping[str, Sequence[str]],
        kin: Mapping[str, Collection[str]],
        auxiliary: Collection[str],
        main_metrics: Mapping[str, str],
        rules: SelectionRules,
    ):
        self._model = parts
        self._parts = mixed
        self._tried = {part: names for part, names in mixed.items() if part != _EMBEDDINGS} or dict(mixed)
        self._kin, self._main_metrics = kin, main_metrics
        self._tasks = parts.tasks
        self._rules = rules
        self._selections = {task: Selection(task, (task,)) for task in parts.tasks if task not in auxiliary}
        self._last = LastRound()
        self._made: dict[tuple[str, str], Variant] = {}
        self._new: dict[str, Component] = {}
        self._released: dict[str, Component] = {}

    @property
    def sources(self) -> dict[str, Sources]:
        """By task, the tasks whose updates its layers take."""
        return sources_of({task: one.sources for task, one in self._selections.items()}, self._tasks)

    # A round.

    def begin(self, context: RoundContext) -> None:
        self._new, self._released = {}, {}

    def release(self, base: Component, combined: Component) -> None:
        """Keep the delta of a task's own layers."""
        task = task_of(base.scope)
        if task is None:
            return
        before, after = base.views(), combined.views()
        names = [name for names in self._parts.values() for name in names]
        delta = Component.pack(_delta_scope(task), {name: wide(after[name]).sub(wide(before[name])) for name in names})
        try:
            delta.require_finite()
        except NonFiniteError:  # the difference of two huge numbers can overflow; the task then mixes nothing
            return
        self._new[task] = delta
        self._released[task] = combined

    def end(self, ending: Ending) -> Outcome:
        """Decide on the round's trials, and mix the sources' updates into each task's layers."""
        deltas = {task: one for task, one in self._new.items() if task_scope(task) in ending.committed}
        if not deltas:
            return Outcome()
        before, earlier = self._selections, self._last
        accepted = self._decide(ending, deltas)
        now = LastRound.of(ending.round, deltas, self._parts)
        self._last = now.without_parts_but(self._tried)
        chosen, adjusted = {}, {}
        for task, sources in self.sources.items():
            if task not in deltas:
                continue
            shift = now.shift(self._parts, task, (task,), sources)
            if task in accepted:  # the update of the trial's round follows the new sources too
                late = earlier.shift(self._tried, task, before[task].sources, accepted[task].sources)
                shift = _sum(shift, late)
                chosen[task] = make_variant(task, accepted[task].name, _shifted(self._released[task], shift))
            elif shift:
                adjusted[task] = make_variant(task, "mixed", _shifted(self._released[task], shift))
        self._new, self._released, self._made = {}, {}, {}
        return _finite(Outcome(chosen=chosen, adjusted=adjusted))

    def conclude(self, ending: Ending) -> Outcome:
        """Choose the sources of the final model's last update."""
        accepted = self._decide(ending, self._selections)
        return _finite(Outcome(chosen={task: self._made[task, one.name] for task, one in accepted.items()}))

    # Trials.

    def variants(self, model: Mapping[str, Component], purpose: Purpose) -> Mapping[str, Sequence[Variant]]:
        """Return each task's candidates' models, which differ from the task's model in the last round's update."""
        offered: dict[str, list[Variant]] = {}
        self._made = {}
        for task, selection in self._selections.items():
            offer = self._candidates(task)
            if any(adds_sources(one, selection) for one in offer):  # the control, before all candidates
                shift = self._last.shortening(self._tried, task, selection.sources)
                control = make_variant(task, SHORTER, _shifted(model[task_scope(task)], shift))
                offered.setdefault(task, []).append(control)
            for candidate in offer:
                shift = self._last.shift(self._tried, task, selection.sources, candidate.sources)
                tensors = _shifted(model[task_scope(task)], shift)
                variant = make_variant(task, candidate.name, tensors, START_MARGIN)
                offered.setdefault(task, []).append(variant)
                self._made[task, candidate.name] = variant
        return offered

    def _candidates(self, task: str) -> list[Candidate]:
        """Return a task's candidates in the round after the last one; none without an update of the task."""
        present = [one for one in self._tasks if one in self._last.deltas]
        if task not in present:
            return []
        kin = self._kin.get(task, ())
        order = {one: self._last.cosine(task, one) + (2 if one in kin else 0) for one in present if one != task}
        return candidates(self._selections[task], self._tasks, present, order, self._last.round + 1, self._rules)

    def _decide(self, ending: Ending, tasks: Collection[str]) -> dict[str, Candidate]:
        """Decide on the trials of some tasks in a round, and return the accepted candidates by task."""
        accepted, selections = {}, dict(self._selections)
        for task, results in ending.variants.items():
            if task not in selections or task not in tasks:
                continue
            offered, by_name = self._candidates(task), {one.name: one for one in results}
            control, metric = by_name.get(SHORTER), self._main_metrics[task]
            comparisons = {one.name: _comparison(by_name.get(one.name), control, metric) for one in offered}
            compared = {name: one for name, one in comparisons.items() if one is not None}
            selections[task], candidate = decided(selections[task], offered, compared, ending.round, self._rules)
            if candidate is not None:
                accepted[task] = candidate
        self._selections = selections
        return accepted

    # Saved state.

    def state_layouts(self, layouts: Sequence[Layout], metadata: JsonObject) -> list[Layout]:
        return [self._delta_layout(task) for task in metadata.get("deltas", ())]

    def state(self) -> StageState:
        """Return the tasks' deltas of the last round by scope, their products, and the selections."""
        if not self._last.deltas:
            return StageState()
        metadata = {
            "round": self._last.round,
            "deltas": list(self._last.deltas),
            "products": {part: rows.tolist() for part, rows in self._last.products.items()},
            "selections": {task: one.to_json() for task, one in self._selections.items()},
        }
        return StageState({one.scope: one for one in self._last.deltas.values()}, metadata)

    def restore(self, state: StageState, layouts: Sequence[Layout]) -> None:
        values = state.metadata
        if not values:
            return
        deltas = {task: state.components[_delta_scope(task)] for task in values["deltas"]}
        for task, component in deltas.items():
            self._delta_layout(task).require_same(component.layout)
        products = {part: np.array(rows, dtype=np.float64) for part, rows in values["products"].items()}
        self._last = LastRound(values["round"], deltas, products)
        self._selections |= {
            task: Selection.of_json(task, one) for task, one in values["selections"].items() if task in self._selections
        }

    def _delta_layout(self, task: str) -> Layout:
        names = [name for mine in self._tried.values() for name in mine]
        shapes = {name: self._model.tensors[name] for name in names}
        return Layout.of(_delta_scope(task), {name: wide(torch.empty_like(one)) for name, one in shapes.items()})


def _comparison(result: VariantResult | None, control: VariantResult | None, main_metric: str) -> Comparison | None:
    """Return a variant's comparison; None if nobody evaluated it, or its standard error is unknown.

    Args:
        result: the variant's result; None if the variant was left out of the offer, because it isn't finite.
        control: the control's result; None without a control.
        main_metric: the name of the task's main metric.
    """
    if result is None or result.num_diverged:
        return DIVERGED
    paired = result.paired
    if paired is None or paired.standard_error is None:
        return None
    return Comparison(
        paired.loss,
        paired.difference,
        paired.standard_error,
        paired.num_examples,
        lowers_metric=result.lowers(main_metric),
        beyond_control=None if control is None else beyond_control(result.finite, control.finite),
    )


def _finite(outcome: Outcome) -> Outcome:
    """Return an outcome without tensors that aren't finite, as the sum of huge numbers can be."""
    bad = [task for both in (outcome.chosen, outcome.adjusted) for task, one in both.items() if not is_finite(one)]
    if not bad:
        return outcome
    reason = f"the mix isn't finite, so that a task keeps its own update: {', '.join(bad)}"
    return Outcome(
        chosen={task: one for task, one in outcome.chosen.items() if task not in bad},
        adjusted={task: one for task, one in outcome.adjusted.items() if task not in bad},
        notice=Notice("sources.discarded", reason),
    )


def _shifted(component: Component, shift: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a component that a shift concerns, with the shift added."""
    views = component.views()
    return {name: wide(views[name]).add(value).to(views[name].dtype) for name, value in shift.items()}


def _sum(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the sum of two shifts, which may concern different tensors."""
    return {**one, **{name: value + one[name] if name in one else value for name, value in other.items()}}


def _delta_scope(task: str) -> str:
    """Return the scope of a task's saved delta: `delta:TASK`."""
    return f"delta:{task}"
