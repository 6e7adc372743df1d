"""A look at an encoder before anybody trains it: what comes out for two short texts.

An encoder's configuration doesn't say how wide its output is: OPT's may be projected to another width, Reformer's is
twice as wide as its hidden states. So two texts go through it, and what comes out is looked at.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fedmtl_core.errors import ModelUnavailableError, first_line
from fedmtl_core.tasks.kinds import word_embeddings

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.modeling_outputs import BaseModelOutput

_TOKENS = 7
"""How long the texts are: no multiple of anything, as the longest text of a batch may be."""


@torch.no_grad()
def output_width(encoder: PreTrainedModel, source: str) -> int:
    """The width of an encoder's output. The encoder is as it was afterwards.

    An encoder without memory for its numbers, on PyTorch's device `meta`, computes nothing; its configuration is taken
    at its word.

    Args:
        encoder: on CPU, as `transformers` has them.
        source: where it comes from, for messages.

    Raises:
        ModelUnavailableError: it can't be trained on texts of any length, gives no hidden state for each token, or its
            tokens don't see one another.
    """
    if next(encoder.parameters()).is_meta:
        return int(encoder.config.hidden_size)
    what = f"model {source!r} ({type(encoder).__name__})"
    with unchanged(encoder):
        _run(encoder, what, is_training=True)
        output = _run(encoder, what, is_training=False)
    states = getattr(output, "last_hidden_state", None)
    if not isinstance(states, Tensor) or states.ndim != 3 or states.shape[:2] != (2, _TOKENS):
        got = list(states.shape) if isinstance(states, Tensor) else "none"
        raise ModelUnavailableError(
            f"{what} gives no hidden state for each token: expected (2, {_TOKENS}, width) of two texts of {_TOKENS} "
            f"tokens, got {got}"
        )
    if not states.isnan().any() and torch.equal(states[0, 1:], states[1, 1:]):
        raise ModelUnavailableError(
            f"{what} computes no attention on this machine: another first token changes no other token's hidden "
            "state. Some encoders need code that is compiled for a GPU; take another one"
        )
    pooled = getattr(output, "pooler_output", None)
    if pooled is not None and pooled.shape[-1] != states.shape[-1]:
        raise ModelUnavailableError(
            f"{what} has a pooler of another width than its hidden states: {pooled.shape[-1]} and {states.shape[-1]}"
        )
    return states.shape[-1]


def _run(encoder: PreTrainedModel, what: str, *, is_training: bool) -> BaseModelOutput:
    ids = _two_texts(encoder)
    try:
        return encoder.train(is_training)(input_ids=ids, attention_mask=torch.ones_like(ids))
    except Exception as error:  # hundreds of families, each with errors of its own
        raise ModelUnavailableError(
            f"{what} can't be {'trained on' if is_training else 'given'} texts of any length; two texts of {_TOKENS} "
            f"tokens give: {first_line(error)}"
        ) from None


def _two_texts(encoder: PreTrainedModel) -> Tensor:
    """Token ids, `(2, _TOKENS)`, of which only the first differ."""
    words = word_embeddings(encoder)
    rows = len(words) if words is not None else getattr(encoder.config, "vocab_size", None) or 2 * _TOKENS
    ids = torch.arange(rows - _TOKENS, rows) % rows
    texts = torch.stack([ids, ids])
    texts[1, 0] = ids[1]
    return texts


@contextmanager
def unchanged(encoder: nn.Module) -> Iterator[None]:
    """Leave modules as they were: which parts and attributes they have, and what their buffers hold.

    A forward pass may change them. I-BERT follows the range of its activations, and BigBird replaces its attention by
    another one where texts are short.
    """
    modules = [(module, dict(vars(module))) for module in encoder.modules()]
    plain = (dict, OrderedDict)  # which a module's parts, and hooks, are in
    parts = [(inner, dict(inner)) for _, own in modules for inner in own.values() if type(inner) in plain]
    values = [(buffer, buffer.clone()) for buffer in encoder.buffers()]
    try:
        yield
    finally:
        for module, own in modules:
            vars(module).clear()
            vars(module).update(own)
        for inner, entries in parts:
            inner.clear()
            inner.update(entries)
        for buffer, value in values:
            buffer.copy_(value)
