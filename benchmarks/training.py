"""`python -m benchmarks.training`: measure a client's round of training relative to a plain loop.

The bound is a usual PyTorch loop, with rows in random order and the whole table of word embeddings. All variants train
the same model on the same rows, alternately.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from benchmarks.figures import Figure, show
from fedmtl_client.data import EncodedRows, load_task_data
from fedmtl_client.trainer import Trainer, choose_device
from fedmtl_core import config as configuration
from fedmtl_core.config import Config
from fedmtl_core.model.modeling import load_tokenizer
from fedmtl_server.model import MTLServerModel

console = Console(stderr=True, width=None if sys.stderr.isatty() else 150)


class WholeTable(Trainer):
    """Trains the embeddings of all words, as custom trainers do."""


_VARIANTS: dict[str, tuple[type[Trainer], bool]] = {
    "client's words only": (Trainer, False),
    "similar lengths": (WholeTable, True),
    "both": (Trainer, True),
}
"""For each variant, the trainer and whether rows are grouped by length."""


def main(
    config: Annotated[Path, typer.Option(help="Configuration with model, training and tasks.")] = Path(
        "configs/real.yaml"
    ),
    rows: Annotated[int, typer.Option(help="Number of rows of each task.")] = 500,
    pairs: Annotated[int, typer.Option(help="Number of measurements of each figure.")] = 3,
    threads: Annotated[int, typer.Option(help="Number of PyTorch threads.")] = 1,
) -> None:
    """Measure a client's round of training for each task.

    One JSON line for each figure goes to standard output; a table goes to standard error.
    """
    torch.set_num_threads(threads)
    settings = configuration.load(config, [])
    figures = [figure for task in settings.tasks for figure in _measure(settings, task, rows, pairs)]
    for figure in figures:
        print(figure.to_json())
    show(figures, console)


def _measure(settings: Config, task: str, num_rows: int, pairs: int) -> list[Figure]:
    """Return one task's figures."""
    device = choose_device(settings.training.device)
    model = MTLServerModel.from_config(settings).module.to(device)
    first_values = copy.deepcopy(model.state_dict())
    spec, plan = settings.tasks[task].spec(task), settings.plan(task)
    tokenizer = load_tokenizer(plan.client_model)
    train = load_task_data(spec, settings.tasks[task].data).train.head(num_rows)
    rows = EncodedRows(train, spec, tokenizer, plan.max_length)

    def seconds(kind: type[Trainer], group_by_length: bool) -> float:
        model.load_state_dict(first_values)
        trainer = kind(spec, dataclasses.replace(plan, group_by_length=group_by_length), device)
        return trainer.train(model, rows, 1, seed=1).seconds

    seconds(*_VARIANTS["both"])  # warm-up: later runs reuse its memory
    taken: dict[str, list[float]] = {name: [] for name in ("bound", *_VARIANTS)}
    for _ in range(pairs):
        taken["bound"].append(seconds(WholeTable, False))
        for name, variant in _VARIANTS.items():
            taken[name].append(seconds(*variant))
    return [
        Figure.of_pairs(f"{task}, {len(rows)} rows: {name}", "s", taken[name], taken["bound"], None, at_most=True)
        for name in _VARIANTS
    ]


if __name__ == "__main__":
    typer.run(main)
