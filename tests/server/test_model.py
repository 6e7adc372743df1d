"""The server's model."""

import pytest
import torch
from transformers import BertConfig, BertModel

from fedmtl_core.errors import LayoutMismatchError, UnknownTaskError
from fedmtl_server.model import MTLServerModel
from tests.support import OddEncoder, model_bytes, specs, tiny_model


def bert_tiny() -> BertModel:
    """BERT-tiny's architecture (Turc et al. 2019, arXiv:1908.08962), with random values."""
    return BertModel(
        BertConfig(vocab_size=30522, hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=512)
    )


def test_the_summary_gives_true_counts_for_bert_tiny():
    summary = MTLServerModel(bert_tiny(), specs("sst2", "qqp", "stsb"), hidden_size=128, base_model="b").summary()
    assert summary.shared_parameters == 4_385_920
    assert summary.head_parameters == {"sst2": 258, "qqp": 258, "stsb": 129}
    assert summary.total_parameters == 4_386_565
    assert summary.base_model == "b"


def test_parameters_set_are_parameters_got():
    model = tiny_model("sst2", "qqp")
    shared = {name: torch.full_like(tensor, 2.0) for name, tensor in model.get_shared_parameters().items()}
    model.set_shared_parameters(shared)
    head = {name: torch.full_like(tensor, 3.0) for name, tensor in model.get_task_head_parameters("qqp").items()}
    model.set_task_head_parameters("qqp", head)
    whole = model.get_model_slice_for_task("qqp")
    assert whole.keys() == shared.keys() | head.keys()
    for name, tensor in (shared | head).items():
        assert torch.equal(whole[name], tensor)
    assert model.module.encoder.dense.weight.eq(2.0).all()


def test_what_is_got_is_a_copy():
    model = tiny_model("sst2")
    model.get_shared_parameters()["encoder.dense.weight"].zero_()
    assert model.module.encoder.dense.weight.abs().sum() > 0


def test_a_head_set_leaves_everything_else_as_it_was():
    model = tiny_model("sst2", "qqp")
    before = model_bytes(model)
    model.set_task_head_parameters("sst2", {n: t + 1 for n, t in model.get_task_head_parameters("sst2").items()})
    after = model_bytes(model)
    assert after.pop("task:sst2") != before.pop("task:sst2")
    assert after == before


def test_a_wrong_set_changes_nothing():
    model = tiny_model("sst2")
    before = model_bytes(model)
    shared = model.get_shared_parameters()
    wrong = dict(shared) | {"encoder.dense.bias": torch.zeros(9)}
    with pytest.raises(LayoutMismatchError, match=r"encoder\.dense\.bias: expected float32 \[4\], got float32 \[9\]"):
        model.set_shared_parameters({name: tensor + 1 for name, tensor in wrong.items()})
    assert model_bytes(model) == before


@pytest.mark.parametrize("encoder", [OddEncoder, bert_tiny])
def test_a_task_added_leaves_every_other_parameter_bitwise_as_it_was(encoder):
    model = MTLServerModel(encoder(), specs("sst2", "qqp"), hidden_size=128)
    before = model_bytes(model)
    model.add_task(specs("stsb")[0])
    after = model_bytes(model)
    assert model.tasks == ("sst2", "qqp", "stsb")
    assert len(after.pop("task:stsb")) == 4 * 129
    assert after == before


def test_a_head_starts_from_the_same_values_whenever_it_is_added():
    early, late = tiny_model("stsb", "sst2"), tiny_model("sst2")
    late.add_task(specs("stsb")[0])
    assert model_bytes(early)["task:stsb"] == model_bytes(late)["task:stsb"]


def test_an_unknown_task_is_named_with_those_there_are():
    with pytest.raises(UnknownTaskError, match="expected one of the tasks sst2, got 'cola'"):
        tiny_model("sst2").get_model_slice_for_task("cola")


def test_installing_a_component_of_another_layout_changes_nothing():
    model, other = tiny_model("sst2"), MTLServerModel(OddEncoder(), specs("sst2"), hidden_size=4)
    before = model_bytes(model)
    with pytest.raises(LayoutMismatchError):
        model.install({"task:sst2": model.components["task:sst2"].clone(), "shared": other.components["shared"]})
    assert model_bytes(model) == before
