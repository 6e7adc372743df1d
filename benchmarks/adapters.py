"""`python -m benchmarks.adapters`: measure adapters relative to full fine-tuning.

The figures are a client's training and memory, rounds without training, and the server's memory. Full fine-tuning is
the bound, in the same run. Two encoders are measured: two layers of MiniLM with pretrained weights (configs/real.yaml),
and BERT-base's shapes with random values (configs/bench_bert_base.yaml).
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from transformers import BertConfig

from benchmarks.figures import Figure, show
from benchmarks.processes import peak_rss, rss
from benchmarks.served import Served
from fedmtl_client.data import EncodedRows, load_task_data
from fedmtl_client.trainer import Trainer
from fedmtl_core import config as configuration
from fedmtl_core.config import Config
from fedmtl_core.model.modeling import MultiTaskModel, load_tokenizer
from fedmtl_core.runtime.allocator import give_back_freed_blocks
from fedmtl_server.model import MTLServerModel

TASK = "stsb"
TOKENIZER = "../shared/data/bert-tiny"
"""The tokenizer for BERT-base's shapes."""
EMPTY = BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
"""An encoder of a few hundred parameters, for a server that holds nothing."""
ADAPTERS: Mapping[str, Mapping[str, object]] = {
    "freeze_a": {"rank": 8},
    "average": {"rank": 8, "aggregation": "average"},
}
TIMEOUT_S = 900.0

console = Console(stderr=True, width=None if sys.stderr.isatty() else 150)


@dataclass(frozen=True)
class Encoder:
    """An encoder to measure with, and the rows that a client trains on."""

    name: str
    file: Path
    """The configuration with the model, the training and the task."""
    num_rows: int
    model: Mapping[str, object]
    """Keys of `model` that replace those of the file."""

    def config(self, adapters: Mapping[str, object] | None) -> Config:
        """Return the configuration, with the given adapters or without."""
        config = configuration.load(self.file, ["sharing=plain"])
        values = config.model_dump(mode="json", exclude_unset=True)
        values["model"] = {**values["model"], **self.model, "adapters": adapters}
        values["tasks"] = {TASK: values["tasks"][TASK]}
        values.pop("clients", None)
        return configuration.validated(values, f"the benchmark of {self.name}")


class Training:
    """One task's training in this process, with each kind of model.

    Args:
        encoder: the encoder.
    """

    def __init__(self, encoder: Encoder):
        self._device = torch.device("cpu")
        plain = encoder.config(None)
        self._spec, tokenizer = plain.tasks[TASK].spec(TASK), load_tokenizer(plain.model.server_model)
        train = load_task_data(self._spec, plain.tasks[TASK].data).train.head(encoder.num_rows)
        self._rows = EncodedRows(train, self._spec, tokenizer, plain.training.max_length)
        self._kinds = {"full": plain, **{name: encoder.config(one) for name, one in ADAPTERS.items()}}

    def measure(self, pairs: int) -> dict[str, list[float]]:
        """Return the CPU seconds of rounds of training by kind of model, measured alternately after a warm-up."""
        models = {kind: self._model(config) for kind, config in self._kinds.items()}
        taken: dict[str, list[float]] = {kind: [] for kind in models}
        for number in range(pairs + 1):
            for kind, model in models.items():
                seconds = self._train(model, self._kinds[kind])
                if number:
                    taken[kind].append(seconds)
        return taken

    def _model(self, config: Config) -> MultiTaskModel:
        return MTLServerModel.from_config(config).module

    def _train(self, model: MultiTaskModel, config: Config) -> float:
        plan = dataclasses.replace(config.plan(TASK), group_by_length=True)
        began = time.process_time()
        Trainer(self._spec, plan, self._device).train(model, self._rows, 1, seed=1)
        return time.process_time() - began


