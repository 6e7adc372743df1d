"""Paired evaluations: the loss of a variant of a model, beside the model's loss on the same examples.

Differences of losses on the same examples vary much less than the losses themselves. Their mean and standard error say
whether the variant is better. The losses are calibrated (`fedmtl_core.tasks.calibration`), so the scale of the outputs
doesn't decide. Sums of several clients add up, so a task's figures are exactly those of all its clients'
examples together, in whatever order the clients are added.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Self

from fedmtl_core.tasks.evaluation import Evaluation

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True)
class PairedLoss:
    """The losses of a variant and of the model on the same examples."""

    num_examples: int
    """Number of examples, at least 1."""
    loss: float
    """Mean calibrated loss of the variant; the mean of the plain losses if those of single examples are unknown."""
    difference: float
    """Mean of the variant's loss minus the model's, over the examples; below 0 if the variant is better."""
    squared_deviations: float | None = None
    """Sum of the squared deviations of the examples' differences from `difference`; None if the losses of single
    examples are unknown."""

    @classmethod
    def of(cls, variant: npt.NDArray[np.float64], model: npt.NDArray[np.float64]) -> Self:
        """Return the paired loss of a variant and the model.

        Args:
            variant: the variant's losses, float64 `(examples,)`, of at least one example.
            model: the model's losses of the same examples in the same order.
        """
        differences, count = variant - model, len(variant)
        mean = math.fsum(differences) / count
        deviations = math.fsum((differences - mean) ** 2) if count > 1 else 0.0
        return cls(count, math.fsum(variant) / count, mean, deviations)

    @classmethod
    def pooled(cls, parts: Sequence[Self]) -> Self:
        """Return the paired loss over the examples of several clients together; the order of `parts` doesn't matter.

        Args:
            parts: at least one. If one of them has no squared deviations, the result has none.
        """
        if len(parts) == 1:
            return parts[0]
        count = sum(one.num_examples for one in parts)
        loss = sum(one.num_examples * Fraction(one.loss) for one in parts) / count
        mean = sum(one.num_examples * Fraction(one.difference) for one in parts) / count
        known = [one.squared_deviations for one in parts if one.squared_deviations is not None]
        deviations: float | None = None
        if len(known) == len(parts):
            between = sum(one.num_examples * (Fraction(one.difference) - mean) ** 2 for one in parts)
            deviations = float(sum(map(Fraction, known)) + between)
        return cls(count, float(loss), float(mean), deviations)

    @property
    def standard_error(self) -> float | None:
        """The standard error of `difference`; None for fewer than 2 examples, or without squared deviations."""
        if self.squared_deviations is None or self.num_examples < 2:
            return None
        return math.sqrt(self.squared_deviations / (self.num_examples - 1) / self.num_examples)


@dataclass(frozen=True)
class VariantEvaluation:
    """One client's evaluation of one variant of the model that it received."""

    name: str
    paired: PairedLoss | None
    """None if the variant's loss or outputs aren't finite: it is then infinitely worse than the model."""
    evaluation: Evaluation = field(default_factory=Evaluation)
    """The task's metrics of the variant; without any if the client doesn't report them."""

    def same_as(self, other: VariantEvaluation) -> bool:
        """Whether another evaluation is equal in all fields, except for the reasons of undefined metrics."""
        mine, theirs = (self.name, self.paired), (other.name, other.paired)
        return mine == theirs and self.evaluation.same_as(other.evaluation)
