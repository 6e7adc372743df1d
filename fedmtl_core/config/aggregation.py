"""How updates become the next model: what is left of each, what each counts for, and how the model moves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, field_validator, model_validator

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
    """What becomes of updates by how far they move the model."""

    action: NormAction = Field(
        "report",
        description="The L2 norm of what an update changes is measured for each component, to `report` it, to `clip` "
        "(scale down) what is beyond a bound before it is averaged, or to `refuse` such an update; or it isn't: `none`",
    )
    bound: float | None = Field(None, gt=0, description="For `clip` and `refuse`: the largest norm of a component")
    median_factor: float | None = Field(
        None,
        gt=1,
        description="Likewise, as so many times the median of the norms that counted in recent rounds; of both the "
        "smaller one holds",
    )
    window: int = Field(5, ge=1, description="For `median_factor`: over so many rounds, the last that changed it")
    model_factor: float | None = Field(
        1e6,
        gt=1,
        description="With any `action` but `none`, an update whose delta has a norm above so many times the model's "
        "own (of the same component, its elements taken as 1 on average if they are smaller) is refused; `null` for no "
        "limit",
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
    """What protects the model from updates that would harm it."""

    norms: NormsConfig = NormsConfig()
    max_client_share: float | None = Field(
        0.99,
        ge=0.5,
        lt=1,
        description="The largest share of a component's examples that one client counts for, where several contribute "
        "to it: what it says beyond that is cut; `null` for no limit",
    )


class AggregationConfig(Section):
    """What updates come to, what each task counts for in the encoder, and each client's steps. docs/aggregation.md has
    the formulas."""

    rule: str = Field(
        "mean",
        description="What a component becomes of its updates: their weighted `mean`, or what a class of your own makes "
        "of all of them at once, as `module:Name`",
    )
    task_weighting: str = Field(
        "examples",
        description=f"Each task's weight in the encoder's average: {', '.join(TASK_WEIGHTINGS)}, or a class of your "
        "own as `module:Name`; with `examples` a task weighs what its clients have trained on",
    )
    task_weights: dict[str, float] | None = Field(None, description="For `fixed`: every task's weight")
    scaling: float = Field(
        1.0,
        gt=0,
        description="What the tasks' weighted deltas are multiplied with before the encoder moves by them, but with no "
        "more than the number of tasks that share in the round: then each moves it as far as it would alone",
    )
    temperature: float = Field(
        2.0, gt=0, description="For `temperature`: its T; 1 is `examples`, and the larger, the closer to `uniform`"
    )
    conflict_aversion: float = Field(
        0.5, ge=0, lt=1, description="For `cagrad`: its c, how far from the tasks' mean it may go; 0 is the mean"
    )
    asymmetry: float = Field(1.5, ge=0, description="For `gradnorm`: its alpha, how much slow tasks are favoured")
    learning_rate: float = Field(
        0.025, gt=0, description="For `uncertainty`, `gradnorm` and `famo`: how fast the weights follow the losses"
    )
    decay: float = Field(0.001, ge=0, description="For `famo`: its gamma, how fast the weights forget")
    normalization: Normalization = Field(
        "none",
        description="With `fednova` deltas are averaged by optimiser step, so that clients who take more of them "
        "don't pull the model to themselves",
    )

    @property
    def weights(self) -> Mapping[str, float]:
        """Every task's weight for `fixed`; empty for other weightings."""
        return self.task_weights or {}

    @field_validator("rule")
    @classmethod
    def _known_rule(cls, name: str) -> str:
        return require_known_or_reference(name, RULES)

    @field_validator("task_weighting")
    @classmethod
    def _known(cls, name: str) -> str:
        return require_known_or_reference(name, TASK_WEIGHTINGS)

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
    """How the model moves, once it is known where the updates' average lies. docs/aggregation.md has the formulas."""

    name: str = Field(
        "fedavg",
        description=f"What the average is to the model: {', '.join(OPTIMIZERS)}, or a class of your own as "
        "`module:Name`; with `fedavg` the average is the model",
    )
    learning_rate: float | None = Field(
        None, gt=0, description="The server's; if not given, 1 for `fedavgm` and 0.01 for the others"
    )
    beta_1: float | None = Field(
        None, ge=0, lt=1, description="Momentum; if not given, 0 for `fedadagrad` and 0.9 for the others"
    )
    beta_2: float = Field(0.99, ge=0, lt=1, description="For `fedadam` and `fedyogi`: decay of the second moment")
    tau: float = Field(
        1e-3, gt=0, description="For all but `fedavgm`: degree of adaptivity, added to the second moment's root"
    )

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        return require_known_or_reference(name, OPTIMIZERS)

    def resolved(self) -> ResolvedServerOptimizer:
        """The section with the defaults of its optimiser in place of the values that weren't given."""
        learning_rate, beta_1 = _DEFAULTS.get(self.name, (0.01, 0.9))
        values = {"learning_rate": learning_rate, "beta_1": beta_1} | self.model_dump(exclude_none=True)
        return ResolvedServerOptimizer.model_validate(values)


class ResolvedServerOptimizer(ServerOptimizerConfig):
    """The section `server_optimizer` as an optimiser is constructed with it: every value is there."""

    learning_rate: float
    beta_1: float


_DEFAULTS = {"fedavgm": (1.0, 0.9), "fedadagrad": (0.01, 0.0)}
"""The default learning rate and momentum of optimisers that have others than 0.01 and 0.9."""
