"""A run's models as folders that Hugging Face's libraries read.

A task's model becomes a class of `transformers` itself where one computes the same, and otherwise `modeling_fedmtl.py`,
which is put beside it. Which one it is isn't guessed: both sides' logits are compared.
"""

from __future__ import annotations

import copy
import json
import math
import os
import tempfile
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from fedmtl_core import config as configuration
from fedmtl_core.config import Config
from fedmtl_core.errors import (
    ConfigError,
    CorruptCheckpointError,
    FedMTLError,
    NonFiniteError,
    StoreError,
    UserError,
)
from fedmtl_core.logs import get_logger
from fedmtl_core.model.encoders import is_of_encoder_decoder, save_encoder
from fedmtl_core.model.modeling import MultiTaskModel, load_tokenizer
from fedmtl_core.model.sharing import blocks_of
from fedmtl_core.randomness import drawing_from
from fedmtl_core.tasks.spec import METRICS_OF, TaskSpec
from fedmtl_core.wire.layout import Component
from fedmtl_server.export.masked_lm import masked_lm
from fedmtl_server.export.model_card import CardFacts, SharingFacts, card_of_all, card_of_task
from fedmtl_server.export.modeling_fedmtl import FedMTLConfig, FedMTLForSequenceClassification
from fedmtl_server.model import MTLServerModel
from fedmtl_server.storage.checkpoints import read_metadata, read_safetensors, write_safetensors
from fedmtl_server.storage.folders import read_run_id
from fedmtl_server.storage.history import History
from fedmtl_server.storage.paths import HISTORY_FILE

Which = int | Literal["best", "last"]

TOLERANCE = 1e-5
"""Logits of what is written differ from the run's by no more, or by this share of the largest."""

_PROBES = (("a", "b"), ("the film was great", "the film was not dull at all, was it?"), ("one two three", "four"))
"""Texts, alone or as pairs, on which logits are compared."""


@dataclass(frozen=True)
class Run:
    """A run as its folder has it, and what its history says of it where there is one."""

    folder: Path
    run_id: str
    config: Config
    digests: Mapping[int, Mapping[str, str]] | None = None
    """By committed round, SHA-256 in hexadecimal by scope; None without a history."""
    metrics: Mapping[str, Mapping[int, Mapping[str, float]]] = field(default_factory=dict)
    """By task, and by round of the model measured, the value by name."""
    contributors: Mapping[int, Mapping[str, str]] | None = None
    """By round, task by client id of those whose updates counted; None without a history."""

    def checkpoint(self, round_: int) -> Path:
        return self.folder / "checkpoints" / f"round-{round_:04}.safetensors"

    def rounds(self) -> list[int]:
        """The rounds whose model is there."""
        names = (path.stem.removeprefix("round-") for path in (self.folder / "checkpoints").glob("round-*.safetensors"))
        there = sorted(int(name) for name in names if name.isdecimal())
        return there if self.digests is None else [round_ for round_ in there if round_ in self.digests]


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path
    round: int
    architecture: str
    """The class that loads it."""
    is_native: bool
    """Whether that is one of `transformers`; else it needs `trust_remote_code=True`."""


def open_run(folder: Path) -> Run:
    """A run by its folder: `config.yaml`, `run.json` and a checkpoint are enough.

    Raises:
        StoreError: the folder holds no run, or none that can be read.
    """
    if not (folder / "run.json").is_file():
        raise StoreError(f"{folder} holds no run; see `fedmtl-server runs list`")
    run_id = read_run_id(folder / "run.json")
    try:
        config = configuration.load(folder / "config.yaml")
    except ConfigError as error:
        raise StoreError(f"{folder} holds a run that can't be read: {error}") from None
    run = Run(folder, run_id, config)
    if config.store.url is None and not (folder / HISTORY_FILE).is_file():
        return _with_results(run)
    try:
        return _with_history(run)
    except StoreError as error:
        get_logger().warning("history.unreadable", run_dir=str(folder), reason=str(error))
        return _with_results(run)


def choose_round(run: Run, which: Which, task: str | None) -> int:
    """The round whose model is meant.

    Args:
        run: the run.
        which: its number, or `last`, or `best`: of the task's main metric.
        task: the task that `best` is of.

    Raises:
        UserError: there is no such model; the message has those that are there.
    """
    there = run.rounds()
    if not there:
        raise UserError(f"--round: {run.folder} holds no checkpoint")
    round_ = there[-1] if which == "last" else _best(run, task) if which == "best" else which
    if round_ not in there:
        raise UserError(
            f"--round: {run.folder} has no checkpoint of round {round_}; there are {', '.join(map(str, there))}"
        )
    return round_


