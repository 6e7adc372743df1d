"""Checks the model of a server before it starts: its adapters, its sharing, and the disk space for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fedmtl_core.config import Config
from fedmtl_core.runtime import doctor
from fedmtl_core.runtime.doctor import Finding, fail, ok, warn

if TYPE_CHECKING:
    from fedmtl_core.model.modeling import MultiTaskModel
    from fedmtl_server.model_parts import ModelParts


def adapters(config: Config) -> Iterator[Finding]:
    """Check that the adapters fit the encoder, that training changes each, and that each has an effect."""
    from fedmtl_core.config.adapter_texts import adapters_in_words
    from fedmtl_core.model.adapter_check import check_adapters
    from fedmtl_core.model.adapters import adapted_layers, require_peft

    assert config.model.adapters is not None
    require_peft()
    model = whole_model(config)
    trained = sum(tensor.numel() for name, tensor in model.exchanged().items() if name.startswith("encoder."))
    frozen = sum(tensor.numel() for tensors in model.base().values() for tensor in tensors.values())
    yield ok(
        "adapters",
        f"{adapters_in_words(config.model.adapters)}; {len(adapted_layers(model.encoder))} layers, {trained:,} trained "
        f"parameters beside {frozen:,} that no round changes",
    )
    for remark in check_adapters(model.encoder, model.pooling).remarks:
        yield (fail if remark.is_error else warn)("adapters", remark.found, remark.advice)


def sharing(config: Config) -> Iterator[Finding]:
    """Report the size of each scope, also after each entry of the schedule, and check that the encoder has the layers
    that the configuration names."""
    stages = parts_of(config)
    of = "the encoder's adapters and the heads: " if config.model.adapters is not None else ""
    for when, parts in stages.items():
        sizes = {layout.scope: layout.num_bytes for layout in parts.layouts()}
        yield ok("sharing", when + of + ", ".join(f"{scope} {doctor.megabytes(size)}" for scope, size in sizes.items()))
    table = next(iter(stages.values())).table
    if local := {task: table.local_for(task) for task in table.tasks if table.local_for(task)}:
        kept = ", ".join(f"{len(names)} tensors of {task}" for task, names in local.items())
        yield ok("sharing", f"each client keeps {kept} for itself, and needs weights for those of the encoder")


def starting_run(config: Config, run_dir: Path | None = None) -> Iterator[Finding]:
    """Check that a new run can start from the run that `model.from_run` names. A run in the folder needs no other."""
    from fedmtl_server.initial_model import examine_start
    from fedmtl_server.storage.paths import RUN_FILE

    if run_dir is not None and (run_dir / RUN_FILE).is_file():
        yield ok("from_run", f"not used: {run_dir} has a run, which continues from its own checkpoint")
    else:
        yield ok("from_run", examine_start(config, next(iter(parts_of(config).values()))))


def disk(config: Config, place: Path) -> Iterator[Finding]:
    """Check that a folder's disk has room for the run's checkpoints and staged updates."""
    updates, base = update_bytes(config), base_bytes(config)
    whole = updates.pop("")
    kept = config.store.keep_checkpoints + len(config.tasks) + 1  # the best of each task, and the one being written
    staged = 0
    if config.store.durability != "memory":
        staged = sum(updates[name] * max(task.min_clients, 1) for name, task in config.tasks.items())
    what = f"{doctor.megabytes(base)} for the base of the adapters, " if base else ""
    what += f"{kept} checkpoints of {doctor.megabytes(whole)}"
    what += f", and {doctor.megabytes(staged)} for the updates of min_clients clients per task" if staged else ""
    yield from doctor.room("disk", place, base + kept * whole + staged, what)


def update_bytes(config: Config) -> dict[str, int]:
    """Return the size of a task's largest update in bytes by task, and that of all components under the empty name.

    With a schedule, the size of all components is the largest one.
    """
    from fedmtl_core.model.scopes import is_trained

    stages = list(parts_of(config).values())
    sizes = {layout.scope: layout.num_bytes for layout in stages[0].layouts()}
    updates = {
        task: max(
            sum(sizes[scope] for scope in stages[0].table.scopes_for(task) if is_trained(scope, round_))
            for round_ in (1, 2)
        )
        for task in config.tasks
    }
    return {"": max(parts.num_bytes() for parts in stages)} | updates


def parts_of(config: Config) -> dict[str, ModelParts]:
    """Return the model's parts before the first round, and after each entry of the schedule by a text that says when.

    The model is built without memory.

    Raises:
        ConfigError: `sharing` names a part that the encoder does not have.
    """
    import torch

    from fedmtl_core.model.sharing_schedule import SharingSchedule
    from fedmtl_server.model_parts import ModelParts

    rules = config.sharing_rules()
    with torch.device("meta"):
        parts = ModelParts.of(whole_model(config), rules)
    planned = parts.planned(SharingSchedule.of(parts.shape, rules, config.sharing.changes()))
    return {"": parts} | {f"after round {round_}: ": one for round_, one in planned.items()}


def base_bytes(config: Config) -> int:
    """Return the size in bytes of the parameters that no round changes; 0 without adapters."""
    import torch

    if config.model.adapters is None:
        return 0
    with torch.device("meta"):
        return sum(one.nbytes for tensors in whole_model(config).base().values() for one in tensors.values())


def whole_model(config: Config) -> MultiTaskModel:
    """Return the server's model with random values."""
    from fedmtl_core.model.modeling import MultiTaskModel, load_encoder

    section = config.model
    encoder, hidden_size = load_encoder(
        section.server_model, weights=False, num_hidden_layers=section.num_hidden_layers
    )
    return MultiTaskModel(
        encoder, config.task_specs(), hidden_size=hidden_size, pooling=section.pooling, adapters=config.adapters()
    )
