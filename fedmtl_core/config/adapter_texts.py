"""The settings of adapters in words, for commands, doctors and model cards."""

from __future__ import annotations

from fedmtl_core.config.adapters import AdaptersConfig


def layers_in_words(adapters: AdaptersConfig) -> str:
    """Return the layers that have adapters, in words."""
    if adapters.targets is None:
        return "all linear layers in the encoder's numbered layers"
    return f"the layers named {', '.join(adapters.targets)}"


def adapters_in_words(adapters: AdaptersConfig) -> str:
    """Return the settings of adapters in words: kind, rank, alpha, layers and aggregation."""
    ranks = [adapters.rank, *adapters.ranks.values()]
    rank = f"rank {adapters.rank}" if min(ranks) == max(ranks) else f"ranks {min(ranks)} to {max(ranks)}"
    return (
        f"{adapters.kind} of {rank}, alpha {adapters.alpha:g}, in {layers_in_words(adapters)}; "
        f"aggregation: {adapters.aggregation}"
    )
