"""Variants that a client evaluates beside the received model: what it reports, and that training never notices."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from structlog.testing import capture_logs
from torch import nn

from fedmtl_client.data import EncodedRows
from fedmtl_client.overlay import overlaid
from fedmtl_client.slices import SliceVariant
from fedmtl_client.trainer import Trainer, TrainingStopped, _row_means
from fedmtl_core.errors import InvalidRequestError, StaleRoundError, UnavailableError
from fedmtl_core.model.modeling import TOY_MODEL, load_tokenizer
from fedmtl_core.tasks.glue import PRESETS
from fedmtl_core.wire.layout import Component
from tests import calibrated
from tests.client.test_worker import (
    CONFIG,
    HEAD,
    NUM_EVALUATED,
    PLAN,
    SGD,
    bits,
    data_of,
    decoded,
    model_of,
    slice_of,
    values_of,
    worker_of,
    zero_controls,
)

WEIGHT, BIAS = HEAD


def head_of(seed, task="sst2"):
    """Other values for a task's head."""
    generator = torch.Generator().manual_seed(seed)
    views = model_of().components[f"task:{task}"].views()
    return {name: torch.randn(view.shape, generator=generator) for name, view in views.items()}


def variant_of(name, tensors):
    return SliceVariant(name, {f"variant:{name}": Component.pack(f"variant:{name}", tensors)}, 7)


def getting(**variants):
    """A server's variants by name: their tensors, or the error that their download ends with."""

    def get(name):
        if isinstance(variants[name], Exception):
            raise variants[name]
        return variant_of(name, variants[name])

    return get


def offering(slice_, *names, margin=0.0):
    return dataclasses.replace(slice_, variants=dict.fromkeys(names, margin))


def outputs_of(tensors, task="sst2"):
    """Each row's outputs and target, by PyTorch alone."""
    model, spec = model_of().module_for(task), PRESETS[task]
    with torch.no_grad():
        for name, tensor in tensors.items():
            model.exchanged()[name].copy_(tensor)
    rows = EncodedRows(data_of(task).validation.head(NUM_EVALUATED), spec, load_tokenizer(TOY_MODEL), PLAN.max_length)
    collate, outputs, targets = rows.collator(0), [], []
    model.eval()
    for number in range(len(rows)):
        inputs, labels = collate([rows[number]])
        with torch.no_grad():
            outputs.append(model(task, inputs))
        targets.append(labels)
    return torch.cat(outputs), torch.cat(targets)


def losses_of(tensors, task="sst2"):
    """Each row's calibrated loss, not by the program."""
    outputs, targets = (tensor.numpy() for tensor in outputs_of(tensors, task))
    if task == "stsb":
        return calibrated.regression_losses(outputs[:, 0], targets)
    return calibrated.classification_losses(outputs, targets)


def plain_loss_of(tensors, task="sst2"):
    """The mean of the rows' losses before a calibration."""
    outputs, targets = outputs_of(tensors, task)
    if task == "stsb":
        return nn.functional.mse_loss(outputs[:, 0], targets).item()
    return nn.functional.cross_entropy(outputs, targets).item()


@pytest.mark.parametrize("task", ["sst2", "stsb"])
def test_a_variants_figures_are_those_of_the_rows_one_by_one(task):
    tensors, plan = head_of(1, task), CONFIG.plan(task)
    slice_ = offering(slice_of(3, plan, task=task, purpose="evaluate"), "own")
    (got,) = worker_of(task).evaluate(slice_, get_variant=getting(own=tensors)).variants
    theirs, mine = losses_of({}, task), losses_of(tensors, task)
    differences = mine - theirs
    assert (got.name, got.paired.num_examples) == ("own", NUM_EVALUATED)
    assert got.paired.loss == pytest.approx(mine.mean(), rel=1e-5)
    assert got.paired.difference == pytest.approx(differences.mean(), rel=1e-4)
    assert got.paired.standard_error == pytest.approx(differences.std(ddof=1) / math.sqrt(NUM_EVALUATED), rel=1e-4)
    assert got.evaluation.keys() == {*PRESETS[task].metrics, "loss"}
    assert got.evaluation["loss"] == pytest.approx(plain_loss_of(tensors, task), rel=1e-5)


