"""Local training."""

import dataclasses

import numpy as np
import pytest
import torch

from fedmtl_client.data import EncodedRows, load_task_data
from fedmtl_client.trainer import Trainer, TrainingStopped, choose_device, local_optimizer
from fedmtl_core.config import Config, DataConfig
from fedmtl_core.errors import ConfigError
from fedmtl_core.model.modeling import TOY_MODEL, MultiTaskModel, load_encoder, load_tokenizer
from fedmtl_core.tasks.glue import PRESETS
from tests import calibrated

CPU = torch.device("cpu")
PLAN = Config.model_validate(
    {
        "model": {"server_model": TOY_MODEL},
        "training": {"num_rounds": 4, "local_epochs": 2, "learning_rate": 1e-3, "max_length": 48},
        "tasks": {"sst2": {}, "stsb": {}},
    }
).plan("sst2")


def setting(task="sst2", rows=64):
    spec = PRESETS[task]
    data = load_task_data(spec, DataConfig(builtin=task))
    tokenizer = load_tokenizer(TOY_MODEL)
    encoder, width = load_encoder(TOY_MODEL, weights=False)
    model = MultiTaskModel(encoder, [spec], hidden_size=width)
    return spec, model, EncodedRows(data.train.head(rows), spec, tokenizer, 48)


def flat(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("task", ["sst2", "stsb"])
def test_training_brings_the_loss_down(task):
    spec, model, rows = setting(task, rows=256)
    trainer = Trainer(spec, PLAN, CPU)
    before = trainer.evaluate(model, rows)["loss"]
    for round_ in (1, 2, 3):
        trainer.train(model, rows, round_, seed=round_)
    assert trainer.evaluate(model, rows)["loss"] < before


def test_equal_seeds_train_to_the_same_bits_and_others_do_not():
    results = []
    for seed in (7, 7, 8):
        spec, model, rows = setting()
        Trainer(spec, PLAN, CPU).train(model, rows, 1, seed=seed)
        results.append(flat(model))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_the_learning_rate_follows_one_schedule_over_the_whole_run():
    spec, model, _ = setting(rows=64)  # 2 batches x 2 epochs x 4 rounds = 16 steps
    trainer = Trainer(spec, dataclasses.replace(PLAN, warmup_ratio=0.25), CPU)
    rates = []
    for round_ in (1, 2, 3, 4):
        optimizer, schedule = trainer.optimizer(model, 4, round_)
        for _ in range(4):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
    expected = [step / 4 if step < 4 else (16 - step) / 12 for step in range(16)]
    assert rates == pytest.approx([1e-3 * factor for factor in expected])


def test_gradients_are_clipped_to_the_plans_norm():
    norms = []
    for max_grad_norm in (1e-3, 0.0):
        spec, model, rows = setting(rows=32)
        plan = dataclasses.replace(PLAN, max_grad_norm=max_grad_norm, local_epochs=1)
        Trainer(spec, plan, CPU).train(model, rows, 1, seed=1)
        norms.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm().item())
    assert norms[0] == pytest.approx(1e-3, rel=1e-2)
    assert norms[1] > 1e-2


def test_sgd_steps_against_the_gradient_with_weight_decay_on_matrices_alone():
    _, model, _ = setting()
    plan = dataclasses.replace(PLAN, optimizer="sgd", learning_rate=0.5, weight_decay=0.1)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = local_optimizer(model, plan)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizer.step()  # without momentum it is as long as the first
    for name, parameter in model.named_parameters():
        decay = 0.1 if parameter.ndim >= 2 else 0.0
        once = before[name] - 0.5 * (1 + decay * before[name])
        assert torch.allclose(parameter, once - 0.5 * (1 + decay * once), atol=1e-6), name


def test_every_step_is_told_and_epochs_end():
    spec, model, rows = setting(rows=40)  # batches of 32 and 8
    steps = []
    result = Trainer(spec, PLAN, CPU).train(model, rows, 1, seed=1, on_step=steps.append)
    assert [(step.step, step.epoch, step.epoch_ended) for step in steps] == [
        (1, 1, False),
        (2, 1, True),
        (3, 2, False),
        (4, 2, True),
    ]
    assert result.num_steps == steps[-1].num_steps == 4


