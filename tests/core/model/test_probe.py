"""A look at an encoder: its width, what it can't do, and that nothing of it is changed."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import BigBirdConfig, BigBirdModel, OPTConfig, OPTModel
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling

from fedmtl_core.errors import ModelUnavailableError
from fedmtl_core.model.probe import output_width


class Encoder(nn.Module):
    """Adds to each token's embedding the mean of all, times `attention`."""

    def __init__(self, attention: float = 1.0):
        super().__init__()
        self.words = nn.Embedding(20, 6)
        self.attention = attention
        self.register_buffer("counted", torch.zeros(1))
        self.register_buffer("rebound", torch.zeros(1))
        self.calls: dict[str, int] = {}

    def get_input_embeddings(self) -> nn.Module:
        return self.words

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        self.counted += 1
        self.rebound = self.rebound + 1
        self.calls["forward"] = self.calls.get("forward", 0) + 1
        self.seen = input_ids
        words = self.words(input_ids)
        return BaseModelOutput(words + self.attention * words.mean(dim=1, keepdim=True))


def test_the_width_is_that_of_the_output_and_not_the_configurations():
    settings = OPTConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, ffn_dim=8, word_embed_proj_dim=6
    )
    assert output_width(OPTModel(settings), "here") == 6


@pytest.mark.parametrize("is_training", [True, False])
def test_an_encoder_is_afterwards_as_it_was(is_training):
    encoder = Encoder().train(is_training)
    buffers = dict(encoder.named_buffers())
    assert output_width(encoder, "here") == 6
    assert encoder.training is is_training
    assert (encoder.counted.item(), encoder.rebound.item(), encoder.calls) == (0, 0, {})
    assert not hasattr(encoder, "seen")
    assert all(buffer is buffers[name] for name, buffer in encoder.named_buffers())


def test_attention_that_short_texts_would_replace_is_still_there():
    settings = BigBirdConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, block_size=2
    )
    encoder = BigBirdModel(settings)
    attention = encoder.encoder.layer[0].attention.self
    output_width(encoder, "here")
    assert encoder.attention_type == "block_sparse"
    assert encoder.encoder.layer[0].attention.self is attention


def test_an_encoder_whose_tokens_do_not_see_one_another_is_refused():
    with pytest.raises(ModelUnavailableError, match=r"'here' \(Encoder\) computes no attention on this machine"):
        output_width(Encoder(attention=0.0), "here")


class Broken(Encoder):
    def __init__(self, output: Any):
        super().__init__()
        self.output = output

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        if isinstance(self.output, Exception):
            raise self.output
        return self.output


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (ValueError("a multiple of 64\nor not"), "can't be trained on texts of any length; .* give: a multiple of 64$"),
        (KeyError(), "can't be trained on texts of any length; .* give: KeyError$"),
        (
            BaseModelOutput(torch.zeros(2, 6)),
            r"expected the shape \(2, 7, width\) for two texts of 7 tokens, got \[2, 6\]",
        ),
        (
            BaseModelOutput(torch.zeros(2, 4, 6)),
            r"expected the shape \(2, 7, width\) for two texts of 7 tokens, got \[2, 4, 6\]",
        ),
        ((torch.zeros(2, 7, 6),), "got none"),
        (
            BaseModelOutputWithPooling(torch.randn(2, 7, 6), torch.zeros(2, 5)),
            "its pooler and its hidden states differ in width: 5 and 6",
        ),
    ],
)
def test_an_encoder_that_gives_no_hidden_states_is_refused_in_words(output, message):
    with pytest.raises(ModelUnavailableError, match=message):
        output_width(Broken(output), "here")
