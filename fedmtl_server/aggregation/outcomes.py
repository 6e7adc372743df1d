"""The stages' outcomes of a round, merged into one."""

from __future__ import annotations

from collections.abc import Sequence

from fedmtl_core.errors import AggregationError
from fedmtl_core.model.sharing import SharingTable
from fedmtl_server.aggregation.stages.base import Outcome, Stage
from fedmtl_server.aggregation.values import Aggregate
from fedmtl_server.aggregation.variants import Results, Variant


def table_of(stages: Sequence[Stage]) -> SharingTable | None:
    """Return the sharing table of the stage that decides it; None without such a stage."""
    return next((table for stage in stages if (table := stage.table()) is not None), None)


def merged_outcomes(stages: Sequence[Stage], outcomes: Sequence[Outcome], variants: Results) -> Aggregate:
    """Return the stages' part of the result of a round, without components.

    Args:
        stages: the stages.
        outcomes: their outcomes.
        variants: by task, the results of the round's variants.

    Raises:
        AggregationError: two stages choose a variant for one task.
    """
    moved = {part: blocks for one in outcomes for part, blocks in one.moved.items()}
    if moved and (table := table_of(stages)) is not None:
        for stage in stages:
            stage.keep(table.scopes)
    replaced: dict[str, Variant] = {}
    for one in outcomes:
        mine = {**one.chosen, **one.adjusted}
        if both := replaced.keys() & mine.keys() or one.chosen.keys() & one.adjusted.keys():
            raise AggregationError(f"{min(both)}: expected at most one stage to replace the task's tensors, got two")
        replaced |= mine
    return Aggregate(
        moved=moved,
        moved_by={part: cause for one in outcomes for part, cause in one.moved_by.items()},
        variants=variants,
        chosen={task: one for outcome in outcomes for task, one in outcome.chosen.items()},
        adjusted={task: one for outcome in outcomes for task, one in outcome.adjusted.items()},
        base={scope: component for one in outcomes for scope, component in one.base.items()},
        must_save=any(one.must_save for one in outcomes),
        notices=[one.notice for one in outcomes if one.notice],
    )
