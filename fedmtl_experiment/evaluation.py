"""How good a model is on the rows for reporting."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch

from fedmtl_client.data import EncodedRows, Rows
from fedmtl_client.trainer import Trainer, choose_device
from fedmtl_core.config import Config
from fedmtl_core.errors import FedMTLError
from fedmtl_core.model.modeling import MultiTaskModel, load_tokenizer

UNDEFINED = 0.0
"""What an undefined metric counts for in a comparison: a model that predicts the same for every row has found nothing.
Without it, the method that fails would be favoured."""


class Evaluator:
    """Evaluates models of one configuration; texts are made into token ids once.

    Args:
        config: names the tokenizer, and how long inputs are.
        rows: by task.
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
        """Those that there are rows of."""
        return self._rows.keys()

    def evaluate(self, model: MultiTaskModel, task: str) -> dict[str, float]:
        """A task's metrics, and its `loss`; the model is unchanged, but on the configuration's device.

        Raises:
            FedMTLError: its outputs aren't finite.
        """
        measured = self._trainers[task].evaluate(model.to(self._device), self._rows[task])
        if "loss" in measured.undefined:
            raise FedMTLError(
                f"{task}: the model can't be compared: its loss is undefined: {measured.undefined['loss']}"
            )
        return {**measured, **dict.fromkeys(measured.undefined, UNDEFINED)}