@pytest.mark.parametrize("task", ["sst2", "stsb"])
def test_a_variant_whose_head_only_has_another_scale_and_offset_is_as_good_as_the_model(task):
    own = model_of().components[f"task:{task}"].views()
    other = {name: 3 * view for name, view in own.items()}
    (bias,) = (name for name, view in own.items() if view.ndim == 1)
    other[bias] = other[bias] + 2 * torch.arange(1, 1 + len(other[bias]))
    slice_ = offering(slice_of(3, CONFIG.plan(task), task=task, purpose="evaluate"), "other")
    update = worker_of(task).evaluate(slice_, get_variant=getting(other=other))
    (got,) = update.variants
    assert abs(got.evaluation["loss"] - update.received["loss"]) > 0.01
    assert abs(got.paired.difference) < 1e-6
    assert got.paired.standard_error < 1e-5


def test_a_variant_with_the_models_own_values_differs_in_no_row():
    same = model_of().components["task:sst2"].views()
    update = worker_of().evaluate(offering(slice_of(), "same"), get_variant=getting(same=same))
    paired = update.variants[0].paired
    assert (paired.difference, paired.squared_deviations) == (0.0, 0.0)
    assert update.variants[0].evaluation.same_as(update.received)


@pytest.mark.parametrize(
    "settings",
    [{}, {"upload": "int8"}, {"download": "float16"}, {"download": "topk"}],
    ids=["shared memory", "delta", "float16", "topk"],
)
def test_training_starts_from_the_received_model_to_the_bit_whatever_was_tried(settings):
    plain = worker_of(**settings).train(slice_of())
    worker, slice_, seen = worker_of(**settings), offering(slice_of(), "a", "b", "wild"), []
    received = values_of(slice_.components)
    for scope in slice_.components:
        worker.cache.set_version(scope, b"digest")
    wild = {WEIGHT: torch.full(head_of(1)[WEIGHT].shape, 1e38)}
    get = getting(a=head_of(1), b={BIAS: head_of(2)[BIAS]}, wild=wild)

    def looking(name):
        """What the cache says, and the slice has, when a variant is downloaded."""
        same = all(torch.equal(one.buffer, received[scope]) for scope, one in slice_.components.items())
        seen.append((same, set(worker.cache.versions())))
        return get(name)

    trained = worker.train(slice_, get_variant=looking)
    assert bits(trained) == bits(plain)
    assert seen == [(True, set(slice_.components))] * 3
    assert [one.name for one in trained.update.variants] == ["a", "b", "wild"]
    assert trained.update.variants[2].paired is None
    assert plain.update.variants == ()
    assert trained.update.received.same_as(plain.update.received)


@pytest.mark.parametrize("update", ["parameters", "delta"])
def test_training_starts_from_a_variant_that_is_better_by_its_margin(update):
    """The update is the slice plus what training from the variant has changed."""
    plan = dataclasses.replace(PLAN, update=update)
    slightly, better = head_of(1), head_of(7)
    assert losses_of(better).mean() < losses_of(slightly).mean() < losses_of({}).mean()
    received = {name: view for one in slice_of().components.values() for name, view in one.views().items()}
    start = slice_of()
    for name, view in start.components["task:sst2"].views().items():
        view.copy_(better[name])
    from_variant = tensors_of(worker_of().train(start))

    slice_ = offering(slice_of(1, plan), "slightly", "better", "same", margin=0.1)
    same = model_of().components["task:sst2"].views()
    get = getting(slightly=slightly, better=better, same=same)
    with capture_logs() as logs:
        trained = worker_of().train(slice_, get_variant=get)
    for name, value in tensors_of(trained).items():
        moved = from_variant[name] - better.get(name, received[name])
        torch.testing.assert_close(value, moved if update == "delta" else received[name] + moved, rtol=0, atol=1e-6)
    assert [one["variant"] for one in logs if one["event"] == "training.started"] == ["better"]

    far = offering(slice_of(1, plan), "better", margin=1e6)
    assert bits(worker_of().train(far, get_variant=get)) == bits(worker_of().train(slice_of(1, plan)))


