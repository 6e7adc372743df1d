"""Evaluations side by side give what each gives alone."""

from __future__ import annotations

import threading

import pytest
import torch

from fedmtl_client.data import load_task_data
from fedmtl_core import config as configuration
from fedmtl_core.config import DataConfig
from fedmtl_core.errors import FedMTLError
from fedmtl_core.tasks.glue import PRESETS
from fedmtl_experiment.evaluation import Candidate, Evaluator, RowEncoder
from fedmtl_server.model import MTLServerModel

CONFIG = configuration.resolve({"model": {"server_model": "builtin:toy"}, "tasks": {"sst2": {}, "stsb": {}}})
ROWS = {name: load_task_data(PRESETS[name], DataConfig(builtin=name)).validation.head(70) for name in ("sst2", "stsb")}


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def new_model(seed):
    """A model with other values for each seed."""
    model = MTLServerModel.from_config(CONFIG).module
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


@pytest.mark.parametrize("processors", [1, 3])
def test_all_models_are_evaluated_as_each_would_be_alone_to_the_last_bit(processors):
    evaluator = Evaluator(CONFIG, ROWS)
    models = {round_: new_model(round_) for round_ in (1, 2, 3)}
    torch.set_num_threads(1)
    alone = {(t, r, ""): evaluator.evaluate(model, t) for r, model in models.items() for t in ROWS}
    assert len({metrics["loss"] for metrics in alone.values()}) == 6
    torch.set_num_threads(2)
    started = []
    candidates = [Candidate(task, round_, model) for round_, model in models.items() for task in ROWS]
    found = evaluator.evaluate_all(iter(candidates), processors, lambda one: started.append(one.label))
    assert found == alone
    assert started == [f"{task}, round {round_}" for round_ in models for task in ROWS]
    assert torch.get_num_threads() == 2


def test_a_model_is_made_only_when_a_thread_is_free_for_it():
    evaluator, made, running = Evaluator(CONFIG, {"sst2": ROWS["sst2"]}), [], []
    evaluate = evaluator.evaluate

    def watched(model, task):
        running.append(model)
        assert len(made) - len(finished) <= 3  # two are evaluated, and the next is made
        result = evaluate(model, task)
        finished.append(model)
        return result

    def candidates():
        for round_ in range(1, 6):
            made.append(round_)
            yield Candidate("sst2", round_, new_model(round_))

    finished = []
    evaluator.evaluate = watched
    assert len(evaluator.evaluate_all(candidates(), 2)) == len(running) == 5


def test_one_failure_ends_the_other_evaluations():
    evaluator, reading, broken = Evaluator(CONFIG, ROWS), threading.Event(), new_model(1)
    with torch.no_grad():
        broken.heads["stsb"].weight.fill_(float("nan"))
    rows, collate = evaluator._rows["sst2"], evaluator._rows["sst2"].collator

    def slow(seed):
        def one_batch(batch):
            reading.set()
            rows.stop.wait(60)
            return collate(seed)(batch)

        return one_batch

    rows.collator = slow
    with pytest.raises(FedMTLError, match="stsb"):
        evaluator.evaluate_all([Candidate("sst2", 1, new_model(1)), Candidate("stsb", 1, broken)], 2)
    assert reading.is_set()
    assert rows.stop.is_set()


def test_rows_are_tokenized_once_for_all_configurations_with_one_tokenizer_and_length():
    encoder = RowEncoder()
    (spec,) = (one for one in CONFIG.task_specs() if one.name == "sst2")
    first = encoder.encoded(CONFIG, spec, ROWS["sst2"], "report")
    other = configuration.resolve({**CONFIG.model_dump(mode="json", exclude_unset=True), "training": {"seed": 9}})
    assert encoder.encoded(other, spec, ROWS["sst2"].head(0), "report") is first
    longer = configuration.resolve(
        {**CONFIG.model_dump(mode="json", exclude_unset=True), "training": {"max_length": 9}}
    )
    assert encoder.encoded(longer, spec, ROWS["sst2"], "report") is not first
    assert encoder.encoded(CONFIG, spec, ROWS["sst2"].head(9), "held-back") is not first
    assert encoder.encoded(CONFIG, spec, ROWS["sst2"], "report") is first
    assert len(encoder.encoded(CONFIG, spec, ROWS["sst2"].head(9), "report")) == 9
