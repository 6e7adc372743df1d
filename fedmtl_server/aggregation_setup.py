"""Builds the stages of the aggregation from the configuration."""

from __future__ import annotations

from fedmtl_core.config import Config
from fedmtl_core.config.sharing import VALIDATED
from fedmtl_server.aggregation.pipeline import Pipeline
from fedmtl_server.aggregation.ranks import require_fitting
from fedmtl_server.aggregation.stages.adapters import AdapterProducts
from fedmtl_server.aggregation.stages.auxiliary import AuxiliaryTasks
from fedmtl_server.aggregation.stages.base import Stage
from fedmtl_server.aggregation.stages.client_shares import ClientShares
from fedmtl_server.aggregation.stages.control_variates import ControlVariates
from fedmtl_server.aggregation.stages.normalization import FedNova
from fedmtl_server.aggregation.stages.norms import NormScreening
from fedmtl_server.aggregation.stages.preserved_norm import PreservedNorm
from fedmtl_server.aggregation.stages.rule import RuleInsteadOfMean
from fedmtl_server.aggregation.stages.server_optimizer import OptimizerSteps
from fedmtl_server.aggregation.stages.stacking import StackedAdapters
from fedmtl_server.aggregation.stages.task_weighting import TaskWeights
from fedmtl_server.aggregation_rules import AggregationRules
from fedmtl_server.model import MTLServerModel
from fedmtl_server.sharing.layer_moves import make_regrouping
from fedmtl_server.sharing.mixing_setup import make_source_mixing


def make_pipeline(config: Config, model: MTLServerModel, rules: AggregationRules) -> Pipeline:
    """Create the aggregation pipeline of a run.

    Args:
        config: the run's configuration.
        model: the server's model.
        rules: the rules from `AggregationRules.of`.

    Raises:
        ConfigError: `sharing.schedule` or `sharing.adaptive.layers` names a layer that the encoder does not have, or
            a rank of adapters is above a layer's inputs or outputs.
    """
    layouts = model.layouts_for(None)
    stages: list[Stage] = [NormScreening(config.robustness.norms)]
    if config.robustness.max_client_share is not None:
        stages.append(ClientShares(config.robustness.max_client_share))
    if config.aggregation.normalization == "fednova":
        stages.append(FedNova())
    if rules.rule is not None:
        stages.append(RuleInsteadOfMean(rules.rule))
    if rules.weighting is not None:
        stages.append(TaskWeights(rules.weighting, config.training.seed))
    auxiliary = {name: task.auxiliary for name, task in config.tasks.items() if task.auxiliary is not None}
    if auxiliary:
        stages.append(AuxiliaryTasks(auxiliary))
    if config.aggregation.preserves_norm:
        stages.append(PreservedNorm(model.parts.shape.parts))
    adapters = config.model.adapters
    if adapters is not None and adapters.aggregation == "svd":
        require_fitting(adapters, layouts)
        stages.append(AdapterProducts("svd"))
    if adapters is not None and adapters.aggregation == "average" and rules.rule is None:  # a rule serves no mean
        stages.append(AdapterProducts("average"))
    if (settings := config.adapters()) is not None and settings.is_stacked:
        stages.append(StackedAdapters(settings))
    if rules.optimizer is not None:
        stages.append(OptimizerSteps(rules.optimizer, layouts))
    if config.sharing.adaptive.policy == VALIDATED:
        stages.append(make_source_mixing(config, model.parts))
    if config.training.control_variates:
        members = {scope: model.sharing.members(scope) for scope in model.components}
        stages.append(ControlVariates(layouts, members))
    if rules.policy is not None or config.sharing.schedule:
        stages.append(make_regrouping(config.sharing, model.parts, rules.policy))
    return Pipeline(stages)
