"""The model of a new run that starts from another run's model and heads (`model.from_run`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from fedmtl_core.config import Config
from fedmtl_core.errors import ConfigError
from fedmtl_core.identifiers import name_some
from fedmtl_core.json_types import JsonObject
from fedmtl_core.logs import Logger
from fedmtl_core.model.scopes import LOCAL, SHARED, scope_of
from fedmtl_core.tasks.spec import TaskSpec
from fedmtl_core.wire.layout import Component
from fedmtl_server.aggregation.rearranging import weighted_mean
from fedmtl_server.model import MTLServerModel
from fedmtl_server.model_parts import ModelParts
from fedmtl_server.starting_adapters import require_same_base
from fedmtl_server.starting_run import KEY, Source, find_source


@dataclass(frozen=True)
class Start:
    """The parts of a new run's model that come from another run."""

    run_id: str
    folder: Path
    round: int
    heads: Sequence[str]
    """Tasks whose head comes from the other run."""
    new_heads: Sequence[str]
    """Tasks whose head is new."""
    averaged: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """By scope of the new model that has means of different encoders, the tasks of the other run whose encoders they
    are."""

    def facts(self) -> JsonObject:
        """Return the facts for the run's folder."""
        return {
            "run_id": self.run_id,
            "folder": str(self.folder.absolute()),
            "round": self.round,
            "heads": list(self.heads),
            "new_heads": list(self.new_heads),
            "averaged": {scope: list(tasks) for scope, tasks in self.averaged.items()},
        }

    def tell(self, log: Logger) -> None:
        """Log the parts that were taken, and warn of means."""
        log.info(
            "model.taken",
            from_run=self.run_id,
            run_dir=str(self.folder),
            round=self.round,
            heads=list(self.heads),
            new_heads=list(self.new_heads),
        )
        for scope, tasks in self.averaged.items():
            log.warning(
                "encoder.averaged",
                scope=scope,
                encoders_of=list(tasks),
                reason="these tasks had different encoders in that run, and share one here",
            )


def start_from(source: Source, model: MTLServerModel) -> Start:
    """Overwrite a new run's model with the encoder and heads of another run's round.

    A task takes the encoder that the task of the same name had. Where tasks with different encoders share a part, the
    part becomes the mean over these tasks. A task that the other run lacks adds nothing to that mean; if all tasks of
    a part are new, the mean is over all tasks of the other run.

    Raises:
        ConfigError: the other run has another encoder, or its clients kept a part of the encoder for themselves; or
            its adapters were made for other weights.
        StoreError: its checkpoint is damaged or can't be read.
        UserError: a parameter of it is NaN or infinite.
        ModelUnavailableError: its encoder's architecture can't be loaded.
    """
    other = source.load()
    require_same_encoder(source, other.parts, model.parts)
    require_same_base(KEY, source.run.folder, other.base, model.base)
    heads = [task for task in model.tasks if _has_same_head(task, model, other)]
    averaged: dict[str, tuple[str, ...]] = {}
    views = {scope: component.views() for scope, component in other.components.items()}
    installed = {}
    for scope, component in model.components.items():
        members, mine = model.sharing.members(scope), component.views()
        tensors: dict[str, Tensor] = {}
        for name in mine:
            if scope_of(name) != SHARED:
                (task,) = members
                tensors[name] = views[other.sharing.by_task[task][name]][name] if task in heads else mine[name]
                continue
            weights = _weights(name, members, other.parts)
            tensors[name] = weighted_mean([(weight, views[origin][name]) for origin, weight in weights.items()])
            if len(weights) > 1:
                averaged[scope] = _counterparts(members, other.tasks)
        installed[scope] = Component.pack(scope, tensors)
    model.install(installed)
    new = [task for task in model.tasks if task not in heads]
    return Start(source.run.run_id, source.run.folder, source.round, heads, new, averaged)


def examine_start(config: Config, parts: ModelParts) -> str:
    """Check that a model can start from the run that its configuration names, and describe that run's model.

    Args:
        config: a configuration with `model.from_run`.
        parts: the parts of the new model.

    Raises:
        ConfigError, StoreError, UserError, ModelUnavailableError: see `find_source` and `start_from`.
    """
    source = find_source(config)
    assert source is not None
    require_same_encoder(source, source.load().parts, parts)
    return f"the model of round {source.round} of the run in {source.run.folder}"


def require_same_encoder(source: Source, other: ModelParts, mine: ModelParts) -> None:
    """Check that another run's encoder has the tensors of a new model's encoder, and that its server has their values.

    Raises:
        ConfigError: they differ; the message names the first tensors that do.
    """
    theirs = {name: other.tensors[name] for name in other.shape.parts}
    wanted = {name: mine.tensors[name] for name in mine.shape.parts}
    names = dict.fromkeys([*wanted, *theirs])
    if differing := [name for name in names if _kind(wanted.get(name)) != _kind(theirs.get(name))]:
        first = [f"{name}: expected {_kind(wanted.get(name))}, got {_kind(theirs.get(name))}" for name in differing[:3]]
        more = f"; {len(differing) - 3} more differ" if len(differing) > 3 else ""
        what = "has another encoder than model.server_model"
        if mine.shape.factors:
            what = "has adapters at other layers, or another encoder than model.server_model"
        raise ConfigError(
            f"{KEY}: the run in {source.run.folder} ({source.run.config.model.server_model}) {what}: "
            f"{'; '.join(first)}{more}"
        )
    kept = {name for scopes in other.table.by_task.values() for name, scope in scopes.items() if scope == LOCAL}
    needed = {name for scope in mine.table.scopes for name in mine.table.tensors(scope) if scope_of(name) == SHARED}
    if missing := [name for name in wanted if name in kept and name in needed]:
        raise ConfigError(
            f"{KEY}: the clients of the run in {source.run.folder} kept {name_some(missing, 2)} for themselves "
            "(`local`), and its server has no values to start from; make these parts `local` here too, or leave out "
            f"{KEY}"
        )


def _has_same_head(task: str, model: MTLServerModel, other: MTLServerModel) -> bool:
    """Return whether both runs have the head of a task on their server, with one meaning and one layout."""
    if task not in other.tasks or not _is_same(model.spec_of(task), other.spec_of(task)):
        return False
    mine, theirs = (
        {name: _kind(one.parts.tensors[name]) for name in one.parts.shape.heads[task]} for one in (model, other)
    )
    is_on_servers = not any(LOCAL in map(one.sharing.by_task[task].get, mine) for one in (model, other))
    return is_on_servers and mine == theirs


def _is_same(one: TaskSpec, other: TaskSpec) -> bool:
    return (one.kind, one.labels) == (other.kind, other.labels)


def _counterparts(members: Sequence[str], others: Sequence[str]) -> tuple[str, ...]:
    """Return the other run's tasks whose encoders the given tasks start from."""
    return tuple(task for task in members if task in others) or tuple(others)


def _weights(name: str, members: Sequence[str], other: ModelParts) -> dict[str, float]:
    """Return, by scope of the other run, the weight of its copy of a parameter; each task there counts the same."""
    counterparts = _counterparts(members, other.tasks)
    counts: dict[str, int] = {}
    for task in counterparts:
        scope = other.table.by_task[task][name]
        counts[scope] = counts.get(scope, 0) + 1
    return {scope: count / len(counterparts) for scope, count in counts.items()}


def _kind(tensor: Tensor | None) -> str:
    """Return a tensor's dtype and shape for messages."""
    return "nothing" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