def _best(run: Run, task: str | None) -> int:
    """The first round whose model was the best by a task's main metric."""
    if task is None:
        raise UserError("--round: `best` is one task's best: name it with --task, or give the round's number")
    metric = run.config.tasks[task].spec(task).main_metric
    values = {round_: one[metric] for round_, one in run.metrics.get(task, {}).items() if metric in one}
    measured = {round_: value for round_, value in values.items() if math.isfinite(value)}  # NaN is no round's best
    if not measured:
        raise UserError(
            f"--round: nobody has measured {task}'s {metric} in {run.folder}, or it is undefined; try --round last"
        )
    return max(sorted(measured), key=lambda round_: measured[round_])


def export_task(run: Run, task: str, folder: Path, which: Which = "last", *, force: bool = False) -> Exported:
    """Write one task's model such that `AutoModelForSequenceClassification.from_pretrained` loads it, or where words
    are masked `AutoModelForMaskedLM.from_pretrained`.

    Args:
        run: the run.
        task: the task.
        folder: a new or an empty one; with `force` any.
        which: the round.
        force: write over what is there.

    Raises:
        UserError: there is no such task or round, the folder is in use, the task's kind is a plug-in, or its clients
            keep some of its parameters for themselves; or no class of `transformers` computes what it does over this
            encoder; or the model has or computes values that aren't finite.
        CorruptCheckpointError: the checkpoint isn't what was written.
        ModelUnavailableError: the encoder's architecture or its tokenizer can't be had.
    """
    spec = _spec(run, task)
    round_ = choose_round(run, which, task)
    _require_free(folder, force)
    server_model = load_model(run, round_)
    module = server_model.module_for(task).eval()
    tokenizer = _tokenizer(run)
    native = masked_lm(module, task) if spec.type == "masked_lm" else _native(module, spec, run.config)
    is_native = native is not None and _same_logits(module, spec, native, tokenizer)
    if spec.type == "masked_lm" and not is_native:
        raise UserError(
            f"--task: {task} is a masked_lm, and no class of transformers is known to compute the same over this "
            f"encoder ({type(module.encoder).__name__}); --all writes it as it is"
        )
    model = native if is_native else _own(module, spec, run.config)
    if not is_native and not _same_logits(module, spec, model, tokenizer):
        raise FedMTLError(f"{task}: the exported model doesn't compute the same as the run's; nothing is written")
    architecture = type(model).__name__
    card = card_of_task(_facts(run, round_, server_model), spec, architecture, is_native=is_native)

    def write(scratch: Path) -> None:
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        (scratch / "README.md").write_text(card, encoding="utf-8")

    _fill(folder, write)
    return Exported(folder, round_, architecture, is_native)


def export_all(run: Run, folder: Path, which: Which = "last", *, force: bool = False) -> Exported:
    """Write all that the server has: `fedmtl.safetensors`, encoder and heads; and for `AutoModel.from_pretrained`
    `encoder/`, or `encoders/TASK/` for each task where they don't share one. An encoder of which clients keep parts for
    themselves isn't there.

    Args and errors are those of `export_task`.
    """
    round_ = choose_round(run, which, None)
    _require_free(folder, force)
    model = load_model(run, round_)
    tokenizer = _tokenizer(run)
    encoders = {f"encoders/{task}": task for task in model.tasks if model.sharing.has_encoder(task)}
    if model.sharing.has_one_encoder:
        encoders = {"encoder": model.tasks[0]}
    part = bool(encoders) and is_of_encoder_decoder(model.encoder_for(next(iter(encoders.values()))))
    card = card_of_all(_facts(run, round_, model), run.config, list(encoders), of_encoder_decoder=part)

    def write(scratch: Path) -> None:
        for name, task in encoders.items():
            save_encoder(model.encoder_for(task), scratch / name)
            tokenizer.save_pretrained(scratch / name)
        with (scratch / "fedmtl.safetensors").open("wb", buffering=0) as file:
            write_safetensors(file, model.components.values(), {"run_id": run.run_id, "round": str(round_)})
        (scratch / "README.md").write_text(card, encoding="utf-8")

    _fill(folder, write)
    return Exported(folder, round_, model.architecture, is_native=True)


def _spec(run: Run, task: str) -> TaskSpec:
    if task not in run.config.tasks:
        raise UserError(f"--task: the run has the tasks {', '.join(run.config.tasks)}, got {task!r}")
    spec = run.config.tasks[task].spec(task)
    if spec.type not in METRICS_OF:
        raise UserError(
            f"--task: {task} is of a kind of its own ({spec.type}), whose head transformers has no class for; "
            "--all writes it as it is"
        )
    return spec


