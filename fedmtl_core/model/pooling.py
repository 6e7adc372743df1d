"""Pools an encoder's output into one vector per text.

A text's vector doesn't depend on the other texts in its batch. Padding is moved behind the tokens before encoding, on
whichever side the tokenizer pads: encoders number positions from the first column, and poolers use the first column.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fedmtl_core.tasks.plan import Pooling

if TYPE_CHECKING:
    from transformers.modeling_outputs import BaseModelOutput


def is_token(encoder: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor | None:
    """Return the positions with a token instead of padding, bool `(batch, tokens)`; None for inputs without tokens.

    Without an attention mask, padding is recognized by its id; without a padding id, there is no padding.
    """
    if "attention_mask" in inputs:
        return inputs["attention_mask"].bool()
    if "input_ids" not in inputs:
        return None
    padding = getattr(getattr(encoder, "config", None), "pad_token_id", None)
    ids = inputs["input_ids"]
    return torch.ones_like(ids, dtype=torch.bool) if padding is None else ids != padding


def padded_behind(inputs: Mapping[str, Tensor], tokens: Tensor | None) -> dict[str, Tensor]:
    """Shift inputs so that every row begins with its first token: padding in front moves behind the tokens.

    Args:
        inputs: each `(batch, tokens, …)`; a tensor of another shape is unchanged.
        tokens: see `is_token`.
    """
    if tokens is None or not tokens.numel():
        return dict(inputs)
    shifts = tokens.int().argmax(dim=1)  # position of the first token; 0 for a row without tokens
    if not shifts.any():
        return dict(inputs)
    batch, length = tokens.shape
    rows = torch.arange(batch, device=tokens.device)[:, None]
    columns = (torch.arange(length, device=tokens.device) + shifts[:, None]) % length
    return {name: one[rows, columns] if one.shape[:2] == tokens.shape else one for name, one in inputs.items()}


def encode_texts(encoder: nn.Module, inputs: Mapping[str, Tensor], pooling: Pooling) -> Tensor:
    """Return the vector of each text that its head sees, `(batch, hidden_size)`.

    Args:
        encoder: returns a Hugging Face model output.
        inputs: a tokenizer's output, each tensor `(batch, tokens)`, padded on either side.
        pooling: the tokens that the vector is made from.
    """
    inputs = padded_behind(inputs, is_token(encoder, inputs))
    return _POOLING[pooling](encoder(**inputs), is_token(encoder, inputs))


def encode_tokens(encoder: nn.Module, inputs: Mapping[str, Tensor], wanted: Tensor | None = None) -> Tensor:
    """Return the hidden states of tokens, `(wanted tokens, hidden_size)`, row by row.

    Args:
        encoder: returns a Hugging Face model output.
        inputs: a tokenizer's output, each tensor `(batch, tokens)`, padded on either side.
        wanted: the tokens, bool `(batch, tokens)`; None for all tokens except padding.
    """
    tokens = is_token(encoder, inputs)
    moved = padded_behind(inputs, tokens)
    wanted = is_token(encoder, moved) if wanted is None else padded_behind({"wanted": wanted}, tokens)["wanted"]
    states: Tensor = encoder(**moved).last_hidden_state[wanted]
    return states


def _first(output: BaseModelOutput, tokens: Tensor | None) -> Tensor:
    """Return the output of the encoder's own pooler if it has one, else the first token's hidden state."""
    own: Tensor | None = getattr(output, "pooler_output", None)
    if own is not None:
        return own
    first: Tensor = output.last_hidden_state[:, 0]
    return first


def _mean(output: BaseModelOutput, tokens: Tensor | None) -> Tensor:
    """Return the mean of the hidden states of all tokens."""
    hidden: Tensor = output.last_hidden_state
    mask = _present(hidden, tokens).unsqueeze(-1).to(hidden.dtype)
    return (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def _last(output: BaseModelOutput, tokens: Tensor | None) -> Tensor:
    """Return the last token's hidden state."""
    hidden: Tensor = output.last_hidden_state
    number = torch.arange(hidden.shape[1], device=hidden.device)
    last = (_present(hidden, tokens) * number).argmax(dim=1)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]


def _present(hidden: Tensor, tokens: Tensor | None) -> Tensor:
    return torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device) if tokens is None else tokens


_Pool = Callable[["BaseModelOutput", Tensor | None], Tensor]
_POOLING: Mapping[Pooling, _Pool] = {"cls": _first, "mean": _mean, "last": _last}
