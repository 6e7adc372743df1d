"""The examples under `examples/`: they run as they are, and each plug-in acts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from examples.own_trainer.layerwise import LayerwiseTrainer
from fedmtl_client.data import load_task_data
from fedmtl_core import plugins
from fedmtl_core.errors import ConfigError
from fedmtl_core.model.modeling import TOY_MODEL, MultiTaskModel, load_encoder
from fedmtl_server.storage.history import History
from fedmtl_server.storage.paths import HISTORY_FILE
from tests.federations import loaded, run

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def example(name: str, *overrides: str):
    short = ("training.num_rounds=1", "training.local_epochs=2")
    return loaded(ROOT / "examples" / name / "config.yaml", *short, *overrides)


def few_rows(task: str) -> tuple[str, str]:
    return f"tasks.{task}.train_samples=64", f"tasks.{task}.val_samples=40"


def drift(run_dir: Path) -> float:
    """How far the clients moved the encoder in round 1, the mean over them."""
    history = History.open(run_dir / HISTORY_FILE, create=False)
    try:
        report = history.rounds(history.runs()[0].run_id)[1].report
    finally:
        history.close()
    norms = [part["norm"] for part in report["components"][0]["contributions"]]
    return sum(norms) / len(norms)


def test_a_dataset_of_ones_own_gives_its_rows_to_clients_in_shards(tmp_path):
    config = example("own_dataset")
    section = config.tasks["reviews"]
    data = load_task_data(section.spec("reviews"), section.data)
    assert (len(data.train), len(data.validation)) == (300, 100)  # 400 reviews, every fourth for evaluation
    assert set(data.train.labels) == {0, 1}
    stricter = section.data.model_copy(update={"options": section.data.options | {"positive_from": 5}})
    assert sum(load_task_data(section.spec("reviews"), stricter).train.labels) < sum(data.train.labels)

    results, clients = run(config, tmp_path / "run")
    assert sorted(results["reviews"].by_round) == [0, 1]
    assert [client.rounds[1].num_examples for client in clients] == [150, 150]


def test_a_trainer_of_ones_own_takes_smaller_steps_in_deeper_layers(tmp_path):
    config = example("own_trainer")
    spec, plan = config.tasks["sst2"].spec("sst2"), config.plan("sst2")
    model = MultiTaskModel(load_encoder(TOY_MODEL, weights=False)[0], [spec], hidden_size=64)  # of two layers
    trainer = LayerwiseTrainer(spec, plan, torch.device("cpu"), decay=0.5)
    optimizer, schedule = trainer.optimizer(model, 10, 1)
    rates = {group["params"][0]: peak for group, peak in zip(optimizer.param_groups, schedule.base_lrs, strict=True)}
    named = {name: rates[parameter] / plan.learning_rate for name, parameter in model.named_parameters()}
    assert {named[f"heads.sst2.{name}"] for name in ("weight", "bias")} == {1.0}
    assert named["encoder.pooler.dense.weight"] == named["encoder.encoder.layer.1.output.dense.bias"] == 0.5
    assert named["encoder.encoder.layer.0.attention.self.query.weight"] == 0.25
    assert named["encoder.embeddings.word_embeddings.weight"] == 0.125

    few = (*few_rows("sst2"), "training.local_epochs=4")
    moved = {}
    for decay in (1.0, 0.2):
        run(example("own_trainer", *few, f"training.trainer_options={{decay: {decay}}}"), tmp_path / str(decay))
        moved[decay] = drift(tmp_path / str(decay))
    assert 0 < moved[0.2] < 0.5 * moved[1.0]


def test_a_task_of_ones_own_has_its_head_in_the_checkpoint_and_its_metric_in_the_results(tmp_path):
    results, clients = run(example("own_task", *few_rows("stars"), *few_rows("sst2")), tmp_path)
    assert results["stars"].metric == "quadratic_kappa"
    assert results["sst2"].metric == "accuracy"
    assert {"quadratic_kappa", "loss", "train_loss"} <= clients[0].rounds[1].trained_metrics.keys()
    heads = {
        name: tensor
        for name, tensor in load_file(tmp_path / "checkpoints" / "round-0001.safetensors").items()
        if name.startswith("heads.")
    }
    assert {name: list(tensor.shape) for name, tensor in heads.items()} == {
        "heads.stars.direction.weight": [1, 64],
        "heads.stars.thresholds": [3],
        "heads.sst2.weight": [2, 64],
        "heads.sst2.bias": [2],
    }
    assert not torch.equal(heads["heads.stars.thresholds"], torch.linspace(1.0, -1.0, 3))


def test_a_client_that_means_another_kind_by_the_task_stops_before_it_trains(tmp_path):
    server = example("own_task")
    plain = loaded(ROOT / "examples/own_task/config.yaml", "tasks.stars.type=classification")
    plan = server.plan("stars")
    assert plan.task_type == "ordinal"
    with pytest.raises(ConfigError, match="task stars: the server has the task type 'ordinal'; this client has cl"):
        plain.tasks["stars"].spec("stars").require_same(plan.task_type, plan.labels)


def test_the_ordinal_loss_is_that_of_the_thresholds_passed():
    kind = plugins.load("type", "examples.own_task.ordinal:Ordinal", object)(
        example("own_task").tasks["stars"].spec("stars")
    )
    outputs = torch.tensor([[0.0, 0.0, 0.0], [30.0, 30.0, -30.0]])
    targets = torch.tensor([1, 2])
    rows = kind.loss(outputs, targets, reduction="none")
    assert rows.tolist() == pytest.approx([3 * 0.693147, 0.0], abs=1e-5)  # 3 coins; 2 is above 0 and 1, and not above 2
    assert kind.loss(outputs, targets).item() == pytest.approx(1.5 * 0.693147, abs=1e-5)
    measured = kind.measure(outputs.numpy(), targets.numpy())
    assert (measured["accuracy"], measured["within_one"]) == (0.5, 1.0)  # 0 for 1, and 2 for 2


def test_a_rule_of_ones_own_makes_the_model_of_all_updates_at_once(tmp_path):
    source = (ROOT / "examples/own_aggregation/median.py").read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 40
    few = few_rows("sst2")
    results, _ = run(example("own_aggregation", *few), tmp_path / "median")
    assert sorted(results["sst2"].by_round) == [0, 1]
    run(example("own_aggregation", *few, "aggregation.rule=mean"), tmp_path / "mean")
    median, mean = (
        load_file(tmp_path / rule / "checkpoints" / "round-0001.safetensors") for rule in ("median", "mean")
    )
    assert median.keys() == mean.keys()
    distances = [(median[name] - mean[name]).abs().max().item() for name in median if name.startswith("encoder.")]
    assert 0 < max(distances) < 0.1  # of clients who are honest the two are close
