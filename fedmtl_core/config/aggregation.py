"""Aggregation settings: screening of updates, their combination, task weights and the server optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, field_validator, model_validator

from fedmtl_core.config.section import Section, require_known_or_reference

NormAction = Literal["none", "report", "clip", "refuse"]
Normalization = Literal["none", "fednova"]
OPTIMIZERS = ("fedavg", "fedavgm", "fedadagrad", "fedadam", "fedyogi")
RULES = ("mean",)
TASK_WEIGHTINGS = (
    "examples",
    "uniform",
    "fixed",
    "temperature",
    "uncertainty",
    "gradnorm",
    "pcgrad",
    "cagrad",
    "famo",
)


class NormsConfig(Section):
    """Treatment of updates by the L2 norm of their changes."""

    read_by = ("server",)

    action: NormAction = Field(
        "report",
        description="Treatment of an update by the L2 norm of each component's delta. `none` doesn't measure norms. "
        "`report` measures and reports them. `clip` also scales a delta down to the bound before averaging, and "
        "`refuse` also rejects an update above the bound.",
    )
    bound: float | None = Field(
        None,
        gt=0,
        description="Largest L2 norm of a component's delta for `action: clip` and `action: refuse`. If not given, "
        "`median_factor` alone sets the bound.",
    )
    median_factor: float | None = Field(
        None,
        gt=1,
        description="Bound for `action: clip` and `action: refuse` as a multiple, above 1, of the median of the norms "
        "that counted in recent rounds: clipped norms after clipping, and no refused updates. "
        "The smaller bound applies if `bound` is given too. If not given, `bound` alone applies.",
    )
    window: int = Field(
        5,
        ge=1,
        description="Number of rounds whose norms enter the median for `median_factor`: the most recent rounds that "
        "changed the component.",
    )
    model_factor: float | None = Field(
        1e6,
        gt=1,
        description="Largest norm of a component's delta as a multiple of the model's norm in that component, whose "
        "elements count as at least 1 on average. An update above it is refused unless `action` is `none`; `null` "
        "removes this limit.",
    )

    @model_validator(mode="after")
    def _has_its_bound(self) -> NormsConfig:
        given = [name for name in ("bound", "median_factor") if getattr(self, name) is not None]
        bounded = self.action in ("clip", "refuse")
        if bounded and not given:
            raise ValueError(f"`action: {self.action}` needs `bound` or `median_factor`")
        if given and not bounded:
            raise ValueError(f"`{given[0]}` needs `action: clip` or `action: refuse`, got {self.action!r}")
        return self


class RobustnessConfig(Section):
    """Protection of the model from harmful updates."""

    read_by = ("server",)

    norms: NormsConfig = NormsConfig()
    max_client_share: float | None = Field(
        0.99,
        ge=0.5,
        lt=1,
        description="Largest share of a component's examples that one client counts for, from 0.5 to below 1, where "
        "several clients contribute. Examples beyond that share aren't counted; `null` removes this limit.",
    )


class AggregationConfig(Section):
    """Combination of updates, weights of the tasks in the encoder, and normalization by client steps.

    docs/aggregation.md has the formulas.
    """

    read_by = ("server",)

    rule: str = Field(
        "mean",
        description="Rule that combines the updates of a component: `mean` (weighted mean), or your own class as "
        "`module:Name`, which gets all updates at once.",
    )
    rule_options: dict[str, object] | None = Field(
        None,
        description="Options of the class that `aggregation.rule` names, which reads them as `settings.rule_options`. "
        "If not given, the class gets none.",
    )
    task_weighting: str = Field(
        "examples",
        description=f"Method for each task's weight in the encoder's average: {', '.join(TASK_WEIGHTINGS)}, or your "
        "own class as `module:Name`. With `examples`, a task's weight is the number of examples that its clients "
        "trained on.",
    )
    task_weights: dict[str, float] | None = Field(
        None,
        description="Weight of every task by name, above 0. Required with `task_weighting: fixed`, refused with other "
        "weightings.",
    )
    scaling: float | Literal["preserve"] = Field(
        1.0,
        description="Factor that multiplies the weighted sum of the tasks' deltas before the encoder moves. It is "
        "limited to the number of tasks that share the component in the round; at that limit each task moves the "
        "encoder as far as it would alone. With `preserve`, each part of the encoder moves as far as the tasks' deltas "
        "of that part are long on average; the factor is then at most the square root of the number of tasks.",
    )
    temperature: float = Field(
        2.0,
        gt=0,
        description="Temperature of `task_weighting: temperature`: 1 gives the weights of `examples`, and larger "
        "values approach those of `uniform`.",
    )
    conflict_aversion: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="Parameter c of `task_weighting: cagrad`, from 0 to below 1: the distance from the tasks' mean "
        "delta that the result may have. With 0 the result is that mean.",
    )
    asymmetry: float = Field(
        1.5,
        ge=0,
        description="Parameter alpha of `task_weighting: gradnorm`: the larger the value, the more weight slowly "
        "learning tasks get.",
    )
    learning_rate: float = Field(
        0.025,
        gt=0,
        description="Step size of the task weights, which take one step per round with `task_weighting: uncertainty`, "
        "`gradnorm` and `famo`.",
    )
    decay: float = Field(
        0.001,
        ge=0,
        description="Parameter gamma of `task_weighting: famo`: the rate at which the task weights forget earlier "
        "rounds.",
    )
    normalization: Normalization = Field(
        "none",
        description="Normalization of deltas before averaging: `none`, or `fednova` to average deltas per optimizer "
        "step, so that clients with more steps don't dominate the model.",
    )

    @property
    def weights(self) -> Mapping[str, float]:
        """The weight of every task for `task_weighting: fixed`; empty for other weightings."""
        return self.task_weights or {}

    @property
    def preserves_norm(self) -> bool:
        """Whether the combined delta of shared parameters keeps the norm of the tasks' own deltas."""
        return self.scaling == "preserve"

    @field_validator("scaling", mode="wrap")
    @classmethod
    def _factor_or_preserve(cls, value: object, validate: ValidatorFunctionWrapHandler) -> object:
        try:
            scaling = validate(value)
        except ValidationError as error:
            if any(one["type"] == "value_error" for one in error.errors()):
                raise  # the section's own check, which says what is wrong with the number
            scaling = None
        if scaling is None or (isinstance(scaling, float) and scaling <= 0):
            raise ValueError("expected `preserve` or a number greater than 0")
        return scaling

    @field_validator("rule")
    @classmethod
    def _known_rule(cls, name: str) -> str:
        return require_known_or_reference(name, RULES)

    @field_validator("task_weighting")
    @classmethod
    def _known(cls, name: str) -> str:
        return require_known_or_reference(name, TASK_WEIGHTINGS)

    @model_validator(mode="after")
    def _options_have_a_rule(self) -> AggregationConfig:
        if self.rule_options is not None and self.rule in RULES:
            raise ValueError(f"`rule_options` are for a class of your own in `rule`, got `rule: {self.rule}`")
        return self

    @model_validator(mode="after")
    def _has_its_weights(self) -> AggregationConfig:
        fixed = self.task_weighting == "fixed"
        if fixed and not self.task_weights:
            raise ValueError("`task_weighting: fixed` needs `task_weights`, a weight for every task")
        if self.task_weights and not fixed:
            raise ValueError(f"`task_weights` needs `task_weighting: fixed`, got {self.task_weighting!r}")
        for task, weight in (self.task_weights or {}).items():
            if not weight > 0:
                raise ValueError(f"`task_weights`: expected a weight above 0 for {task!r}, got {weight}")
        return self


