"""Restricts training of word embeddings to the words that occur in a client's rows.

Most of a small encoder is a table of some 30,000 word embeddings, but a client's texts may use only 2,000 of the words.
The other embeddings have no gradient, so training only applies weight decay to them. Leaving them out saves the memory
of their gradients and optimizer state, and a pass over them in each step. They get their decay at the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fedmtl_core.tasks.kinds import input_embeddings

MAX_SHARE = 0.5
"""If the rows use a larger share of the vocabulary than this, the embeddings aren't restricted."""


@contextmanager
def restrict_embeddings(
    encoder: nn.Module, vocabulary: Tensor | None, optimizer: torch.optim.Optimizer
) -> Iterator[None]:
    """Within the context, an encoder has only the word embeddings of a vocabulary; it takes the same token ids.

    Training gives the same result except for rounding. If that can't be guaranteed, nothing is restricted: if the
    embeddings are frozen or belong to another module too, or if their module does more than a plain lookup.

    Args:
        encoder: a `transformers` encoder.
        vocabulary: int64, ascending, the token ids that can occur; None if they aren't known.
        optimizer: the optimizer of the embeddings and other parameters: AdamW, or SGD without momentum.
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
    # Padding has no gradient in the restricted table either; if its id isn't in the vocabulary, no index is padding.
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
    """Return an encoder's word lookup; None unless it is a plain `nn.Embedding` used in one place."""
    lookup = input_embeddings(encoder)
    if type(lookup) is not nn.Embedding or not lookup.weight.requires_grad or lookup.max_norm is not None:
        return None
    places = [p for _, p in encoder.named_parameters(remove_duplicate=False) if p is lookup.weight]
    return lookup if len(places) == 1 and not lookup.sparse else None


class _Decay:
    """Accumulates the weight decay of a parameter without a gradient, over the steps of its optimizer."""

    def __init__(self, optimizer: torch.optim.Optimizer, parameter: Tensor):
        self.factor = 1.0
        self._parameter = parameter
        self._group = next(g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))
        self._hook = optimizer.register_step_pre_hook(self._before_step)

    def stop(self) -> None:
        self._hook.remove()

    def _before_step(self, *_: object) -> None:
        if self._parameter.grad is not None:  # otherwise the optimizer skips the parameter
            self.factor *= 1.0 - self._group["lr"] * self._group["weight_decay"]
