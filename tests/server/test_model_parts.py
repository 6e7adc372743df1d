"""What a server's model is made of, without a server: names, blocks of tasks, layouts and counts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedmtl_core.errors import ConfigError
from fedmtl_core.model.modeling import MultiTaskModel
from fedmtl_core.model.sharing import SharingRules
from fedmtl_server.model import MTLServerModel
from fedmtl_server.model_parts import ModelParts
from fedmtl_server.skeleton import Skeleton
from tests.support import specs

TOGETHER = (("sst2", "qqp", "stsb"),)
PAIR = (("sst2", "qqp"), ("stsb",))


class Layered(nn.Module):
    """Embeddings, two layers and a norm behind them; four numbers wide."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(2, 4)
        self.layer = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.last_norm = nn.LayerNorm(4)


def layered() -> MultiTaskModel:
    return MultiTaskModel(Layered(), specs("sst2", "qqp", "stsb"), hidden_size=4)


def parts_of(**rules) -> ModelParts:
    return ModelParts.of(layered(), SharingRules(**rules))


def test_the_encoders_parameters_are_listed_by_layer():
    encoder = parts_of().encoder
    assert list(encoder) == ["embeddings", "0", "1", "rest"]
    assert encoder["1"] == ("encoder.layer.1.weight", "encoder.layer.1.bias")


def test_parts_that_move_leave_the_parts_before_as_they_were():
    parts = parts_of()
    moved = parts.moved({"1": PAIR})
    assert moved.blocks("encoder.layer.1.bias") == PAIR
    assert moved.blocks("encoder.layer.0.bias") == TOGETHER
    assert parts.blocks("encoder.layer.1.bias") == TOGETHER
    assert moved.moved({}).table == parts.table  # what has moved is said in full each time


def test_what_the_configuration_shares_by_name_is_not_movable_unless_it_is_named():
    parts = parts_of(layers={"1": "task"}, norms="local")
    assert list(parts.movable(None)) == [
        "embeddings",
        "0",
    ]  # `rest` is a norm alone, and norms have a rule of their own
    assert list(parts.movable(["1"])) == ["1"]
    with pytest.raises(ConfigError, match="the encoder has no 7; it has embeddings, 0, 1, rest"):
        parts.movable(["7"])


def test_layouts_are_those_of_the_components_that_a_model_has():
    rules = SharingRules(groups={"pairs": ["qqp", "stsb"]}, layers={"1": "group"})
    model = MTLServerModel(Layered(), specs("sst2", "qqp", "stsb"), hidden_size=4, sharing=rules)
    assert model.parts.layouts() == [one.layout for one in model.components.values()]
    counts = {scope: one.layout.num_elements for scope, one in model.components.items()}
    assert model.parts.summary("b").scope_parameters == counts


def test_a_layer_that_two_blocks_share_is_kept_twice_and_local_parameters_not_at_all():
    assert parts_of().encoder_elements() == parts_of().kept_encoder_elements() == 8 + 20 + 20 + 8
    moved = parts_of().moved({"1": PAIR})
    assert (moved.encoder_elements(), moved.kept_encoder_elements()) == (56, 76)
    assert parts_of(norms="local").kept_encoder_elements() == 48


def test_a_model_gets_other_parts_when_a_task_is_added():
    model = MTLServerModel(Layered(), specs("sst2", "qqp"), hidden_size=4)
    before = model.parts
    model.add_task(specs("stsb")[0])
    assert (before.tasks, model.parts.tasks) == (("sst2", "qqp"), ("sst2", "qqp", "stsb"))


def test_an_emptied_skeleton_keeps_no_values_and_its_copies_live_in_the_tensors_they_are_given():
    skeleton = Skeleton(layered())
    names = [name for name in skeleton.model.exchanged() if name.startswith("encoder.")]
    component = skeleton.pack("shared", names)
    skeleton.empty()
    assert {tensor.untyped_storage().nbytes() for tensor in skeleton.model.exchanged().values()} == {4}
    filled = skeleton.filled(component.views())
    component.buffer.view(torch.float32).fill_(3.0)
    assert filled.encoder.layer[0].weight.eq(3.0).all()
    assert filled.encoder.layer[0].weight.requires_grad
    assert not skeleton.model.encoder.layer[0].weight.eq(3.0).any()