def test_training_stops_when_told_to():
    spec, model, rows = setting()
    with pytest.raises(TrainingStopped):
        Trainer(spec, PLAN, CPU).train(model, rows, 1, seed=1, should_stop=lambda: True)


def test_evaluation_changes_nothing_and_gives_the_tasks_metrics():
    spec, model, rows = setting("stsb")
    before = flat(model)
    first, second = (Trainer(spec, PLAN, CPU).evaluate(model, rows) for _ in range(2))
    assert first == second
    assert first.keys() == {"pearson", "spearman", "loss"}
    assert torch.equal(flat(model), before)


def test_the_evaluation_loss_is_the_mean_over_rows():
    spec, model, rows = setting(rows=70)  # batches of 64 and 6
    model.eval()
    inputs, labels = rows.collator(0)([rows[i] for i in range(70)])
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(model("sst2", inputs), labels).item()
    assert Trainer(spec, PLAN, CPU).evaluate(model, rows)["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("task", ["sst2", "stsb"])
def test_the_losses_of_rows_are_calibrated_over_all_batches_and_the_mean_loss_is_not(task):
    spec, model, rows = setting(task, rows=70)
    trainer = Trainer(spec, PLAN, CPU)
    trainer.train(model, rows, 1, seed=1)
    order = sorted(range(70), key=rows.lengths.__getitem__)  # as an evaluation has them
    model.eval()
    inputs, labels = rows.collator(0)([rows[i] for i in order])
    with torch.no_grad():
        outputs = model(task, inputs)
    if task == "stsb":
        mean = torch.nn.functional.mse_loss(outputs[:, 0], labels)
        expected = calibrated.regression_losses(outputs[:, 0].numpy(), labels.numpy())
    else:
        mean = torch.nn.functional.cross_entropy(outputs, labels)
        expected = calibrated.classification_losses(outputs.numpy(), labels.numpy())
    measured = trainer.evaluate(model, rows)
    assert measured["loss"] == pytest.approx(mean.item(), rel=1e-5)
    assert measured.losses.dtype == np.float64
    assert measured.losses == pytest.approx(expected, abs=1e-3)
    assert abs(measured.losses.mean() - measured["loss"]) > 1e-3


def test_auto_chooses_a_device_and_a_missing_one_is_refused():
    assert choose_device("cpu") == CPU
    if not torch.cuda.is_available():
        assert choose_device("auto").type in ("cpu", "mps")
        with pytest.raises(ConfigError, match=r"training\.device: this machine has no cuda"):
            choose_device("cuda")


def test_with_head_epochs_the_head_trains_first_and_alone_then_all_but_it():
    """FedRep (Collins et al. 2021, arXiv:2102.07078)."""
    spec, model, rows = setting()
    trainer = Trainer(spec, dataclasses.replace(PLAN, head_epochs=1, local_epochs=2), CPU)

    def halves():
        return flat(model.encoder).clone(), flat(model.heads).clone()

    at_the_end_of_epoch = [halves()]
    trainer.train(
        model, rows, 1, seed=1, on_step=lambda step: at_the_end_of_epoch.append(halves()) if step.epoch_ended else None
    )
    (body0, head0), (body1, head1), (body2, head2), (body3, head3) = at_the_end_of_epoch
    assert [torch.equal(*pair) for pair in ((body0, body1), (body1, body2), (body2, body3))] == [True, False, False]
    assert [torch.equal(*pair) for pair in ((head0, head1), (head1, head2), (head2, head3))] == [False, True, True]
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_training_that_is_stopped_in_the_heads_turn_leaves_nothing_frozen():
    spec, model, rows = setting()
    trainer = Trainer(spec, dataclasses.replace(PLAN, head_epochs=1), CPU)
    with pytest.raises(TrainingStopped):
        trainer.train(model, rows, 1, seed=1, should_stop=lambda: True)
    assert all(parameter.requires_grad for parameter in model.parameters())