def test_training_starts_from_a_variant_only_if_it_is_better_than_the_variants_without_a_margin_before_it():
    wild = {name: value * math.nan for name, value in head_of(1).items()}
    broken = RuntimeError("not enough memory")
    get = getting(control=head_of(7), slightly=head_of(1), better=head_of(7), wild=wild, broken=broken)
    assert losses_of(head_of(7)).mean() < losses_of(head_of(1)).mean() < losses_of({}).mean()
    for names, started in [
        (("control", "slightly"), []),
        (("control", "better"), []),
        (("better", "control"), ["better"]),
        (("wild", "better"), []),  # nothing is known of the variant without a margin
        (("broken", "better"), []),
    ]:
        margins = {name: 0.0 if name in ("control", "wild", "broken") else 0.1 for name in names}
        with capture_logs() as logs:
            worker_of().train(dataclasses.replace(slice_of(), variants=margins), get_variant=get)
        assert [one["variant"] for one in logs if one["event"] == "training.started"] == started


def tensors_of(trained):
    """The tensors of an update by name."""
    return {name: view for one in decoded(trained).values() for name, view in one.views().items()}


def test_control_variates_and_local_parameters_stay_what_they_are():
    slice_ = slice_of(1, SGD)
    controls = {"controls": zero_controls(slice_), "control_since": 1}
    plain = worker_of().train(dataclasses.replace(slice_, **controls))
    tried = dataclasses.replace(offering(slice_of(1, SGD), "own"), **controls)
    assert bits(worker_of().train(tried, get_variant=getting(own=head_of(1)))) == bits(plain)

    plan = dataclasses.replace(PLAN, local=HEAD)
    encoder = {name: view + 0.1 for name, view in model_of().components["shared"].views().items() if view.ndim == 2}
    plain = worker_of().train(slice_of(1, plan, without=HEAD))
    trained = worker_of().train(offering(slice_of(1, plan, without=HEAD), "own"), get_variant=getting(own=encoder))
    assert bits(trained) == bits(plain)
    assert len(trained.update.variants) == 1


def test_each_of_a_clients_tasks_has_variants_of_its_own():
    worker = worker_of("sst2", "stsb")
    get = getting(own=head_of(1), kin=head_of(1, "stsb"))
    assert [one.name for one in worker.train(offering(slice_of(), "own"), get_variant=get).update.variants] == ["own"]
    stsb = offering(slice_of(1, CONFIG.plan("stsb"), task="stsb"), "kin")
    assert [one.name for one in worker.train(stsb, get_variant=get).update.variants] == ["kin"]


def test_one_variant_at_a_time_is_in_memory():
    held = []

    class Watched(Component):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            held.append(1)

        def __del__(self):
            held.pop()

    def get(name):
        assert held == []
        packed = Component.pack("variant:x", head_of(1))
        return SliceVariant(name, {"variant:x": Watched(packed.layout, packed.buffer)})

    assert len(worker_of().evaluate(offering(slice_of(), "a", "b", "c"), get_variant=get).variants) == 3


@pytest.mark.parametrize("value", [math.nan, math.inf, 3e38])
def test_a_variant_that_is_not_finite_is_infinitely_bad_and_costs_nothing_else(value):
    bad = {WEIGHT: torch.full(head_of(1)[WEIGHT].shape, value)}
    update = worker_of().evaluate(offering(slice_of(), "bad", "own"), get_variant=getting(bad=bad, own=head_of(1)))
    assert [(one.name, one.paired is None) for one in update.variants] == [("bad", True), ("own", False)]
    assert update.received.says_anything


@pytest.mark.parametrize("error", [StaleRoundError("closed"), UnavailableError("away")])
def test_a_download_that_can_no_longer_be_had_ends_the_trials_and_never_the_training(error):
    get = getting(a=head_of(1), b=error, c=head_of(2))
    with capture_logs() as logs:
        trained = worker_of().train(offering(slice_of(), "a", "b", "c"), get_variant=get)
    assert [one.name for one in trained.update.variants] == ["a"]
    assert bits(trained) == bits(worker_of().train(slice_of()))
    skipped = [(one["variant"], one["reason"]) for one in logs if one["event"] == "variant.skipped"]
    assert skipped == [("b", str(error))]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (InvalidRequestError("there is no such variant"), "there is no such variant"),
        ({WEIGHT: torch.zeros(3, 3)}, "doesn't fit the slice: expected tensors of the slice, each once"),
        ({"heads.qqp.weight": torch.zeros(2, 2)}, "doesn't fit the slice"),
    ],
    ids=["refused", "another shape", "unknown"],
)
def test_a_variant_that_does_not_fit_is_skipped(bad, said):
    with capture_logs() as logs:
        update = worker_of().evaluate(offering(slice_of(), "bad", "own"), get_variant=getting(bad=bad, own=head_of(1)))
    assert [one.name for one in update.variants] == ["own"]
    assert [said in one["reason"] for one in logs if one["event"] == "variant.skipped"] == [True]