class Trained(Served):
    """A server, and one client that trains as a user's does.

    Args:
        folder: folder for temporary files.
        config: the configuration of both.
        num_clients: the number of clients that the server waits for. With 2, the only client waits for the other.
        fetch_base: whether the client downloads the base.
    """

    def __init__(self, folder: Path, config: Config, num_clients: int = 1, *, fetch_base: bool = False):
        self._client: subprocess.Popen[bytes] | None = None
        values = config.model_dump(mode="json", exclude_unset=True)
        settings = {
            "model": values["model"],
            "training": {**values["training"], "num_rounds": 1_000_000},
            "tasks": {TASK: {**values["tasks"][TASK], "min_clients": num_clients}},
            "client": {"fetch_base": fetch_base},
        }
        super().__init__(folder, EMPTY, [TASK], settings)

    def client_peak(self, rounds: int) -> int:
        """Return the client's peak memory after some rounds, in bytes; with 0, when it has been waiting for a while."""
        assert self._client is not None
        if not rounds:
            self._await(lambda: any(one.connected for one in self._api.get_status().clients))
            time.sleep(3.0)
        else:
            self._await(lambda: rounds in self._reports)
        return peak_rss(self._client.pid)

    def stop(self) -> None:
        if self._client is not None:
            self._client.kill()
            self._client.wait()
        super().stop()

    def _start_clients(self, folder: Path, tasks: Sequence[str], per_process: int) -> None:
        options = {"config": folder / "config.yaml", "client-id": "client", "task": TASK, "server": self.address}
        command = [sys.executable, "-m", "fedmtl_client", *(f"--{name}={value}" for name, value in options.items())]
        with (folder / "client.log").open("wb") as log:
            self._client = subprocess.Popen(command, stdout=log, stderr=log)

    def _await(self, is_true: Callable[[], bool]) -> None:
        give_up = time.monotonic() + TIMEOUT_S
        while not is_true():
            if time.monotonic() > give_up or (self._client and self._client.poll() is not None):
                raise RuntimeError("the client has ended, or takes too long; see its log")
            time.sleep(0.05)


