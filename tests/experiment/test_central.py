"""All data in one place."""

import dataclasses
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedmtl_client.data import EncodedRows, load_task_data
from fedmtl_core.config import Config, DataConfig
from fedmtl_core.errors import FedMTLError
from fedmtl_core.model.modeling import TOY_MODEL, load_tokenizer
from fedmtl_core.tasks.glue import PRESETS
from fedmtl_experiment.central import endless, mixed, train_central
from fedmtl_experiment.evaluation import Evaluator
from fedmtl_experiment.federated import require_complete
from fedmtl_experiment.rows import draw
from fedmtl_server.model import MTLServerModel

CONFIG = Config.model_validate(
    {
        "model": {"server_model": TOY_MODEL},
        "training": {"num_rounds": 3, "learning_rate": 2e-3, "max_length": 48, "seed": 5},
        "tasks": {"sst2": {}, "stsb": {}},
    }
)


def rows(**changes):
    options = {"train_rows": 96, "validation_rows": 60, "report_rows": 60, "seed": 5, **changes}
    return {
        task: draw(PRESETS[task], load_task_data(PRESETS[task], DataConfig(builtin=task)), **options)
        for task in ("sst2", "stsb")
    }


@given(st.dictionaries(st.sampled_from("abc"), st.integers(0, 30)), st.integers(0, 99))
def test_each_task_has_its_steps_in_an_order_of_the_seeds(steps, seed):
    order = mixed(steps, seed)
    assert Counter(order) == Counter({task: count for task, count in steps.items() if count})
    assert mixed(steps, seed) == order


def test_every_row_comes_once_in_a_pass_and_passes_differ():
    task = rows()["sst2"].train.head(10)
    encoded = EncodedRows(task, PRESETS["sst2"], load_tokenizer(TOY_MODEL), 48)
    batches = endless(encoded, dataclasses.replace(CONFIG.plan("sst2"), batch_size=4), seed=1)
    passes = []
    for _ in range(2):
        three = [next(batches) for _ in range(3)]
        assert [len(labels) for _, labels in three] == [4, 4, 2]
        passes.append([tuple(ids[ids > 0].tolist()) for inputs, _ in three for ids in inputs["input_ids"]])
    assert sorted(passes[0]) == sorted(passes[1])
    assert passes[0] != passes[1]


def test_it_begins_with_a_federations_first_values_and_gets_better():
    drawn = rows()
    steps: list[int] = []
    run = train_central(CONFIG, drawn, {"sst2": 6, "stsb": 6}, steps.append)
    assert steps == [0, 1, 2]
    evaluator = Evaluator(CONFIG, {task: one.validation for task, one in drawn.items()})
    fresh = MTLServerModel.from_config(CONFIG).module
    for task, metric in (("sst2", "accuracy"), ("stsb", "pearson")):
        assert run.by_round[task][0] == evaluator.evaluate(fresh, task)[metric]
        assert list(run.by_round[task]) == [0, 1, 2, 3]
        assert run.by_round[task][3] == evaluator.evaluate(run.model, task)[metric]
        best, state = run.best[task]
        assert run.by_round[task][best] == max(run.by_round[task].values())
        fresh.load_state_dict(state)
        assert evaluator.evaluate(fresh, task)[metric] == run.by_round[task][best]
    before = Evaluator(CONFIG, {task: one.train for task, one in drawn.items()})
    first = MTLServerModel.from_config(CONFIG).module
    assert before.evaluate(run.model, "stsb")["loss"] < before.evaluate(first, "stsb")["loss"]


def test_a_task_without_steps_keeps_its_head():
    run = train_central(CONFIG, rows(train_rows=32, validation_rows=10), {"sst2": 1, "stsb": 0})
    first = MTLServerModel.from_config(CONFIG).module
    assert torch.equal(run.model.heads["stsb"].weight, first.heads["stsb"].weight)
    assert not torch.equal(run.model.heads["sst2"].weight, first.heads["sst2"].weight)


def test_equal_seeds_come_to_equal_values():
    config = CONFIG.model_copy(update={"training": CONFIG.training.model_copy(update={"num_rounds": 1})})
    runs = [train_central(config, rows(), {"sst2": 1, "stsb": 1}) for _ in range(2)]
    assert runs[0].by_round == runs[1].by_round


def test_runs_that_went_without_a_client_are_no_results():
    def report(round_, **changes):
        return {"round": round_, "failed": False, "missing_clients": [], "num_refused": 0, **changes}

    whole = [report(round_) for round_ in (1, 2, 3, 4)]
    require_complete(whole, CONFIG)
    with pytest.raises(FedMTLError, match="expected 3 rounds and an evaluation, got 3"):
        require_complete(whole[:3], CONFIG)
    for change in ({"failed": True}, {"missing_clients": ["a"]}, {"num_refused": 1}):
        with pytest.raises(FedMTLError, match="round 2 went without all of its clients"):
            require_complete([whole[0], report(2, **change), *whole[2:]], CONFIG)
