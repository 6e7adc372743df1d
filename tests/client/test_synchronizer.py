"""A slice into the model, and the model into an update."""

import pytest
import torch

from fedmtl_client.synchronizer import ClientModelSynchronizer
from fedmtl_core.errors import LayoutMismatchError
from fedmtl_core.layout import Component
from fedmtl_core.modeling import MultiTaskModel
from tests.support import OddEncoder, TinyEncoder, specs, tiny_model


def slice_of(*tasks, encoder=None, task=None):
    model = tiny_model(*tasks, encoder=encoder or TinyEncoder(seed=3))
    return {scope: model.components[scope].clone() for scope in model.scopes_for(task)}


def client_model(*tasks, encoder=None):
    return MultiTaskModel(encoder or TinyEncoder(), specs(*tasks), hidden_size=4, seed=1)


def bits(model):
    return {name: tensor.detach().clone() for name, tensor in model.exchanged().items()}


def test_a_slice_is_loaded_bit_for_bit():
    model = client_model("qqp", encoder=OddEncoder(seed=1))
    components = slice_of("sst2", "qqp", encoder=OddEncoder(seed=2), task="qqp")
    ClientModelSynchronizer(task="qqp").load(model, components)
    for component in components.values():
        for name, view in component.views().items():
            assert torch.equal(bits(model)[name], view)


def test_a_model_with_every_head_takes_the_whole_model():
    model = client_model("sst2", "qqp")
    components = slice_of("sst2", "qqp")
    ClientModelSynchronizer().load(model, components)
    assert torch.equal(model.heads["qqp"].weight, components["task:qqp"].views()["heads.qqp.weight"])


def test_parameters_are_sent_in_the_slices_order_and_layout():
    model = client_model("sst2")
    components = slice_of("sst2")
    synchronizer = ClientModelSynchronizer(task="sst2")
    synchronizer.load(model, components)
    with torch.no_grad():
        model.heads["sst2"].bias.add_(1.0)
    update = synchronizer.update(model, "parameters")
    assert [component.layout for component in update] == [component.layout for component in components.values()]
    assert torch.equal(update[0].buffer, components["shared"].buffer)
    assert torch.equal(update[1].views()["heads.sst2.bias"], components["task:sst2"].views()["heads.sst2.bias"] + 1.0)


def test_a_delta_is_trained_minus_received():
    model = client_model("sst2")
    synchronizer = ClientModelSynchronizer(task="sst2")
    synchronizer.load(model, slice_of("sst2"))
    with torch.no_grad():
        model.encoder.dense.bias.add_(0.25)
    shared, head = synchronizer.update(model, "delta")
    assert torch.allclose(shared.views()["encoder.dense.bias"], torch.full((4,), 0.25))
    assert shared.views()["encoder.dense.weight"].abs().sum() == 0
    assert head.buffer.sum() == 0


def test_a_slice_of_another_model_is_refused_and_changes_nothing():
    model = client_model("sst2")
    before = bits(model)
    with pytest.raises(
        LayoutMismatchError, match="the slice doesn't fit this client's model: shared: the model has no tensor"
    ):
        ClientModelSynchronizer(task="sst2").load(model, slice_of("sst2", encoder=OddEncoder()))
    assert all(torch.equal(before[name], tensor) for name, tensor in bits(model).items())


def test_a_slice_of_another_task_is_refused():
    with pytest.raises(LayoutMismatchError, match=r"task:qqp: the model has no tensor 'heads\.qqp\.weight'"):
        ClientModelSynchronizer(task="sst2").load(client_model("sst2"), slice_of("qqp"))


def test_a_model_with_other_heads_is_refused():
    with pytest.raises(LayoutMismatchError, match="expected a model with the head 'sst2', got sst2, qqp"):
        ClientModelSynchronizer(task="sst2").load(client_model("sst2", "qqp"), slice_of("sst2", "qqp"))


def test_what_was_received_stays_as_it_is():
    model = client_model("sst2")
    components = slice_of("sst2")
    copy = Component(components["shared"].layout, components["shared"].buffer.clone())
    synchronizer = ClientModelSynchronizer(task="sst2")
    synchronizer.load(model, components)
    with torch.no_grad():
        model.encoder.dense.weight.zero_()
    synchronizer.update(model, "delta")
    assert torch.equal(components["shared"].buffer, copy.buffer)


def test_a_model_that_shares_the_slices_memory_is_loaded_and_sent_without_a_copy():
    model = client_model("sst2")
    components = slice_of("sst2")
    synchronizer = ClientModelSynchronizer(task="sst2")
    synchronizer.load(model, components, share=True)
    components["shared"].buffer.copy_(slice_of("sst2", encoder=TinyEncoder(seed=9))["shared"].buffer)  # the next slice
    synchronizer.load(model, components, share=True)
    assert torch.equal(model.encoder.dense.weight, TinyEncoder(seed=9).dense.weight)
    with torch.no_grad():
        model.encoder.dense.weight.add_(1.0)
    assert synchronizer.update(model, "parameters") == list(components.values())
    assert torch.equal(components["shared"].views()["encoder.dense.weight"], model.encoder.dense.weight)


def test_a_slice_in_other_memory_is_loaded_into_a_model_that_shared_the_last_one():
    model = client_model("sst2")
    synchronizer = ClientModelSynchronizer(task="sst2")
    synchronizer.load(model, slice_of("sst2"), share=True)
    components = slice_of("sst2", encoder=TinyEncoder(seed=9))
    synchronizer.load(model, components, share=True)
    assert torch.equal(model.encoder.dense.weight, TinyEncoder(seed=9).dense.weight)
    assert synchronizer.update(model, "parameters") == list(components.values())


def test_a_model_that_shares_its_slices_memory_has_no_delta():
    model = client_model("sst2")
    synchronizer = ClientModelSynchronizer(task="sst2")
    synchronizer.load(model, slice_of("sst2"), share=True)
    with pytest.raises(ValueError, match="shares its slice's memory"):
        synchronizer.update(model, "delta")