class Bench:
    """All parts of the benchmark.

    Args:
        folder: folder for temporary files.
        pairs: number of measurements of each figure.
    """

    def __init__(self, folder: Path, pairs: int):
        self._folder = folder
        self._pairs = pairs
        bert = folder / "bert-base"
        self._shapes = configuration.load(Path("configs/bench_bert_base.yaml"), [])
        BertConfig.from_pretrained(self._shapes.model.server_model).save_pretrained(bert)
        load_tokenizer(TOKENIZER).save_pretrained(bert)
        of_bert = {"server_model": str(bert)}
        self._encoders = (
            Encoder("MiniLM, two layers", Path("configs/real.yaml"), 500, {}),
            Encoder("BERT-base", Path("configs/bench_bert_base.yaml"), 64, of_bert),
        )
        self.figures: list[Figure] = []

    def run(self, only: str = "") -> None:
        """Measure all parts, or those whose name contains `only`."""
        parts: dict[str, Callable[[], None]] = {
            "training": self._training,
            "client-memory": self._client_memory,
            "rounds": self._rounds,
        }
        for name, part in parts.items():
            if only in name:
                console.print(f"{time.strftime('%H:%M:%S')} {name}")
                part()

    # The parts.

    def _training(self) -> None:
        for encoder in self._encoders:
            taken = Training(encoder).measure(self._pairs)
            for kind in ADAPTERS:
                title = f"training of a round, {encoder.name}, {encoder.num_rows} rows, {kind} / full"
                self._add(title, "CPU s", taken[kind], taken["full"], 0.7)
            give_back_freed_blocks()

    def _client_memory(self) -> None:
        for encoder in self._encoders:
            idle = self._client_peak(encoder, None, 0)
            full = self._client_peak(encoder, None, 2) - idle
            for kind, adapters in ADAPTERS.items():
                mine = self._client_peak(encoder, adapters, 2) - idle
                self._add_memory(
                    f"client's peak RSS without an idle one's, {encoder.name}, {kind} / full", mine, full, 0.6
                )
            fetched = self._client_peak(encoder, ADAPTERS["freeze_a"], 2, fetch_base=True) - idle
            title = f"client's peak RSS without an idle one's, {encoder.name}, base downloaded / full"
            self._add_memory(title, fetched, full, 0.6)

    def _client_peak(
        self, encoder: Encoder, adapters: Mapping[str, object] | None, rounds: int, *, fetch_base: bool = False
    ) -> int:
        config = encoder.config(adapters)
        values = config.model_dump(mode="json", exclude_unset=True)
        values["tasks"][TASK] |= {"train_samples": encoder.num_rows, "val_samples": 32}
        config = configuration.validated(values, "the benchmark of a client")
        served = Trained(self._new_folder(), config, 1 if rounds else 2, fetch_base=fetch_base)
        try:
            return served.client_peak(rounds)
        finally:
            served.stop()

    def _rounds(self) -> None:
        """Measure rounds of 8 clients without training, and the server's memory afterwards."""
        tasks = [("sst2", "qqp", "stsb")[i % 3] for i in range(8)]
        shapes = BertConfig.from_pretrained(self._shapes.model.server_model)
        adapters = self._shapes.model.model_dump(mode="json", exclude_unset=True)["adapters"]
        with self._served(shapes, tasks) as full, self._served(shapes, tasks, {"adapters": adapters}) as adapted:
            at_start, resident = peak_rss(adapted.pid), rss(adapted.pid)
            ours, bound = [], []
            for number in range(self._pairs + 2):
                seconds = adapted.time_round(), full.time_round()
                if number >= 2:  # the first rounds are slow
                    ours.append(seconds[0])
                    bound.append(seconds[1])
            self._add("round without training, 8 clients, BERT-base, freeze_a / full", "s", ours, bound, 0.05)
            after_rounds = peak_rss(adapted.pid)
        with self._served(EMPTY, tasks, {"adapters": adapters}) as empty:
            at_start -= peak_rss(empty.pid)
            resident -= rss(empty.pid)
            for _ in range(self._pairs + 2):
                empty.time_round()
            after_rounds -= peak_rss(empty.pid)
        base = MTLServerModel.from_config(self._encoders[1].config(adapters)).base
        size = sum(component.layout.num_bytes for component in base.values())
        title = "RSS without an empty model's, BERT-base, freeze_a / the base"
        self._add_memory(f"server's peak {title}, until the first round", at_start, size, 1.05)
        self._add_memory(f"server's {title}, before the first round", resident, size, 1.05)
        self._add_memory(f"server's peak {title}, after rounds of 8 clients", after_rounds, size, None)

    # Helpers of the parts.

    @contextmanager
    def _served(
        self, shapes: BertConfig, tasks: Sequence[str], model: Mapping[str, object] | None = None
    ) -> Iterator[Served]:
        served = Served(self._new_folder(), shapes, tasks, {"model": dict(model or {})}, per_process=4)
        try:
            yield served
        finally:
            served.stop()

    def _new_folder(self) -> Path:
        return self._folder / f"served-{time.monotonic_ns()}"

    def _add_memory(self, name: str, ours: int, bound: int, target: float | None) -> None:
        self._add(name, "MB", [ours / 1e6], [bound / 1e6], target)

    def _add(self, name: str, unit: str, ours: Sequence[float], bound: Sequence[float], target: float | None) -> None:
        figure = Figure.of_pairs(name, unit, ours, bound, target, at_most=True)
        self.figures.append(figure)
        print(figure.to_json(), flush=True)


def main(
    pairs: Annotated[int, typer.Option(help="Number of measurements of each figure of time.")] = 5,
    only: Annotated[str, typer.Option(help="Measure only the parts whose name contains this text.")] = "",
    threads: Annotated[int, typer.Option(help="Number of PyTorch threads of the training in this process.")] = 1,
) -> None:
    """Measure adapters relative to full fine-tuning.

    One JSON line for each figure goes to standard output; progress and a table go to standard error.
    """
    torch.set_num_threads(threads)
    runs = Path("runs")
    runs.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="adapters-", dir=runs) as folder:  # on the disk of runs, not on a RAM disk
        bench = Bench(Path(folder).absolute(), pairs)
        bench.run(only)
        show(bench.figures, console)


if __name__ == "__main__":
    typer.run(main)
