"""What each task counts for in the encoder: one short module for each method, behind `base.TaskWeighting`."""

from __future__ import annotations

from collections.abc import Mapping

from fedmtl_core import plugins
from fedmtl_core.config import AggregationConfig
from fedmtl_server.aggregation.task_weighting.base import TaskRound, TaskWeighting, Weighed, WeightingSettings
from fedmtl_server.aggregation.task_weighting.cagrad import CAGrad
from fedmtl_server.aggregation.task_weighting.famo import FAMO
from fedmtl_server.aggregation.task_weighting.gradnorm import GradNorm
from fedmtl_server.aggregation.task_weighting.pcgrad import PCGrad
from fedmtl_server.aggregation.task_weighting.shares import Examples, Fixed, Temperature, Uniform
from fedmtl_server.aggregation.task_weighting.uncertainty import Uncertainty

_KEY = "aggregation.task_weighting"
_KNOWN: Mapping[str, type[TaskWeighting]] = {
    "examples": Examples,
    "uniform": Uniform,
    "fixed": Fixed,
    "temperature": Temperature,
    "uncertainty": Uncertainty,
    "gradnorm": GradNorm,
    "pcgrad": PCGrad,
    "cagrad": CAGrad,
    "famo": FAMO,
}


def make_weighting(section: AggregationConfig) -> TaskWeighting | None:
    """The weighting that a configuration names; None for plain `examples`, which need no more than one running mean.

    Raises:
        ConfigError: a class of the user's own can't be had or made.
    """
    name = section.task_weighting
    if name == "examples" and section.scaling == 1:
        return None
    settings = WeightingSettings(
        section.task_weights or {},
        section.scaling,
        section.temperature,
        section.conflict_aversion,
        section.asymmetry,
        section.learning_rate,
        section.decay,
    )
    return _KNOWN[name](settings) if name in _KNOWN else _Own(settings, name)


class _Own(TaskWeighting):
    """A class of the user's own, whose errors are told with the setting that names it."""

    def __init__(self, settings: WeightingSettings, reference: str):
        super().__init__(settings)
        self._reference = reference
        self._own = plugins.make(_KEY, reference, TaskWeighting, settings)  # type: ignore[type-abstract]
        with plugins.blamed(_KEY, reference):
            self.needs_products = bool(self._own.needs_products)
            self.gives_shares = bool(self._own.gives_shares)

    def weigh(self, round_: TaskRound) -> Weighed:
        with plugins.blamed(_KEY, self._reference):
            return self._own.weigh(round_)
