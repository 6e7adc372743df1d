"""The rules of the aggregation that a configuration names. Some of them are user classes."""

from __future__ import annotations

from dataclasses import dataclass

from fedmtl_core.config import Config
from fedmtl_server.aggregation.optimizers import ServerOptimizer, make_optimizer
from fedmtl_server.aggregation.rules import BlockRule, make_rule
from fedmtl_server.aggregation.task_weighting import make_weighting
from fedmtl_server.aggregation.task_weighting.base import TaskWeighting
from fedmtl_server.aggregation.task_weighting.shares import Examples
from fedmtl_server.sharing.policies import SharingPolicy, make_policy


@dataclass(frozen=True)
class AggregationRules:
    """The rules that the stages apply; None for a stage that the run does not use."""

    weighting: TaskWeighting | None = None
    optimizer: ServerOptimizer | None = None
    policy: SharingPolicy | None = None
    rule: BlockRule | None = None

    @classmethod
    def of(cls, config: Config) -> AggregationRules:
        """Create the rules that a configuration names. This is fast, so that a wrong name fails at once.

        Raises:
            ConfigError: a user class can't be imported or created.
        """
        optimizer = make_optimizer(config.server_optimizer)
        policy = make_policy(config.sharing.adaptive)
        weighting = make_weighting(config.aggregation)
        if policy and not weighting:  # a sharing policy needs the mean update of every task
            weighting = Examples(config.aggregation)
        return cls(weighting, optimizer, policy, make_rule(config.aggregation))