def load_model(run: Run, round_: int) -> MTLServerModel:
    """The model after a round, checked.

    Raises:
        StoreError: its checkpoint can't be read, or isn't what was written.
        UserError: a parameter is NaN or infinite.
        ModelUnavailableError: the encoder's architecture can't be had.
    """
    model = MTLServerModel.from_config(run.config, weights=False)
    path = run.checkpoint(round_)
    try:
        metadata = {"run_id": run.run_id, "round": str(round_)}
        if (sharing := read_metadata(path).get("sharing")) is not None:
            metadata["sharing"] = sharing
        table = model.table_of({part: blocks_of(blocks) for part, blocks in json.loads(sharing or "{}").items()})
        components = read_safetensors(path, model.layouts_of(table), metadata)
    except (ValueError, AttributeError, KeyError) as error:
        raise CorruptCheckpointError(f"{path}: what it says of moved layers can't be read: {error}") from None
    except OSError as error:
        raise StoreError(f"can't read {path}: {error.strerror or error}") from None
    expected = run.digests[round_] if run.digests is not None else None
    if expected is not None and (damaged := [s for s, one in components.items() if one.digest().hex() != expected[s]]):
        raise CorruptCheckpointError(f"{path}: {', '.join(damaged)}: the bytes aren't those that were written")
    _require_finite(run, round_, components)
    model.rearrange(table, components)
    return model


def _require_finite(run: Run, round_: int, components: Mapping[str, Component]) -> None:
    """Check that a round's model is made of numbers.

    Raises:
        UserError: a tensor, which the message names, has NaN or infinite values.
    """
    try:
        for component in components.values():
            component.require_finite()
    except NonFiniteError as error:
        raise UserError(
            f"--round: the model of round {round_} in {run.folder} is damaged: {error}; export an earlier round"
        ) from None


def _tokenizer(run: Run) -> Any:
    tokenizer = load_tokenizer(run.config.model.client_model or run.config.model.server_model)
    tokenizer.model_max_length = run.config.training.max_length  # what the model was trained with
    tokenizer.padding_side = "right"  # as in training; BERT's pooler takes the first column
    return tokenizer


# One task's model.


def _native(module: MultiTaskModel, spec: TaskSpec, config: Config) -> Any:
    """The class of `transformers` that has these parameters, with them in it; None if none has."""
    if config.model.pooling != "cls":
        return None  # none of them takes a mean
    settings = copy.deepcopy(module.encoder.config)
    _describe(settings, spec, config)
    try:
        with drawing_from(0):
            model = AutoModelForSequenceClassification.from_config(settings)
    except (ValueError, AttributeError):  # it has no such class
        return None
    state = _native_state(module, spec.name, model)
    if state is None:
        return None
    model.load_state_dict(state)
    return model.eval()


def _native_state(module: MultiTaskModel, task: str, model: Any) -> dict[str, Tensor] | None:
    """The parameters under the names that a class of `transformers` has for them.

    BERT and its like keep the encoder's pooler and put a linear layer on it. RoBERTa and its like have no pooler, but
    the same two layers in what they call the classifier.
    """
    encoder = {f"{model.base_model_prefix}.{name}": value for name, value in module.encoder.state_dict().items()}
    head = module.heads[task].state_dict()
    pooled = encoder | {f"classifier.{name}": value for name, value in head.items()}
    if pooled.keys() == model.state_dict().keys():
        return pooled
    pooler = f"{model.base_model_prefix}.pooler.dense."
    moved = {name: value for name, value in encoder.items() if not name.startswith(pooler)}
    moved |= {
        f"classifier.dense.{name.removeprefix(pooler)}": value
        for name, value in encoder.items()
        if name.startswith(pooler)
    }
    moved |= {f"classifier.out_proj.{name}": value for name, value in head.items()}
    return moved if moved.keys() == model.state_dict().keys() else None


def _own(module: MultiTaskModel, spec: TaskSpec, config: Config) -> Any:
    """`modeling_fedmtl.py`'s class, with the parameters in it."""
    settings = FedMTLConfig(
        encoder=module.encoder.config.to_dict(),  # type: ignore[operator, union-attr]
        of_encoder_decoder=is_of_encoder_decoder(module.encoder),
        hidden_size=module.hidden_size,
        pooling=config.model.pooling,
    )
    _describe(settings, spec, config)
    with drawing_from(0):
        model = FedMTLForSequenceClassification(settings)
    state = {f"encoder.{name}": value for name, value in module.encoder.state_dict().items()}
    model.load_state_dict(state | {f"classifier.{k}": v for k, v in module.heads[spec.name].state_dict().items()})
    FedMTLConfig.register_for_auto_class()  # have save_pretrained copy the file
    FedMTLForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
    return model.eval()


def _describe(settings: Any, spec: TaskSpec, config: Config) -> None:
    """Put a task's outputs and their names into a configuration of `transformers`."""
    settings.num_labels = spec.num_outputs
    if spec.labels:
        settings.id2label = dict(enumerate(spec.labels))
        settings.label2id = {label: number for number, label in enumerate(spec.labels)}
    settings.problem_type = "single_label_classification" if spec.labels else "regression"
    settings.classifier_dropout = config.model.head_dropout