def test_a_round_that_closes_ends_the_trials():
    calls = []

    def get(name):
        calls.append(name)
        return variant_of(name, head_of(1))

    with pytest.raises(TrainingStopped):
        worker_of().train(offering(slice_of(), "a", "b", "c"), should_stop=lambda: bool(calls), get_variant=get)
    assert calls == ["a"]


def test_a_client_without_a_way_to_get_variants_reports_none():
    assert worker_of().evaluate(offering(slice_of(), "own")).variants == ()


class MeansOnly(Trainer):
    """A custom trainer that reports nothing of single rows, and draws random numbers."""

    def evaluate(self, model, rows):
        torch.rand(3)
        return dict(super().evaluate(model, rows))

    def train(self, *arguments, seed, **options):
        drawn = torch.rand(1).item()
        result = super().train(*arguments, seed=seed, **options)
        return dataclasses.replace(result, loss=drawn)


class Silent(Trainer):
    def evaluate(self, model, rows):
        return {"accuracy": super().evaluate(model, rows)["accuracy"]}


class Breaking(Trainer):
    calls = 0

    def evaluate(self, model, rows):
        Breaking.calls += 1
        if Breaking.calls == 2:
            raise RuntimeError("out of memory")
        return super().evaluate(model, rows)


def test_a_custom_trainer_that_reports_means_gives_a_difference_without_an_error():
    slice_ = offering(slice_of(), "own")
    (got,) = worker_of(trainer=MeansOnly).evaluate(slice_, get_variant=getting(own=head_of(1))).variants
    expected = plain_loss_of(head_of(1)) - plain_loss_of({})
    assert got.paired.difference == pytest.approx(expected, rel=1e-4)
    assert (got.paired.num_examples, got.paired.squared_deviations) == (NUM_EVALUATED, None)


def test_a_trial_draws_no_random_number_that_training_would():
    torch.manual_seed(5)
    plain = worker_of(trainer=MeansOnly).train(slice_of())
    torch.manual_seed(5)
    tried = worker_of(trainer=MeansOnly).train(offering(slice_of(), "own"), get_variant=getting(own=head_of(1)))
    assert tried.result.loss == plain.result.loss


@pytest.mark.parametrize("trainer", [Silent, Breaking])
def test_a_custom_trainer_without_a_loss_or_with_an_error_reports_no_variant_and_trains(trainer):
    Breaking.calls = 0
    trained = worker_of(trainer=trainer).train(offering(slice_of(), "own"), get_variant=getting(own=head_of(1)))
    assert trained.update.variants == ()
    assert bits(trained) == bits(worker_of().train(slice_of()))


def test_an_overlay_leaves_tensors_and_buffers_where_and_what_they_were_though_it_fails():
    class Averaging(nn.Module):
        """A module that gives a buffer new memory, and writes into another."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))
            self.register_buffer("seen", torch.zeros(1))
            self.register_buffer("count", torch.zeros(1, dtype=torch.int64))

        def exchanged(self):
            return {"weight": self.weight, "seen": self.seen}

    model = Averaging()
    before = {name: (one.data_ptr(), one.detach().clone()) for name, one in model.state_dict().items()}
    with pytest.raises(ZeroDivisionError), overlaid(model, {"weight": torch.full((2,), 5.0), "seen": torch.ones(1)}):
        assert (model.weight.tolist(), model.seen.tolist()) == ([5.0, 5.0], [1.0])
        model.seen = model.seen * 2
        model.count += 1
        raise ZeroDivisionError
    after = model.state_dict()
    assert all(after[name].data_ptr() == pointer for name, (pointer, _) in before.items())
    assert all(torch.equal(after[name], value) for name, (_, value) in before.items())


def test_a_row_of_tokens_has_the_mean_of_its_tokens_losses():
    assert _row_means(np.array([1.0, 2.0, 5.0]), np.array([2, 0, 1, 0])).tolist() == [1.5, 5.0]
