"""Evaluate models on given rows of each task.

An evaluation uses one thread, and several run side by side. Batches of short texts are too small to divide: with two
threads, an evaluation takes longer than with one as soon as another process uses the processors. One thread also
makes the result independent of the number of processors.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import torch

from fedmtl_client.data import EncodedRows, Rows
from fedmtl_client.trainer import Trainer, choose_device
from fedmtl_core.config import Config
from fedmtl_core.errors import FedMTLError
from fedmtl_core.model.modeling import MultiTaskModel, load_tokenizer
from fedmtl_core.runtime.threads import in_one_thread
from fedmtl_core.tasks.kinds import Row
from fedmtl_core.tasks.spec import TaskSpec

UNDEFINED = 0.0
"""The value of an undefined metric in a comparison.

A correlation is undefined if a model predicts the same value for every row. Leaving such models out would favor the
methods that fail."""

Metrics = dict[str, float]

CandidateKey = tuple[str, int, str]
"""The task, round and client of a candidate."""


@dataclass(frozen=True)
class Candidate:
    """A model to evaluate on one task's rows."""

    task: str
    round: int
    """The round that the model was the result of."""
    model: MultiTaskModel
    client: str = ""
    """The client whose own model it is; empty for a model that a task's clients share."""

    @property
    def key(self) -> CandidateKey:
        """Identifies the result."""
        return self.task, self.round, self.client

    @property
    def label(self) -> str:
        """The candidate's name for people."""
        return f"{self.task}, round {self.round}" + (f", {self.client}" if self.client else "")


class RowEncoder:
    """Tokenizes rows, each only once for all configurations with the same tokenizer and maximum length."""

    def __init__(self) -> None:
        self._tokenizers: dict[str, Any] = {}
        self._encoded: dict[Hashable, tuple[Rows, StoppableRows]] = {}

    def encoded(self, config: Config, spec: TaskSpec, rows: Rows, split: str) -> StoppableRows:
        """Return the rows of a split of a task as token ids. Of several rows with one split's name, the newest are
        kept."""
        source = config.model.client_model or config.model.server_model
        if source not in self._tokenizers:
            self._tokenizers[source] = load_tokenizer(source)
        key = (split, source, config.training.max_length, repr(spec))
        known, encoded = self._encoded.get(key, (None, None))
        if known is None or encoded is None or (known.texts, known.labels) != (rows.texts, rows.labels):
            encoded = StoppableRows(rows, spec, self._tokenizers[source], config.training.max_length)
            self._encoded[key] = rows, encoded
        return encoded


class Evaluator:
    """Evaluates models of one configuration.

    Args:
        config: the configuration, with the tokenizer and the maximum input length.
        rows: the rows of each task.
        encoder: tokenizes the rows, and may know them from other configurations.
        split: the name of the rows; see `RowEncoder.encoded`.
    """

    def __init__(
        self, config: Config, rows: Mapping[str, Rows], encoder: RowEncoder | None = None, split: str = "report"
    ):
        encoder = encoder or RowEncoder()
        self._device: torch.device = choose_device(config.training.device)
        self._specs = {spec.name: spec for spec in config.task_specs() if spec.name in rows}
        self._trainers = {task: Trainer(spec, config.plan(task), self._device) for task, spec in self._specs.items()}
        self._rows = {task: encoder.encoded(config, spec, rows[task], split) for task, spec in self._specs.items()}

    @property
    def tasks(self) -> Collection[str]:
        """The tasks with rows."""
        return self._rows.keys()

    def evaluate(self, model: MultiTaskModel, task: str) -> Metrics:
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

    def evaluate_all(
        self,
        candidates: Iterable[Candidate],
        processors: int,
        on_start: Callable[[Candidate], None] = lambda candidate: None,
    ) -> dict[CandidateKey, Metrics]:
        """Return the metrics of each candidate by its key.

        Args:
            candidates: the models; the next one is requested when a thread is free, so that few are in memory.
            processors: the number of evaluations side by side; one on a device that isn't the CPU.
            on_start: called in this thread before each evaluation.

        Raises:
            FedMTLError: a model's outputs are not finite.
        """
        stop = threading.Event()
        for rows in self._rows.values():
            rows.stop = stop
        num_threads = processors if self._device.type == "cpu" else 1
        running: dict[Future[Metrics], CandidateKey] = {}
        measured: dict[CandidateKey, Metrics] = {}
        with in_one_thread(), ThreadPoolExecutor(num_threads, "evaluation", torch.set_num_threads, (1,)) as pool:
            try:
                for candidate in candidates:
                    on_start(candidate)
                    running[pool.submit(self.evaluate, candidate.model, candidate.task)] = candidate.key
                    if len(running) == num_threads:
                        _collect(running, measured)
                while running:
                    _collect(running, measured)
            except BaseException:
                stop.set()
                raise
        return measured


class StoppableRows(EncodedRows):
    """Encoded rows whose use in other threads ends when `stop` is set, so that Ctrl-C doesn't wait for evaluations."""

    stop = threading.Event()

    def __getitem__(self, index: int) -> Row:
        if self.stop.is_set():
            raise FedMTLError("the evaluation was stopped")
        return super().__getitem__(index)


def _collect(running: dict[Future[Metrics], CandidateKey], measured: dict[CandidateKey, Metrics]) -> None:
    """Wait for an evaluation to end, and move the results of those that have ended."""
    for done in wait(running, return_when=FIRST_COMPLETED).done:
        measured[running.pop(done)] = done.result()
