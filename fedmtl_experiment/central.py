"""Centralized training: one model trained on batches of all tasks in one process.

The algorithm is MT-DNN's (Liu et al. 2019, arXiv:1901.11504, algorithm 1): the batches of all tasks are shuffled
together, and each step uses one batch of one task. Each task takes as many steps as its clients take together.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import get_linear_schedule_with_warmup

from fedmtl_client import batches
from fedmtl_client.data import EncodedRows
from fedmtl_client.trainer import Trainer, choose_device, local_optimizer, take_step
from fedmtl_core.config import Config
from fedmtl_core.model.modeling import MultiTaskModel, load_tokenizer
from fedmtl_core.tasks.plan import TrainingPlan
from fedmtl_experiment.evaluation import Evaluator, RowEncoder
from fedmtl_experiment.rows import TaskRows
from fedmtl_server.model import MTLServerModel

State = dict[str, Tensor]


@dataclass(frozen=True)
class CentralRun:
    """The result of centralized training."""

    model: MultiTaskModel
    by_round: Mapping[str, Mapping[int, float]]
    """For each task, its main metric on its validation rows by round; round 0 is before the first step."""
    best: Mapping[str, tuple[int, State]]
    """For each task, the round that was best on its validation rows, and the model's state after that round."""
    evaluation_seconds: float = 0.0
    """Seconds of the evaluations on the validation rows."""


def train_central(
    config: Config,
    rows: Mapping[str, TaskRows],
    steps_per_round: Mapping[str, int],
    on_round: Callable[[int], None] = lambda done: None,
    encoder: RowEncoder | None = None,
) -> CentralRun:
    """Train one model on all tasks.

    Args:
        config: model and training as for a federation of all tasks. A round here has the steps of a federation's round.
        rows: the rows of each task.
        steps_per_round: the steps of each task.
        on_round: called with the number of finished rounds.
        encoder: tokenizes the validation rows, and may know them from other configurations.
    """
    device = choose_device(config.training.device)
    model = MTLServerModel.from_config(config).module.to(device)
    training = config.training
    tokenizer = load_tokenizer(config.model.client_model or config.model.server_model)
    specs = {spec.name: spec for spec in config.task_specs()}
    trainers = {task: Trainer(spec, config.plan(task), device) for task, spec in specs.items()}
    streams = {
        task: endless(
            EncodedRows(rows[task].train, spec, tokenizer, training.max_length), config.plan(task), training.seed
        )
        for task, spec in specs.items()
    }
    evaluator = Evaluator(config, {task: one.validation for task, one in rows.items()}, encoder, "validation")
    optimizer = local_optimizer(model, config.plan(next(iter(specs))))
    total = training.num_rounds * sum(steps_per_round.values())
    schedule = get_linear_schedule_with_warmup(optimizer, round(training.warmup_ratio * total), total)
    curve = _Curve({task: spec.main_metric for task, spec in specs.items()}, evaluator)
    torch.manual_seed(training.seed)
    curve.measure(model, 0)
    for round_ in range(1, training.num_rounds + 1):
        on_round(round_ - 1)
        model.train()
        for task in mixed(steps_per_round, training.seed + round_):
            loss = trainers[task].loss(model, *next(streams[task]))
            take_step(model, loss, optimizer, schedule, training.max_grad_norm)
        curve.measure(model, round_)
    return CentralRun(model, curve.by_round, curve.best, curve.seconds)


def mixed(steps: Mapping[str, int], seed: int) -> list[str]:
    """Return the task of each step: each task as often as it has steps, in random order."""
    order = [task for task, count in steps.items() for _ in range(count)]
    random.Random(seed).shuffle(order)
    return order


def endless(rows: EncodedRows, plan: TrainingPlan, seed: int) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Yield batches of pass after pass over the rows, each pass in a different order."""
    loader = batches.to_train_on(rows, plan, seed)
    while True:
        yield from loader


class _Curve:
    """Records each task's metric after every round, and the model's state after the task's best round."""

    def __init__(self, metrics: Mapping[str, str], evaluator: Evaluator):
        self._metrics = metrics
        self._evaluator = evaluator
        self.by_round: dict[str, dict[int, float]] = {task: {} for task in metrics}
        self.best: dict[str, tuple[int, State]] = {}
        self.seconds = 0.0

    def measure(self, model: MultiTaskModel, round_: int) -> None:
        """Evaluate the model on every task, and keep its state for the tasks that improved."""
        state: State | None = None
        began = time.monotonic()
        for task, metric in self._metrics.items():
            value = self._evaluator.evaluate(model, task)[metric]
            if all(value > earlier for earlier in self.by_round[task].values()):
                state = state or {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
                self.best[task] = (round_, state)
            self.by_round[task][round_] = value
        self.seconds += time.monotonic() - began
