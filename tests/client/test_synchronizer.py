"""A slice into the model, and the model into an update."""

import pytest
import torch
from torch import nn

from fedmtl_client.synchronizer import ClientModelSynchronizer
from fedmtl_core.errors import LayoutMismatchError
from fedmtl_core.model.modeling import HeadSettings, MultiTaskModel
from fedmtl_core.wire.layout import Component
from tests.support import OddEncoder, TinyEncoder, specs, tiny_model


def slice_of(*tasks, encoder=None, task=None):
    model = tiny_model(*tasks, encoder=encoder or TinyEncoder(seed=3))
    return {scope: model.components[scope].clone() for scope in model.scopes_for(task)}


def client_model(*tasks, encoder=None):
    return MultiTaskModel(encoder or TinyEncoder(), specs(*tasks), hidden_size=4, heads=HeadSettings(seed=1))


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


class RebindingEncoder(nn.Module):
    """Gives its buffers new memory in each training step, as I-BERT does with the range of its activations."""

    def __init__(self, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(3, generator=generator))
        self.register_buffer("low", torch.randn(2, generator=generator))
        self.register_buffer("high", torch.randn(2, generator=generator))
        self.register_buffer("mean", torch.randn(2, generator=generator))

    def step(self) -> None:
        self.mean = 0.5 * self.mean + 0.5 * self.weight.detach()[:2]
        self.low, self.high = self.high, self.low
        with torch.no_grad():
            self.weight.mul_(2.0)


@pytest.mark.parametrize("rounds", [1, 3])
def test_buffers_that_training_rebinds_are_sent_as_they_are_whether_or_not_memory_is_shared(rounds):
    updates = []
    for share in (False, True):
        model = client_model("sst2", encoder=RebindingEncoder(seed=1))
        synchronizer = ClientModelSynchronizer(task="sst2")
        for _ in range(rounds):
            synchronizer.load(model, slice_of("sst2", encoder=RebindingEncoder(seed=2)), share=share)
            model.encoder.step()
            update = synchronizer.update(model, "parameters")
        updates.append([component.digest() for component in update])
    assert updates[0] == updates[1]
    expected = RebindingEncoder(seed=2)
    expected.step()
    sent = update[0].views()
    assert all(torch.equal(sent[f"encoder.{name}"], value) for name, value in expected.state_dict().items())


def test_a_model_lives_in_its_slices_memory_again_once_a_rebound_buffer_was_sent():
    model = client_model("sst2", encoder=RebindingEncoder())
    synchronizer = ClientModelSynchronizer(task="sst2")
    components = slice_of("sst2", encoder=RebindingEncoder(seed=2))
    synchronizer.load(model, components, share=True)
    model.encoder.step()
    synchronizer.update(model, "parameters")
    for name, view in components["shared"].views().items():
        assert model.exchanged()[name].data_ptr() == view.data_ptr()


def test_a_slice_that_is_loaded_again_replaces_what_training_rebound():
    model = client_model("sst2", encoder=RebindingEncoder())
    synchronizer = ClientModelSynchronizer(task="sst2")
    components = slice_of("sst2", encoder=RebindingEncoder(seed=2))
    synchronizer.load(model, components, share=True)
    model.encoder.mean = torch.zeros(2)  # the round was given up
    synchronizer.load(model, components, share=True)
    assert torch.equal(model.encoder.mean, RebindingEncoder(seed=2).mean)


@pytest.mark.parametrize("share", [False, True])
def test_a_tensor_that_training_gives_another_shape_is_named(share):
    model = client_model("sst2", encoder=RebindingEncoder())
    synchronizer = ClientModelSynchronizer(task="sst2")
    synchronizer.load(model, slice_of("sst2", encoder=RebindingEncoder()), share=share)
    model.encoder.mean = torch.zeros(3)
    with pytest.raises(LayoutMismatchError, match=r"encoder\.mean: expected float32 \[2\], got float32 \[3\]"):
        synchronizer.update(model, "parameters")
