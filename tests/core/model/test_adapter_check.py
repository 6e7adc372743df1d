"""The check of adapters: layers that are never trained, or have no effect, and an encoder that stays as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model, LongformerConfig, LongformerModel
from transformers.modeling_outputs import BaseModelOutput

from fedmtl_core.model.adapter_check import check_adapters
from fedmtl_core.model.adapters import adapted_layers, inject
from fedmtl_core.tasks.adapters import AdapterSettings

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}


class TorchEncoder(nn.Module):
    """PyTorch's own encoder, which has a fast path in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 16)
        self.layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 24, batch_first=True), 2)

    def get_input_embeddings(self) -> nn.Module:
        return self.words

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return BaseModelOutput(self.layers(self.words(input_ids), src_key_padding_mask=~attention_mask.bool()))


class Dropping(nn.Module):
    """Leaves its only layer out in training, as stochastic depth does at random."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.layer = nn.Embedding(20, 8), nn.Linear(8, 8)

    def get_input_embeddings(self) -> nn.Module:
        return self.words

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        words = self.words(input_ids)
        return BaseModelOutput(words if self.training else words + self.layer(words))


def bert(**more: Any) -> nn.Module:
    return BertModel(BertConfig(**SIZES, **more))


def found(encoder: nn.Module, *targets: str, pooling: Any = "cls", kind: Any = "lora") -> list[str]:
    """The remarks about an encoder with adapters, which leave it as it was."""
    inject(encoder, AdapterSettings(rank=2, alpha=4.0, kind=kind, targets=targets))
    encoder.train()
    values = {name: value.clone() for name, value in encoder.state_dict().items()}
    trained = {name: one.requires_grad for name, one in encoder.named_parameters()}
    random = torch.random.get_rng_state()
    remarks = [str(remark) for remark in check_adapters(encoder, pooling).remarks]
    assert all(torch.equal(value, values[name]) for name, value in encoder.state_dict().items())
    assert trained == {name: one.requires_grad for name, one in encoder.named_parameters()}
    assert torch.equal(random, torch.random.get_rng_state())
    assert encoder.training
    assert not any("forward" in vars(layer) for layer in adapted_layers(encoder).values())
    return remarks


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("pooling", ["cls", "mean", None])
def test_adapters_in_all_layers_are_trained_and_used(kind, pooling):
    assert found(bert(), pooling=pooling, kind=kind) == []


def test_conv1d_layers_are_trained_and_used():
    encoder = GPT2Model(GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=1))
    assert found(encoder, pooling="last") == []
    assert len(adapted_layers(encoder)) == 8


def test_a_pooler_that_no_head_sees_is_never_trained():
    assert found(bert(), "pooler.dense", "query") == []
    (remark,) = found(bert(), "dense", "query", pooling="mean")
    assert "model.adapters.targets" in remark
    assert "never be trained, since the heads' input doesn't depend on them: pooler.dense;" in remark
    assert "such as [query, output.dense, intermediate.dense]" in remark


def test_attention_to_global_tokens_is_never_trained_without_them():
    encoder = LongformerModel(LongformerConfig(attention_window=4, max_position_embeddings=64, **SIZES))
    (remark,) = found(encoder, pooling="mean")
    assert "encoder.layer.0.attention.self.query_global" in remark
    assert "such as [query, key, value, " in remark


def test_pytorchs_encoder_ignores_adapters_in_evaluation():
    unused, skipped = found(TorchEncoder())
    assert "never be trained" in unused
    assert "layers.layers.0.self_attn.out_proj, layers.layers.1.self_attn.out_proj;" in unused
    assert "no effect in evaluation" in skipped
    assert "layers.layers.0.linear1, layers.layers.0.linear2, layers.layers.1.linear1" in skipped
    torch.backends.mha.set_fastpath_enabled(False)  # as the remark says
    try:
        assert found(TorchEncoder(), "linear1", "linear2") == []
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_a_layer_that_training_leaves_out_at_random_is_trained():
    assert found(Dropping(), "layer") == []


@pytest.mark.parametrize("targets", [("query",), ("query", "key")])
def test_layers_that_share_a_weight_or_are_one_module_are_named(targets):
    tied, same = bert(), bert()
    first, second = (tied.encoder.layer[number].attention.self for number in (0, 1))
    second.query.weight = first.query.weight
    same.encoder.layer[1].attention.self.query = same.encoder.layer[0].attention.self.query
    for encoder in (tied, same):
        (remark,) = found(encoder, *targets)
        assert "share their weight with another part" in remark
        expected = "encoder.layer.0.attention.self.query (with encoder.layer.1.attention.self.query)"
        assert expected in remark
        assert "key" not in remark


def test_weights_in_half_precision_are_refused():
    (remark,) = found(bert().half(), "query")
    assert remark.startswith("model.adapters: adapters need weights in float32, got float16 in encoder.layer.0.")


def test_an_encoder_that_takes_other_inputs_gives_a_warning():
    encoder = nn.Module()
    encoder.layer = nn.Linear(3, 3)
    inject(encoder, AdapterSettings(rank=2, alpha=4.0, targets=("layer",)))
    (remark,) = check_adapters(encoder, "cls").remarks
    assert not remark.is_error
    assert "not tried" in remark.found
