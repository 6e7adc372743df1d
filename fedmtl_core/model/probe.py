"""Probes an encoder before training: encodes two short texts and checks the output.

A configuration doesn't give the output's width: OPT may project it, and Reformer's is twice its hidden states' width.
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
"""Length of the texts in tokens: no multiple of a likely block size, as the longest text of a batch may be."""


@torch.no_grad()
def output_width(encoder: PreTrainedModel, source: str) -> int:
    """Return the width of an encoder's output. The encoder is unchanged afterwards.

    For an encoder on PyTorch's device `meta`, which has no memory for values, the width is the configuration's.

    Args:
        encoder: a `transformers` encoder on CPU.
        source: the encoder's name, for messages.

    Raises:
        ModelUnavailableError: the encoder can't be trained on texts of any length, returns no hidden state per token,
            or computes tokens independently of each other.
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
            f"{what} returns no hidden state per token: expected the shape (2, {_TOKENS}, width) for two texts of "
            f"{_TOKENS} tokens, got {got}"
        )
    if not states.isnan().any() and torch.equal(states[0, 1:], states[1, 1:]):
        raise ModelUnavailableError(
            f"{what} computes no attention on this machine: changing the first token changes no other token's hidden "
            "state. Some encoders need code that is compiled for a GPU; use another encoder"
        )
    pooled = getattr(output, "pooler_output", None)
    if pooled is not None and pooled.shape[-1] != states.shape[-1]:
        raise ModelUnavailableError(
            f"{what}: its pooler and its hidden states differ in width: {pooled.shape[-1]} and {states.shape[-1]}; use "
            "another encoder"
        )
    return states.shape[-1]


def _run(encoder: PreTrainedModel, what: str, *, is_training: bool) -> BaseModelOutput:
    ids = two_texts(encoder)
    try:
        return encoder.train(is_training)(input_ids=ids, attention_mask=torch.ones_like(ids))
    except Exception as error:  # each of hundreds of model families raises its own errors
        raise ModelUnavailableError(
            f"{what} can't {'be trained on' if is_training else 'encode'} texts of any length; two texts of {_TOKENS} "
            f"tokens give: {first_line(error)}"
        ) from None


def two_texts(encoder: nn.Module) -> Tensor:
    """Return the token ids of two texts, `(2, 7)`, which differ only in the first token."""
    words, config = word_embeddings(encoder), getattr(encoder, "config", None)
    rows = len(words) if words is not None else getattr(config, "vocab_size", None) or 2 * _TOKENS
    ids = torch.arange(rows - _TOKENS, rows) % rows
    texts = torch.stack([ids, ids])
    texts[1, 0] = ids[1]
    return texts


@contextmanager
def unchanged(encoder: nn.Module) -> Iterator[None]:
    """Restore modules after the context: their submodules, attributes and buffers.

    A forward pass may change them. I-BERT tracks the range of its activations, and BigBird replaces its attention
    module for short texts.
    """
    modules = [(module, dict(vars(module))) for module in encoder.modules()]
    plain = (dict, OrderedDict)  # the types in which a module stores submodules and hooks
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
