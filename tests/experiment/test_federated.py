"""What a run's final models are worth, where clients keep a part of them."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from fedmtl_client.data import load_task_data
from fedmtl_core import config as configuration
from fedmtl_core.config import DataConfig
from fedmtl_core.errors import FedMTLError
from fedmtl_core.tasks.glue import PRESETS
from fedmtl_experiment.evaluation import Evaluator
from fedmtl_experiment.federated import FederatedRun, curve_of, evaluate_checkpoints
from fedmtl_server.model import MTLServerModel
from fedmtl_server.rounds.metric_reports import MetricReport
from fedmtl_server.storage.results import TaskResult
from fedmtl_server.storage.store import RunStore


def test_where_heads_are_local_a_task_is_worth_the_mean_of_its_clients_own_models(tmp_path):
    config = configuration.resolve(
        {
            "model": {"server_model": "builtin:toy"},
            "training": {"num_rounds": 1, "max_length": 32},
            "sharing": {"head": "local"},
            "tasks": {"sst2": {"data": {"builtin": "sst2"}}},
            "clients": [{"client_id": "a", "task": "sst2"}, {"client_id": "b", "task": "sst2"}],
        }
    )
    model = MTLServerModel.from_config(config)
    store = RunStore.create(config, "0" * 32, model.components, model.summary(), tmp_path / "run")
    store.close()
    (tmp_path / "run" / "history.sqlite").unlink()  # it knows of the model before round 1 alone
    store_as_round_one(tmp_path, model)
    # Heads that always say one class: one client is right on those rows, the other on the rest.
    (tmp_path / "run.state").mkdir()
    for client_id, bias in (("a", [9.0, 0.0]), ("b", [0.0, 9.0])):
        head = {"heads.sst2.weight": torch.zeros(2, 64), "heads.sst2.bias": torch.tensor(bias)}
        save_file(head, tmp_path / "run.state" / f"{client_id}.sst2.safetensors")
    rows = load_task_data(PRESETS["sst2"], DataConfig(builtin="sst2")).validation.head(50)
    share = sum(float(label) == 0 for label in rows.labels) / 50
    assert share != 0.5

    run = FederatedRun(config, tmp_path / "run", {}, {"sst2": 0}, 0, 0, 0.0)
    final, at_best = evaluate_checkpoints(run, Evaluator(config, {"sst2": rows}))
    assert final["sst2"]["accuracy"] == pytest.approx((share + (1 - share)) / 2)
    right, wrong = torch.tensor([9.0, 0.0]).log_softmax(0).neg().tolist()
    expected = (share * right + (1 - share) * wrong + (1 - share) * right + share * wrong) / 2
    assert final["sst2"]["loss"] == pytest.approx(expected, rel=1e-4)
    assert at_best == final


def test_an_undefined_metric_is_zero_in_a_comparison_so_that_a_method_that_fails_is_not_left_out():
    taken = MetricReport(is_pooled=True, num_clients=1, num_eval_examples=9, num_undefined=1)
    result = TaskResult("matthews", {1: -0.25, 3: 0.5}, measured=dict.fromkeys(range(4), taken))
    assert list(curve_of(result).items()) == [(0, 0.0), (1, -0.25), (2, 0.0), (3, 0.5)]


@pytest.mark.parametrize("bias", [9.0, float("nan")])
def test_a_model_is_compared_where_its_metric_is_undefined_but_not_where_its_outputs_are(bias):
    config = configuration.resolve(
        {"model": {"server_model": "builtin:toy"}, "tasks": {"sst2": {"metrics": ["matthews"]}}}
    )
    rows = load_task_data(PRESETS["sst2"], DataConfig(builtin="sst2")).validation.head(20)
    model = MTLServerModel.from_config(config).module
    with torch.no_grad():
        model.heads["sst2"].weight.zero_()
        model.heads["sst2"].bias.copy_(torch.tensor([bias, 0.0]))  # always the first class
    evaluator = Evaluator(config, {"sst2": rows})
    if bias == 9.0:
        assert evaluator.evaluate(model, "sst2")["matthews"] == 0.0
    else:
        with pytest.raises(FedMTLError, match=r"sst2: .*loss.* nan"):
            evaluator.evaluate(model, "sst2")


def store_as_round_one(tmp_path, model):
    from fedmtl_server.storage.checkpoints import write_safetensors

    path = tmp_path / "run" / "checkpoints" / "round-0001.safetensors"
    with path.open("wb", buffering=0) as file:
        write_safetensors(file, model.components.values(), {"run_id": "0" * 32, "round": "1"})
