"""Three toy tasks whose relations are known, and federations of them.

A text is a few words. A hidden rule says which half of the words is heavy, and the label says whether heavy words have
the majority. The twins `mood` and `verdict` have the same rule, different texts, and different names of the labels. The
third task, `coin`, has labels at random, so it can neither be learned nor help. All three are of the same type.

Each twin has few texts. One of its texts says something about three words only, so the other twin's texts help.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedmtl_core.config import Config
from fedmtl_core.model import toy
from fedmtl_server.rounds.report import RoundReport
from fedmtl_server.sharing.source_selection import sources_of
from tests import federations
from tests.support import reports_of

LABELS = {"mood": ("negative", "positive"), "verdict": ("bad", "good"), "coin": ("tails", "heads")}
TWINS = ("mood", "verdict")

NUM_TRAIN, NUM_VALIDATION = 120, 800
_WORDS = [word for word in toy.vocabulary() if word.isalpha()][:48]
_WORDS_PER_TEXT = 3

# Each head trains first, on an encoder that all tasks have in common. The twins' heads then see the words alike, and
# the updates of their encoders point in similar directions.
_TRAINING = {
    "num_rounds": 4,
    "head_epochs": 30,
    "local_epochs": 3,
    "learning_rate": 2e-3,
    "per_device_train_batch_size": 32,
    "max_length": 16,
}
_MODEL = {"server_model": "builtin:toy", "num_hidden_layers": 1, "pooling": "mean", "head_dropout": 0.0}
VALIDATED = {"adaptive": {"policy": "validated"}}
APART = {"layers": {"embeddings": "task", "0": "task", "pooler": "task"}}


def run(folder: Path, seed: int, *, related: bool, sharing: Mapping[str, Any]) -> list[RoundReport]:
    """Run a federation with a client for each task, and return the reports of its rounds.

    Args:
        folder: the folder for the tasks' rows and the run.
        seed: seeds the rules, the texts, the random labels and the run.
        related: whether the twins have one rule; otherwise their rules are independent.
        sharing: the section `sharing`.
    """
    config = Config.model_validate(
        {
            "model": _MODEL,
            "training": {**_TRAINING, "seed": seed},
            "server": {"port": 0},
            "rounds": {"rejoin_grace_s": 0.2},
            "client": {"num_threads": 1},
            "tasks": _tasks(folder, seed, related),
            "clients": [{"client_id": task, "task": task} for task in LABELS],
            "sharing": sharing,
        }
    )
    federations.run(config, folder / "run")
    return reports_of(folder / "run")


def sources_after(report: RoundReport) -> dict[str, tuple[str, ...]]:
    """Return, by task, the tasks whose updates its layers take after a round."""
    selections = report.stages["sources"]["selections"]
    return sources_of({task: tuple(one["sources"]) for task, one in selections.items()}, tuple(LABELS))


def accuracies(report: RoundReport) -> dict[str, float]:
    """Return, by task, the accuracy of the model that a round began with."""
    return {one.task: one.received_metrics["accuracy"] for one in report.tasks}


def comparisons(reports: list[RoundReport]) -> str:
    """Return all comparisons of the run with their z values, for the message of a failed test."""
    return "\n".join(
        f"round {report.round}, {task.task}: {one.name}{' (chosen)' if one.chosen else ''} "
        f"{one.loss_difference:+.4f} ± {one.standard_error:.4f}"
        for report in reports
        for task in report.tasks
        for one in task.variants
        if one.loss_difference is not None and one.standard_error is not None
    )


def _tasks(folder: Path, seed: int, related: bool) -> dict[str, Any]:
    """Write the tasks' rows to files, and return the section `tasks`."""
    rng = random.Random(seed)
    rules = dict(zip(TWINS, _rules(rng, related), strict=True))
    folder.mkdir(parents=True, exist_ok=True)
    section = {}
    for task, names in LABELS.items():
        files = {}
        for split, count in (("train", NUM_TRAIN), ("validation", NUM_VALIDATION)):
            path = folder / f"{task}-{split}.jsonl"
            rows = [_row(rng, names, rules.get(task)) for _ in range(count)]
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            files[split] = str(path)
        section[task] = {
            "type": "classification",
            "text_columns": ["text"],
            "label_column": "label",
            "labels": list(names),
            "metrics": ["accuracy"],
            "data": files,
        }
    return section


def _rules(rng: random.Random, related: bool) -> tuple[set[str], set[str]]:
    """Draw the heavy words of both twins. Two different rules agree on exactly half of the words: they are independent,
    so that neither tells anything about the other."""
    words = rng.sample(_WORDS, len(_WORDS))
    quarters = [set(words[start::4]) for start in range(4)]
    rule = quarters[0] | quarters[1]
    return rule, rule if related else quarters[0] | quarters[2]


def _row(rng: random.Random, names: tuple[str, str], rule: set[str] | None) -> dict[str, str]:
    """Draw a text and its label, which is random without a rule."""
    words = rng.choices(_WORDS, k=_WORDS_PER_TEXT)
    is_heavy = rng.random() < 0.5 if rule is None else 2 * sum(word in rule for word in words) > len(words)
    return {"text": " ".join(words), "label": names[is_heavy]}
