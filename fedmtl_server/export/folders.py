"""Export of a run's models as folders that Hugging Face libraries load.

A task's model becomes a class of `transformers` if one computes the same logits. Otherwise it becomes the class in
`modeling_fedmtl.py`, and that file is copied into the folder. The logits are compared before anything is written.
Adapters are merged into the weights, or written alone for `peft`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from fedmtl_core.config.sharing import VALIDATED
from fedmtl_core.config.stages import SOURCES
from fedmtl_core.errors import FedMTLError, StoreError, UserError
from fedmtl_core.model.encoders import is_of_encoder_decoder, save_encoder
from fedmtl_core.model.modeling import load_tokenizer
from fedmtl_core.model.scopes import FROZEN
from fedmtl_core.tasks.spec import METRICS_OF, TaskSpec
from fedmtl_server.export.conversion import fedmtl_model, have_same_logits, native_model
from fedmtl_server.export.masked_lm import masked_lm
from fedmtl_server.export.model_card import AdapterMetadata, CardMetadata, SharingMetadata, card_of_all, card_of_task
from fedmtl_server.export.peft_card import card_of_adapters
from fedmtl_server.export.peft_folder import peft_folder
from fedmtl_server.model import MTLServerModel
from fedmtl_server.saved_runs import SavedRun, Which, choose_round, load_model
from fedmtl_server.sharing.source_selection import taken
from fedmtl_server.storage.checkpoints import write_safetensors


@dataclass(frozen=True)
class Exported:
    """An exported folder and the model in it."""

    folder: Path
    round: int
    architecture: str
    """The class that loads the model."""
    is_native: bool
    """Whether `architecture` is a class of `transformers`; FedMTL's own class needs `trust_remote_code=True`."""
    is_tried: bool = True
    """Whether the exported model was run; False for adapters whose base has no weights on this machine."""


def export_task(run: SavedRun, task: str, folder: Path, which: Which = "last", *, force: bool = False) -> Exported:
    """Write one task's model for `AutoModelForSequenceClassification.from_pretrained`.

    A `masked_lm` is written for `AutoModelForMaskedLM.from_pretrained`.

    Args:
        run: the run.
        task: the task.
        folder: the folder to write; without `force` it must be new or empty.
        which: the round whose model is written.
        force: whether files in the folder may be replaced.

    Raises:
        UserError: the run has no such task or round, the folder isn't empty, or the model's parameters or logits aren't
            finite. Also if the task's type is a plug-in, or its clients keep some parameters for themselves. Also for a
            `masked_lm` over an encoder without a class in `transformers` that computes the same.
        CorruptCheckpointError: the checkpoint's bytes have changed since they were written.
        ModelUnavailableError: the encoder's architecture or its tokenizer can't be loaded.
    """
    spec = _spec(run, task)
    round_ = choose_round(run, which, task)
    _require_free(folder, force)
    server_model = load_model(run, round_)
    module = server_model.module_for(task).eval()
    tokenizer = _tokenizer(run)
    plain = module.merged().eval()
    model = masked_lm(plain, task) if spec.type == "masked_lm" else native_model(plain, spec, run.config)
    is_native = model is not None and have_same_logits(module, spec, model, tokenizer)
    if spec.type == "masked_lm" and not is_native:
        raise UserError(
            f"--task: {task} is a masked_lm, and no class of transformers is known to compute the same over this "
            f"encoder ({type(module.encoder).__name__}); --all writes the head as it is"
        )
    if model is None or not is_native:
        model = fedmtl_model(plain, spec, run.config)
        if not have_same_logits(module, spec, model, tokenizer):
            raise FedMTLError(
                f"{task}: the exported model doesn't compute the same as the run's model; nothing is written"
            )
    architecture = type(model).__name__
    card = card_of_task(_metadata(run, round_, server_model), spec, architecture, is_native=is_native)

    def write(scratch: Path) -> None:
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        (scratch / "README.md").write_text(card, encoding="utf-8")

    _fill(folder, write)
    return Exported(folder, round_, architecture, is_native)


def export_adapters(run: SavedRun, task: str, folder: Path, which: Which = "last", *, force: bool = False) -> Exported:
    """Write one task's adapters and head for `PeftModel.from_pretrained`, onto the model that the run started from.

    Arguments are those of `export_task`.

    Raises:
        UserError: as for `export_task`; also if the run has no adapters, or they can't be loaded onto a class of
            `transformers` with weights that the reader can have. The message says what to do.
        CorruptCheckpointError: the checkpoint's bytes have changed since they were written.
        ModelUnavailableError: the encoder's architecture, its weights or its tokenizer can't be loaded.
        FedMTLError: `peft` loads other tensors than those written, or computes other logits with them.
    """
    spec = _spec(run, task)
    round_ = choose_round(run, which, task)
    _require_free(folder, force)
    server_model = load_model(run, round_)
    module = server_model.module_for(task).eval()
    tokenizer = _tokenizer(run)
    content = peft_folder(module, spec, run.config, tokenizer)
    card = card_of_adapters(_metadata(run, round_, server_model), spec, content.architecture, content.options)

    def write(scratch: Path) -> None:
        content.write(scratch)
        content.try_on_base(scratch, module, spec, tokenizer)
        tokenizer.save_pretrained(scratch)
        (scratch / "README.md").write_text(card, encoding="utf-8")

    _fill(folder, write)
    return Exported(folder, round_, content.architecture, is_native=True, is_tried=content.is_tried)


