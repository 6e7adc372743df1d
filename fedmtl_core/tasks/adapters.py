"""Settings of low-rank adapters, as the configuration gives them and the training plan sends them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

AdapterKind = Literal["lora", "rslora", "dora"]
"""LoRA (Hu et al. 2021, arXiv:2106.09685), rsLoRA (Kalajdzievski 2023, arXiv:2312.03732), or DoRA (Liu et al. 2024,
arXiv:2402.09353)."""

AdapterAggregation = Literal["freeze_a", "alternate", "average", "stack", "svd"]
"""The way in which the server combines the clients' factors; see docs/adapters.md."""

Factor = Literal["a", "b"]
"""A factor of an adapter. DoRA's norms count as part of B."""
FACTORS: tuple[Factor, ...] = get_args(Factor)


def factor_in_turn(round_: int) -> Factor:
    """Return the factor that a round trains if the factors are trained in turn: B first, since A has no gradient
    while B is 0.

    Args:
        round_: counted from 1.
    """
    return "b" if round_ % 2 else "a"


@dataclass(frozen=True)
class AdapterSettings:
    """The adapters of an encoder: beside each weight W, `(outputs, inputs)`, of a linear layer, the factors A,
    `(rank, inputs)`, and B, `(outputs, rank)`. The layer computes with W + `scale` · B A."""

    rank: int
    alpha: float
    kind: AdapterKind = "lora"
    targets: tuple[str, ...] = ()
    """Names of linear layers in the encoder, or their ends after a `.`; empty for all that are in numbered layers."""
    dropout: float = 0.0
    """The dropout probability of an adapter's input."""
    a_is_frozen: bool = False
    """Whether the factors A keep their first values, and belong to the base."""
    seed: int = 42
    """The seed of the first values of A."""
    is_stacked: bool = False
    """Whether the server adds each round's products B A to the adapted weights, and then starts new adapters."""

    @property
    def scale(self) -> float:
        """The factor on B A."""
        return self.alpha / (math.sqrt(self.rank) if self.kind == "rslora" else self.rank)
