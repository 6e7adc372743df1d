"""Training the word embeddings of those words alone that a client's rows have.

Most of a small encoder is a table with a row for each of some 30,000 words, of which a client's texts may have 2,000.
The others have no gradient: all that training does to them is weight decay. Left out, they cost neither the gradients'
memory nor the optimiser's, nor a pass over them in each step, and get their decay at the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fedmtl_core.tasks.kinds import input_embeddings

MAX_SHARE = 0.5
"""Where rows have more of the vocabulary than this, it stays whole."""


@contextmanager
def restrict_embeddings(
    encoder: nn.Module, vocabulary: Tensor | None, optimizer: torch.optim.Optimizer
) -> Iterator[None]:
    """While it is entered, an encoder has the word embeddings of a vocabulary alone; it takes the same token ids.

    The result of training is the same but for rounding. Nothing is done where that couldn't be promised: where the
    embeddings are frozen, or are another module's too, or their lookup does more than to look up.

    Args:
        encoder: as `transformers` has them.
        vocabulary: int64, the token ids that come, ascending; None if that isn't known.
        optimizer: of the embeddings among others: AdamW, or SGD without momentum.
    """
    lookup = _lookup(encoder)
    if lookup is None or vocabulary is None or len(vocabulary) > MAX_SHARE * lookup.num_embeddings:
        yield
        return
    weight, padding = lookup.weight, lookup.padding_idx
    whole = weight.data
    ids = vocabulary.to(whole.device)
    places = torch.full((len(whole),), -1, device=whole.device)
    places[ids] = torch.arange(len(ids), device=whole.device)
    decay = _Decay(optimizer, weight)
    hook = lookup.register_forward_pre_hook(
        lambda _, args, kwargs: (tuple(places[one] for one in args), {key: places[one] for key, one in kwargs.items()}),
        with_kwargs=True,
    )
    weight.grad, weight.data = None, whole[ids]
    # Padding has no gradient there either; without it among the ids no place is padding's.
    lookup.padding_idx = None if padding is None or places[padding] < 0 else int(places[padding])
    try:
        yield
    finally:
        hook.remove()
        decay.stop()
        trained, weight.grad, weight.data, lookup.padding_idx = weight.data, None, whole, padding
        if decay.factor != 1.0:
            whole.mul_(decay.factor)
        whole[ids] = trained


def _lookup(encoder: nn.Module) -> nn.Embedding | None:
    """An encoder's lookup of words; None if another one than PyTorch's own, or not that alone."""
    lookup = input_embeddings(encoder)
    if type(lookup) is not nn.Embedding or not lookup.weight.requires_grad or lookup.max_norm is not None:
        return None
    places = [p for _, p in encoder.named_parameters(remove_duplicate=False) if p is lookup.weight]
    return lookup if len(places) == 1 and not lookup.sparse else None


class _Decay:
    """What weight decay makes of a parameter that has no gradient of its own, while its optimiser steps."""

    def __init__(self, optimizer: torch.optim.Optimizer, parameter: Tensor):
        self.factor = 1.0
        self._parameter = parameter
        self._group = next(g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))
        self._hook = optimizer.register_step_pre_hook(self._before_step)

    def stop(self) -> None:
        self._hook.remove()

    def _before_step(self, *_: object) -> None:
        if self._parameter.grad is not None:  # else the optimiser passes it by
            self.factor *= 1.0 - self._group["lr"] * self._group["weight_decay"]
