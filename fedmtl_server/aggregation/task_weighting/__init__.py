"""Task weightings: one module for each method, all derived from `base.TaskWeighting`."""

from __future__ import annotations

from fedmtl_core.config import AggregationConfig
from fedmtl_core.plugins import Registry
from fedmtl_server.aggregation.task_weighting.base import TaskWeighting
from fedmtl_server.aggregation.task_weighting.cagrad import CAGrad
from fedmtl_server.aggregation.task_weighting.famo import FAMO
from fedmtl_server.aggregation.task_weighting.gradnorm import GradNorm
from fedmtl_server.aggregation.task_weighting.pcgrad import PCGrad
from fedmtl_server.aggregation.task_weighting.shares import Examples, Fixed, Temperature, Uniform
from fedmtl_server.aggregation.task_weighting.uncertainty import Uncertainty

TASK_WEIGHTINGS = Registry(
    "aggregation.task_weighting",
    TaskWeighting,  # type: ignore[type-abstract]
    {
        "examples": Examples,
        "uniform": Uniform,
        "fixed": Fixed,
        "temperature": Temperature,
        "uncertainty": Uncertainty,
        "gradnorm": GradNorm,
        "pcgrad": PCGrad,
        "cagrad": CAGrad,
        "famo": FAMO,
    },
)


def make_weighting(section: AggregationConfig) -> TaskWeighting | None:
    """Return the weighting that a configuration names; None for plain `examples`, which needs only one running mean.

    Raises:
        ConfigError: a custom class can't be loaded or constructed.
    """
    if section.task_weighting == "examples" and section.scaling == 1:
        return None
    return TASK_WEIGHTINGS.make(section.task_weighting, section)
