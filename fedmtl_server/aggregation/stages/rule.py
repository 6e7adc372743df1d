"""The stage that replaces the mean by an aggregation rule over all updates of a component (`aggregation.rule`)."""

from __future__ import annotations

from fedmtl_core.config.stages import RULE
from fedmtl_core.wire.layout import Layout
from fedmtl_server.aggregation.accumulators import Accumulator
from fedmtl_server.aggregation.rule_accumulator import RuleAccumulator
from fedmtl_server.aggregation.rules import BlockRule
from fedmtl_server.aggregation.stages.base import Stage
from fedmtl_server.aggregation.values import RoundContext


class RuleInsteadOfMean(Stage):
    """Replaces the mean of every component by a rule.

    Args:
        rule: the rule, a plug-in.
    """

    rule = RULE

    def __init__(self, rule: BlockRule):
        self._rule = rule
        self._context = RoundContext()

    def begin(self, context: RoundContext) -> None:
        self._context = context

    def accumulator(self, layout: Layout) -> Accumulator:
        return RuleAccumulator(layout, self._rule, self._context.round)
