"""Settings of low-rank adapters: the sections `model.adapters` and `sharing.adapters`."""

from __future__ import annotations

from collections.abc import Collection

from pydantic import Field, field_validator

from fedmtl_core.config.section import UINT32, Section, require_identified, shown
from fedmtl_core.tasks.adapters import AdapterAggregation, AdapterKind, AdapterSettings

OF_MATRICES: Collection[AdapterAggregation] = ("stack", "svd")
"""The aggregations that combine the products of the factors instead of the factors."""


class AdaptersConfig(Section):
    """Low-rank adapters beside the encoder's weights. Clients then train and send only the adapters and the heads."""

    read_by = ("server",)

    kind: AdapterKind = Field(
        "lora",
        description="Kind of the adapters: `lora` (LoRA, scaled by `alpha / rank`), `rslora` (scaled by `alpha` over "
        "the square root of `rank`), or `dora` (LoRA with a trained norm for each row of a weight).",
    )
    rank: int = Field(8, ge=1, le=UINT32, description="Rank of each adapter, the number of rows of its factor A.")
    alpha: float = Field(16.0, gt=0, description="Numerator of the factor on an adapter's product B A; see `kind`.")
    targets: list[str] | None = Field(
        None,
        min_length=1,
        description="Linear layers with an adapter: names of modules in the encoder, or their ends after a dot, such "
        "as `[query, value]`. If not given, all linear layers in the encoder's numbered layers have one.",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout probability of an adapter's input, from 0 to below 1.")
    aggregation: AdapterAggregation = Field(
        "freeze_a",
        description="Combination of the clients' adapters. `freeze_a` trains and averages B only; A keeps its random "
        "first values. `alternate` trains and averages B in odd rounds, A in even rounds. `average` averages both "
        "factors, which isn't the average of their products. `stack` adds the average of the products to the base and "
        "starts new adapters in each round. `svd` averages the products and cuts the result to the rank.",
    )
    ranks: dict[str, int] = Field(
        {},
        description="Ranks of single clients by client id, instead of `rank`; requires `aggregation: svd`. "
        "The server's model has the largest rank, and a client gets the first rows of A and columns of B.",
    )

    @field_validator("targets")
    @classmethod
    def _named(cls, targets: list[str] | None) -> list[str] | None:
        if targets is not None and (empty := [target for target in targets if not target.strip(". ")]):
            raise ValueError(f"expected the name of a linear layer, got {shown(empty[0])}")
        return targets

    @field_validator("ranks")
    @classmethod
    def _positive(cls, ranks: dict[str, int]) -> dict[str, int]:
        for client, rank in ranks.items():
            require_identified(client)
            if not 1 <= rank <= UINT32:
                raise ValueError(f"{client}: expected a rank of at least 1, got {rank}")
        return ranks

    @property
    def largest_rank(self) -> int:
        """The largest rank of any client."""
        return max([self.rank, *self.ranks.values()])

    def settings(self, seed: int, rank: int | None = None) -> AdapterSettings:
        """The adapters of an encoder.

        Args:
            seed: the run's seed.
            rank: the rank of the encoder's adapters; None for `rank`.
        """
        return AdapterSettings(
            rank=rank or self.rank,
            alpha=self.alpha,
            kind=self.kind,
            targets=tuple(self.targets or ()),
            dropout=self.dropout,
            a_is_frozen=self.aggregation == "freeze_a",
            seed=seed,
            is_stacked=self.aggregation == "stack",
        )


class FactorSharing(Section):
    """Sharing of the adapters' factors, instead of the sharing of the layers that they are in."""

    read_by = ("server",)

    a: str | None = Field(
        None,
        description="Tasks that share the factors A, with the values of `sharing.layers`. If not given, a factor is "
        "shared like the part of the encoder that contains it. With `aggregation: freeze_a`, A can't be given.",
    )
    b: str | None = Field(
        None,
        description="Tasks that share the factors B, and the norms of `kind: dora`, with the values of "
        "`sharing.layers`. If not given, a factor is shared like the part of the encoder that contains it.",
    )
