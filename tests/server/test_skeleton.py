"""The server's modules without values: the base moves out of them, and is never in memory twice."""

from pathlib import Path

import torch
from torch import nn
from transformers import BertConfig, BertModel

from fedmtl_core.model.modeling import MultiTaskModel
from fedmtl_core.tasks.adapters import AdapterSettings
from fedmtl_core.wire.layout import Component
from fedmtl_server.skeleton import Skeleton
from tests.support import specs

MIB = 2**20


def new_model(**settings):
    size = {"hidden_size": 256, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 512}
    adapters = AdapterSettings(rank=2, alpha=4.0, **settings)
    encoder = BertModel(BertConfig(vocab_size=40_000, **size))
    return MultiTaskModel(encoder, specs("sst2"), hidden_size=256, adapters=adapters)


def memory(of: str) -> int:
    """A line of this process's memory in /proc/self/status, in bytes."""
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith(of))
    return int(line.split()[1]) * 1024


def test_the_base_that_is_taken_has_the_values_of_the_model():
    for settings in ({"a_is_frozen": True}, {}):
        model = new_model(**settings)
        expected = Component.pack(
            "frozen", {name: one.detach().clone() for name, one in model.base()["frozen"].items()}
        )
        taken = Skeleton(model).take_base()["frozen"]
        assert taken.layout == expected.layout
        assert torch.equal(taken.buffer, expected.buffer)


def test_the_models_own_tensors_are_freed_when_the_base_is_taken():
    model = new_model()
    taken = Skeleton(model).take_base()["frozen"]
    assert all(one.untyped_storage().nbytes() == one.itemsize for one in model.base()["frozen"].values())
    assert {name: one.shape for name, one in model.base()["frozen"].items()} == {
        name: view.shape for name, view in taken.views().items()
    }


def test_tensors_that_share_memory_keep_their_values_until_both_are_taken():
    model = new_model()
    words = model.encoder.embeddings.word_embeddings
    model.encoder.extra = nn.Linear(256, 1000, bias=False)
    model.encoder.extra.weight = nn.Parameter(words.weight.data[5:1005], requires_grad=False)
    expected = {name: one.detach().clone() for name, one in model.base()["frozen"].items()}
    taken = Skeleton(model).take_base()["frozen"].views()
    assert taken.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(taken[name], value), name