class ServerOptimizerConfig(Section):
    """Optimizer step from the current model along the averaged update. docs/aggregation.md has the formulas."""

    read_by = ("server",)

    name: str = Field(
        "fedavg",
        description=f"Server optimizer applied to the averaged update: {', '.join(OPTIMIZERS)}, or your own class as "
        "`module:Name`. With `fedavg` the average replaces the model.",
    )
    learning_rate: float | None = Field(
        None,
        gt=0,
        description="Learning rate of the server optimizer; `fedavg` doesn't use one. If not given, it is 1 for "
        "`fedavgm` and 0.01 for the other optimizers.",
    )
    beta_1: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Momentum of the server optimizer, from 0 to below 1; `fedavg` doesn't use it. If not given, it is "
        "0 for `fedadagrad` and 0.9 for the other optimizers.",
    )
    beta_2: float = Field(
        0.99,
        ge=0,
        lt=1,
        description="Decay rate of the second moment in the server optimizers `fedadam` and `fedyogi`, from 0 to "
        "below 1.",
    )
    tau: float = Field(
        1e-3,
        gt=0,
        description="Degree of adaptivity of the server optimizers `fedadagrad`, `fedadam` and `fedyogi`, added to the "
        "square root of the second moment.",
    )

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        return require_known_or_reference(name, OPTIMIZERS)

    def resolved(self) -> ResolvedServerOptimizer:
        """The section with the optimizer's own defaults for values that weren't given."""
        learning_rate, beta_1 = _DEFAULTS.get(self.name, (0.01, 0.9))
        values = {"learning_rate": learning_rate, "beta_1": beta_1} | self.model_dump(exclude_none=True)
        return ResolvedServerOptimizer.model_validate(values)


class ResolvedServerOptimizer(ServerOptimizerConfig):
    """The section `server_optimizer` with all values set, as an optimizer's constructor takes it."""

    learning_rate: float
    beta_1: float


_DEFAULTS = {"fedavgm": (1.0, 0.9), "fedadagrad": (0.01, 0.0)}
"""The default learning rate and momentum of the optimizers whose defaults aren't 0.01 and 0.9."""