@torch.inference_mode()
def _same_logits(module: MultiTaskModel, spec: TaskSpec, model: Any, tokenizer: Any) -> bool:
    """Whether two models compute the same, within rounding; where there are logits of tokens, of all but padding.

    Texts are tried where the task has texts, pairs where it has pairs: not every encoder takes both.

    Raises:
        UserError: the run's own model computes NaN or infinite logits, which can't be compared with anything.
    """
    columns = [list(texts) for texts in zip(*_PROBES, strict=True)][: len(spec.text_columns)]
    for texts in (columns, [column[1:2] for column in columns]):  # together, and one alone
        inputs = tokenizer(*texts, padding=True, truncation=True, return_tensors="pt")
        ours, theirs = module(spec.name, inputs), model(**inputs).logits
        theirs = theirs[inputs["attention_mask"].bool()] if theirs.ndim == 3 else theirs
        if not ours.isfinite().all():
            raise UserError(
                f"--task: {spec.name}: the model computes logits that aren't finite, although its parameters are: it "
                "is damaged; export an earlier round"
            )
        bound = TOLERANCE * max(1.0, float(ours.abs().max()))
        if ours.shape != theirs.shape or not float((ours - theirs).abs().max()) <= bound:  # NaN is no small difference
            return False
    return True


# What is known of a run.


def _with_history(run: Run) -> Run:
    with closing(History.open(run.config.store.url or run.folder / HISTORY_FILE, create=False)) as history:
        rounds = [one for one in history.rounds(run.run_id) if one.outcome == "committed"]
        metrics, updates = history.metrics(run.run_id), history.updates(run.run_id)
    contributors: dict[int, dict[str, str]] = {}
    for update in updates:
        if update.outcome == "counted" and update.kind != "metrics":
            contributors.setdefault(update.round, {})[update.client_id] = update.task
    measured: dict[str, dict[int, dict[str, float]]] = {}
    for one in metrics:
        measured.setdefault(one.task, {}).setdefault(one.round, {})[one.name] = one.value
    digests = {one.round: one.checkpoint for one in rounds if one.checkpoint is not None}
    return Run(run.folder, run.run_id, run.config, digests, measured, contributors)


def _with_results(run: Run) -> Run:
    """What `results.json` has of the metrics, where there is no history."""
    try:
        results = json.loads((run.folder / "results.json").read_text(encoding="utf-8"))
        metrics = {
            task: {int(round_): {one["metric"]: float(value)} for round_, value in one["by_round"].items()}
            for task, one in results.items()
        }
    except FileNotFoundError:
        return run
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{run.folder} holds a run that can't be read: results.json: {error}") from None
    return Run(run.folder, run.run_id, run.config, metrics=metrics)


def _facts(run: Run, round_: int, model: MTLServerModel) -> CardFacts:
    clients: dict[str, set[str]] | None = None
    if run.contributors is not None:
        clients = {task: set() for task in run.config.tasks}
        for number, tasks in run.contributors.items():
            for client_id, task in tasks.items() if number <= round_ else ():
                clients.setdefault(task, set()).add(client_id)
    return CardFacts(
        run_id=run.run_id,
        base_model=run.config.model.server_model,
        round=round_,
        num_rounds=run.config.training.num_rounds,
        tasks=run.config.task_specs(),
        pooling=run.config.model.pooling,
        max_length=run.config.training.max_length,
        metrics={task: by_round.get(round_, {}) for task, by_round in run.metrics.items()},
        num_clients=None if clients is None else {task: len(ids) for task, ids in clients.items()},
        sharing=_sharing_facts(model),
        auxiliary=run.config.auxiliary_tasks(),
    )


def _sharing_facts(model: MTLServerModel) -> SharingFacts | None:
    """Who shares what, where it isn't an encoder that all share and a head for each task."""
    if model.sharing.is_one_model:
        return None
    sizes = model.summary().scope_parameters
    return SharingFacts(
        {scope: (model.sharing.members(scope), size) for scope, size in sizes.items()},
        {task: len(local) for task in model.tasks if (local := model.sharing.local_for(task))},
    )


# The folder.


def _require_free(folder: Path, force: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"DIR: {folder} is a file")
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise UserError(f"DIR: {folder} isn't empty; --force writes over what is there")


def _fill(folder: Path, write: Any) -> None:
    """Have a folder written elsewhere first, so that a failure leaves nothing half."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as name:
            scratch = Path(name)
            write(scratch)
            for path in sorted(path for path in scratch.rglob("*") if path.is_file()):
                target = folder / path.relative_to(scratch)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, target)
    except OSError as error:
        raise StoreError(f"can't write {folder}: {error.strerror or error}") from error
