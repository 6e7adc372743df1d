"""The model of a new run that starts from another run's model and heads (`model.from_run`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from fedmtl_core.config import Config
from fedmtl_core.errors import ConfigError, ModelUnavailableError, StoreError, UserError
from fedmtl_core.identifiers import name_some
from fedmtl_core.json_types import JsonObject
from fedmtl_core.logs import Logger
from fedmtl_core.model.scopes import LOCAL, SHARED, scope_of
from fedmtl_core.tasks.spec import TaskSpec
from fedmtl_core.wire.layout import Component
from fedmtl_server.aggregation.rearranging import weighted_mean
from fedmtl_server.model import MTLServerModel
from fedmtl_server.model_parts import ModelParts
from fedmtl_server.saved_runs import SavedRun, Which, best_round, choose_round, load_model, open_run
from fedmtl_server.storage.folders import read_run_id
from fedmtl_server.storage.paths import RUN_FILE

KEY = "model.from_run"


@dataclass(frozen=True)
class Source:
    """A round of a saved run."""

    run: SavedRun
    round: int

    def load(self) -> MTLServerModel:
        """Load the model after the round, and check its digests if the run has a history.

        Raises:
            StoreError: the checkpoint is damaged or can't be read.
            UserError: a parameter is NaN or infinite.
            ModelUnavailableError: the encoder's architecture can't be loaded.
        """
        with _attributed():
            return load_model(self.run, self.round, option="")


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


def find_source(config: Config) -> Source | None:
    """Return the round of the run that `model.from_run` names; None if it names none.

    `best` is the best round for the tasks that both runs have, or for all tasks of that run. Auxiliary tasks don't
    count.

    Raises:
        ConfigError: there is no such run or round, or it is ambiguous.
        StoreError: the run can't be read.
    """
    text = config.model.from_run
    if text is None:
        return None
    with _attributed():
        is_name = _folder_named(text, config.server.runs_dir) is not None  # with an @ in it
        name, which = (text, "last") if is_name else _parted(text)
        run = open_run(_folder(name, config.server.runs_dir))
        if which == "best":
            theirs = [task for task in run.config.tasks if task not in run.config.auxiliary_tasks()]
            return Source(run, best_round(run, [task for task in theirs if task in config.tasks] or theirs))
        return Source(run, choose_round(run, which, None, option=""))


def start_from(source: Source, model: MTLServerModel) -> Start:
    """Overwrite a new run's model with the encoder and heads of another run's round.

    A task takes the encoder that the task of the same name had. Where tasks with different encoders share a part, the
    part becomes the mean over these tasks. A task that the other run lacks adds nothing to that mean; if all tasks of
    a part are new, the mean is over all tasks of the other run.

    Raises:
        ConfigError: the other run has another encoder, or its clients kept a part of the encoder for themselves.
        StoreError: its checkpoint is damaged or can't be read.
        UserError: a parameter of it is NaN or infinite.
        ModelUnavailableError: its encoder's architecture can't be loaded.
    """
    other = source.load()
    require_same_encoder(source, other.parts, model.parts)
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
        raise ConfigError(
            f"{KEY}: the run in {source.run.folder} ({source.run.config.model.server_model}) has another encoder than "
            f"model.server_model: {'; '.join(first)}{more}"
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


def _parted(text: str) -> tuple[str, Which]:
    """Return the run and the round in the value of `model.from_run`; the newest round if it names none."""
    name, at, which = text.rpartition("@")
    if not at:
        return text, "last"
    if which.isdecimal():
        return name, int(which)
    if which in ("best", "last"):
        return name, "best" if which == "best" else "last"
    raise ConfigError(f"expected a round's number, `best` or `last` after the @, got {text!r}")


def _folder_named(name: str, runs_dir: Path) -> Path | None:
    """Return the folder of a run by its path or its name in `runs_dir`; None if there is none."""
    return next((one for one in (Path(name), runs_dir / name) if (one / RUN_FILE).is_file()), None)


def _folder(name: str, runs_dir: Path) -> Path:
    """Return the folder of a run, by its path, or by its name or the beginning of its id in `runs_dir`.

    Raises:
        ConfigError: no run matches, or several do.
    """
    if (folder := _folder_named(name, runs_dir)) is not None:
        return folder
    ids: dict[Path, str] = {}
    for path in sorted(runs_dir.glob(f"*/{RUN_FILE}")):
        try:
            ids[path.parent] = read_run_id(path)
        except StoreError:  # this run isn't the one, or can't be read anyway
            continue
    found = [folder for folder, run_id in ids.items() if name and run_id.startswith(name)]
    if len(found) > 1:
        raise ConfigError(f"{name!r} could be any of the runs {name_some([one.name for one in found])} in {runs_dir}")
    if not found:
        there = f"which has {name_some([one.name for one in reversed(ids)])}" if ids else "which has no run"
        raise ConfigError(
            f"there is no run {name!r}: expected the path of a run's folder, or the name or id of a run in {runs_dir}, "
            f"{there}"
        )
    return found[0]


@contextmanager
def _attributed() -> Iterator[None]:
    """Attribute the errors raised in the context to the setting."""
    try:
        yield
    except (UserError, StoreError) as error:
        kind = type(error) if isinstance(error, (ConfigError, ModelUnavailableError, StoreError)) else ConfigError
        raise kind(f"{KEY}: {error}") from None