def export_all(run: SavedRun, folder: Path, which: Which = "last", *, force: bool = False) -> Exported:
    """Write the parameters that the run trained to `fedmtl.safetensors`, and the encoders for
    `AutoModel.from_pretrained`.

    The encoder is written to `encoder/`, or to `encoders/TASK/` for each task if the tasks don't share one encoder. An
    encoder is left out if clients keep parts of it for themselves. Adapters are merged into it.

    Arguments and errors are those of `export_task`.
    """
    round_ = choose_round(run, which, None)
    _require_free(folder, force)
    model = load_model(run, round_)
    tokenizer = _tokenizer(run)
    encoders = {f"encoders/{task}": task for task in model.tasks if model.sharing.has_encoder(task)}
    if model.sharing.has_one_encoder:
        encoders = {"encoder": model.tasks[0]}
    part = bool(encoders) and is_of_encoder_decoder(model.encoder_for(next(iter(encoders.values()))))
    card = card_of_all(_metadata(run, round_, model), run.config, list(encoders), of_encoder_decoder=part)

    def write(scratch: Path) -> None:
        for name, task in encoders.items():
            save_encoder(model.encoder_for(task), scratch / name)
            tokenizer.save_pretrained(scratch / name)
        with (scratch / "fedmtl.safetensors").open("wb", buffering=0) as file:
            write_safetensors(file, model.components.values(), {"run_id": run.run_id, "round": str(round_)})
        (scratch / "README.md").write_text(card, encoding="utf-8")

    _fill(folder, write)
    return Exported(folder, round_, model.architecture, is_native=True)


def _spec(run: SavedRun, task: str) -> TaskSpec:
    if task not in run.config.tasks:
        raise UserError(f"--task: the run has the tasks {', '.join(run.config.tasks)}, got {task!r}")
    spec = run.config.tasks[task].spec(task)
    if spec.type not in METRICS_OF:
        raise UserError(
            f"--task: {task} has a custom task type ({spec.type}), and transformers has no class for its head; "
            "--all writes the head as it is"
        )
    return spec


def _tokenizer(run: SavedRun) -> PreTrainedTokenizerBase:
    tokenizer = load_tokenizer(run.config.model.client_model or run.config.model.server_model)
    tokenizer.model_max_length = run.config.training.max_length  # the length in training
    tokenizer.padding_side = "right"  # as in training; BERT's pooler takes the first column
    return tokenizer


def _metadata(run: SavedRun, round_: int, model: MTLServerModel) -> CardMetadata:
    clients: dict[str, set[str]] | None = None
    if run.contributors is not None:
        clients = {task: set() for task in run.config.tasks}
        for number, tasks in run.contributors.items():
            for client_id, task in tasks.items() if number <= round_ else ():
                clients.setdefault(task, set()).add(client_id)
    return CardMetadata(
        run_id=run.run_id,
        base_model=run.config.model.server_model,
        round=round_,
        num_rounds=run.config.training.num_rounds,
        adapters=_adapter_metadata(run, model),
        tasks=run.config.task_specs(),
        pooling=run.config.model.pooling,
        max_length=run.config.training.max_length,
        metrics={task: by_round.get(round_, {}) for task, by_round in run.metrics.items()},
        num_clients=None if clients is None else {task: len(ids) for task, ids in clients.items()},
        sharing=_sharing_metadata(model),
        auxiliary=run.config.auxiliary_tasks(),
        sources=_sources(run, round_),
        started_from=None if run.started_from is None else (run.started_from["run_id"], run.started_from["round"]),
    )


def _adapter_metadata(run: SavedRun, model: MTLServerModel) -> AdapterMetadata | None:
    section = run.config.model.adapters
    if section is None:
        return None
    first = {} if run.digests is None else run.digests[0]
    return AdapterMetadata(section, first.get(FROZEN) or model.base[FROZEN].digest().hex())


def _sharing_metadata(model: MTLServerModel) -> SharingMetadata | None:
    """Return the tasks that share each scope; None if all tasks share one encoder and each has its own head."""
    if model.sharing.is_one_model:
        return None
    sizes = model.summary().scope_parameters
    return SharingMetadata(
        {scope: (model.sharing.members(scope), size) for scope, size in sizes.items()},
        {task: len(local) for task in model.tasks if (local := model.sharing.local_for(task))},
    )


def _sources(run: SavedRun, round_: int) -> dict[str, dict[str, list[int]]] | None:
    """Return, by task, the other tasks whose updates its own layers took by the end of a round; None if unknown."""
    if run.config.sharing.adaptive.policy != VALIDATED:
        return {}
    if run.digests is None:
        return None  # no history
    states = [one.get("stages", {}).get(SOURCES.name) for one in run.reports if one["round"] <= round_]
    return taken([state for state in states if state], tuple(run.config.tasks))


def _require_free(folder: Path, force: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"DIR: {folder} is a file")
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise UserError(f"DIR: {folder} isn't empty; --force overwrites its files")


def _fill(folder: Path, write: Callable[[Path], None]) -> None:
    """Write a folder under a temporary name and then move its files, so that a failure leaves no partial export."""
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
