"""Evaluate models on given rows of each task."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch

from fedmtl_client.data import EncodedRows, Rows
from fedmtl_client.trainer import Trainer, choose_device
from fedmtl_core.config import Config
from fedmtl_core.errors import FedMTLError
from fedmtl_core.model.modeling import MultiTaskModel, load_tokenizer

UNDEFINED = 0.0
"""The value of an undefined metric in a comparison.

A correlation is undefined if a model predicts the same value for every row. Leaving such models out would favor the
methods that fail."""


class Evaluator:
    """Evaluates models of one configuration; texts are tokenized once.

    Args:
        config: the configuration, with the tokenizer and the maximum input length.
        rows: the rows of each task.
    """

    def __init__(self, config: Config, rows: Mapping[str, Rows]):
        tokenizer = load_tokenizer(config.model.client_model or config.model.server_model)
        self._device: torch.device = choose_device(config.training.device)
        self._specs = {spec.name: spec for spec in config.task_specs() if spec.name in rows}
        self._trainers = {task: Trainer(spec, config.plan(task), self._device) for task, spec in self._specs.items()}
        self._rows = {
            task: EncodedRows(rows[task], spec, tokenizer, config.training.max_length)
            for task, spec in self._specs.items()
        }

    @property
    def tasks(self) -> Collection[str]:
        """The tasks with rows."""
        return self._rows.keys()

    def evaluate(self, model: MultiTaskModel, task: str) -> dict[str, float]:
        """Return a task's metrics, with its `loss`. The model moves to the configuration's device.

        Raises:
            FedMTLError: the model's outputs are not finite.
        """
        measured = self._trainers[task].evaluate(model.to(self._device), self._rows[task])
        if "loss" in measured.undefined:
            raise FedMTLError(
                f"{task}: the model can't be compared: its loss is undefined: {measured.undefined['loss']}"
            )
        return {**measured, **dict.fromkeys(measured.undefined, UNDEFINED)}
