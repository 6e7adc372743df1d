"""A rule in place of the mean: what a component's updates come to is made of all of them at once (`rule`)."""

from __future__ import annotations

from fedmtl_core.config.stages import RULE
from fedmtl_core.wire.layout import Layout
from fedmtl_server.aggregation.accumulators import Accumulator
from fedmtl_server.aggregation.rule_accumulator import RuleAccumulator
from fedmtl_server.aggregation.rules import BlockRule
from fedmtl_server.aggregation.stages.base import Stage
from fedmtl_server.aggregation.values import RoundContext


class RuleInsteadOfMean(Stage):
    """Has every component made by a rule.

    Args:
        rule: a user's own.
    """

    rule = RULE

    def __init__(self, rule: BlockRule):
        self._rule = rule
        self._context = RoundContext()

    def begin(self, context: RoundContext) -> None:
        self._context = context

    def accumulator(self, layout: Layout) -> Accumulator:
        return RuleAccumulator(layout, self._rule, self._context.round)
