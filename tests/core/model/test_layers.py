"""Which modules of an encoder are a layer, and configurations of the first layers alone."""

from types import SimpleNamespace

import pytest
from torch import nn
from transformers import (
    AutoConfig,
    DebertaV2Config,
    FunnelConfig,
    FunnelModel,
    Gemma3TextConfig,
    LongformerConfig,
    XLMConfig,
    XLMModel,
)

from fedmtl_core.errors import ModelUnavailableError
from fedmtl_core.model.layers import keep_first_layers, layers_of, parts_of

FUNNEL = {"vocab_size": 9, "d_model": 8, "n_head": 1, "d_head": 8, "d_inner": 8}


def numbered(encoder: nn.Module) -> dict[int, set[str]]:
    """The modules of each layer."""
    found: dict[int, set[str]] = {}
    for name, number in layers_of(encoder).items():
        found.setdefault(number, set()).add(name)
    return found


def stack(*, layers: int, **parts: nn.Module) -> nn.Module:
    """A module whose configuration says how many layers it has."""
    encoder = nn.Module()
    encoder.config = SimpleNamespace(num_hidden_layers=layers)
    for name, part in parts.items():
        encoder.add_module(name, part)
    return encoder


def linears(count: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(2, 2) for _ in range(count))


def test_a_layer_of_xlm_is_its_modules_in_all_four_lists():
    encoder = XLMModel(XLMConfig(vocab_size=9, emb_dim=8, n_layers=2, n_heads=1))
    lists = ("attentions", "layer_norm1", "ffns", "layer_norm2")
    assert numbered(encoder) == {number: {f"{name}.{number}" for name in lists} for number in (0, 1)}
    part_of = parts_of(encoder)
    assert {part_of(name) for name, _ in encoder.named_parameters() if ".1." in name} == {"1"}
    assert part_of("layer_norm_emb.weight") == "rest"
    assert part_of("embeddings.weight") == "embeddings"


def test_a_layer_of_funnel_is_counted_through_its_blocks():
    encoder = FunnelModel(FunnelConfig(**FUNNEL, block_sizes=[1, 2], num_decoder_layers=2))
    assert numbered(encoder) == {0: {"encoder.blocks.0.0"}, 1: {"encoder.blocks.1.0"}, 2: {"encoder.blocks.1.1"}}
    assert parts_of(encoder)("decoder.layers.0.ffn.linear_1.weight") == "rest"


def test_two_stacks_of_equally_many_layers_are_not_told_apart():
    assert layers_of(FunnelModel(FunnelConfig(**FUNNEL, block_sizes=[1, 1], num_decoder_layers=2))) == {}
    one, other = nn.Module(), nn.Module()
    one.layers, other.layers = linears(3), linears(3)
    assert layers_of(stack(layers=3, one=one, other=other)) == {}


def test_lists_of_other_lengths_and_lists_within_a_layer_are_no_layers():
    layer = nn.Module()
    layer.experts = linears(2)
    encoder = stack(layers=2, heads=linears(3), layer=nn.ModuleList([layer, nn.Linear(2, 2)]))
    assert numbered(encoder) == {0: {"layer.0"}, 1: {"layer.1"}}


@pytest.mark.parametrize(
    ("settings", "lists"),
    [
        (LongformerConfig(num_hidden_layers=4, attention_window=[4, 8, 12, 16]), {"attention_window": [4, 8, 12]}),
        (
            Gemma3TextConfig(num_hidden_layers=4, layer_types=["full_attention"] + ["sliding_attention"] * 3),
            {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"]},
        ),
        (
            DebertaV2Config(num_hidden_layers=4, pos_att_type=["a", "b", "c", "d"]),
            {"pos_att_type": ["a", "b", "c", "d"]},
        ),
    ],
)
def test_settings_with_an_entry_for_each_layer_are_cut_with_the_layers(settings, lists):
    keep_first_layers(settings, "here", 3)
    again = AutoConfig.for_model(**settings.to_dict())
    assert again.num_hidden_layers == 3
    for name, expected in lists.items():
        assert list(getattr(again, name)) == expected


def test_a_configuration_that_reads_itself_otherwise_is_refused():
    settings = AutoConfig.for_model(
        "embedding_gemma2_text",
        num_hidden_layers=3,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],  # the last has to be full
    )
    with pytest.raises(
        ModelUnavailableError, match=r"num_hidden_layers: here: .*can't be reduced to 2 of its 3 layers"
    ):
        keep_first_layers(settings, "here", 2)


def test_all_layers_leave_a_configuration_as_it_is():
    settings = FunnelConfig(block_sizes=[1, 2])  # which can't be cut
    keep_first_layers(settings, "here", 3)
    assert settings.block_sizes == [1, 2]


def test_a_configuration_without_layers_says_so():
    settings = AutoConfig.for_model("embedding_gemma2")  # text, pictures and sound, each with layers of its own
    with pytest.raises(ModelUnavailableError, match=r"the configuration of .* gives no number of layers"):
        keep_first_layers(settings, "here", 1)
