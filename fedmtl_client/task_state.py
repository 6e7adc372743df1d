"""A client's state of each task between rounds: the model, the rows, and the state of training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fedmtl_client.base import ModelBase
from fedmtl_client.data import EncodedRows, TaskData
from fedmtl_client.feedback import ErrorFeedback
from fedmtl_client.local_state import LocalParameters
from fedmtl_client.models import ModelFactory
from fedmtl_client.slices import Slice
from fedmtl_client.synchronizer import ClientModelSynchronizer
from fedmtl_client.trainer import Trainer
from fedmtl_core.logs import get_logger
from fedmtl_core.model.adapters import factor_names
from fedmtl_core.model.modeling import MultiTaskModel, load_tokenizer
from fedmtl_core.tasks.plan import TrainingPlan, UpdateKind
from fedmtl_core.tasks.spec import TaskSpec
from fedmtl_core.wire.encoded import EncodedComponent
from fedmtl_core.wire.formats import DEFAULT_DENSITY, Encoding


@dataclass(frozen=True)
class WorkerSettings:
    """The client's own settings; None leaves a setting to the server's plan."""

    device: torch.device
    model: str | None = None
    """Name or folder of the encoder's architecture and tokenizer."""
    upload: Encoding = "float32"
    """Encoding of updates. Any encoding other than `float32` is lossy, and is sent as a delta with error feedback."""
    download: Encoding = "float32"
    """Encoding of slices."""
    topk_density: float = DEFAULT_DENSITY
    random_init: bool = False
    """Whether local encoder layers, and the base of adapters, start from random values."""
    fetch_base: bool = False
    """Whether the base of adapters is downloaded, instead of loaded from the client's own files."""
    state_dir: Path | None = None
    """The folder that keeps local parameters between starts; None to keep them in memory only."""
    trainer: Callable[[TaskSpec, TrainingPlan, torch.device], Trainer] = Trainer
    """Constructs the trainer, which also evaluates."""


@dataclass(frozen=True)
class ClientTask:
    """One task of a client; 0 leaves a number to the server's plan."""

    spec: TaskSpec
    data: TaskData
    """The task's rows."""
    train_samples: int = 0
    val_samples: int = 0


@dataclass(frozen=True)
class TaskState:
    """One task's model, rows and trainer, made for one training plan."""

    plan: TrainingPlan
    model: MultiTaskModel
    trainer: Trainer
    train: EncodedRows
    validation: EncodedRows
    synchronizer: ClientModelSynchronizer
    feedback: ErrorFeedback | None
    """None if uploads are lossless."""
    local: LocalParameters
    base: ModelBase | None = None
    """None if the encoder has no adapters."""

    @property
    def belongs_to_run(self) -> bool:
        """Whether the model has parameters that only one run has: local ones, or a base with that run's adapters."""
        return bool(self.plan.local) or (self.plan.adapters is not None and self.plan.adapters.is_stacked)

    def encoded_update(self, kind: UpdateKind) -> list[EncodedComponent]:
        """Return the encoded components of the present model's update to the slice loaded last.

        Args:
            kind: `parameters` or `delta`; it must be `delta` with error feedback.

        Raises:
            NonFiniteError: a value of a lossy update is NaN or infinite.
        """
        components = self.synchronizer.update(self.model, kind)
        if self.feedback:
            if self.plan.adapters is not None and self.plan.adapters.is_stacked:  # a round's adapters are new ones
                self.feedback.forget([one.scope for one in components if factor_names(one.views())])
            return self.feedback.encode(components)
        return [EncodedComponent.exact(component) for component in components]

    def counted(self, round_: int) -> None:
        """Keep the local parameters and the error feedback of a round, since its update counts.

        Raises:
            DataError: the file of local parameters can't be written; they are kept in memory even then.
        """
        self.local.keep(self.model, round_)
        if self.feedback:
            self.feedback.counted()


class TaskStates:
    """The states of a client's tasks. Each is made in the first round of its task, and again when the plan changes.

    If only the plan's learning rates change, only the trainer is made again.

    Args:
        client_id: names the files of local parameters.
        tasks: the client's tasks; at least one.
        settings: the client's own settings.
    """

    def __init__(self, client_id: str, tasks: Sequence[ClientTask], settings: WorkerSettings):
        self._client_id = client_id
        self._tasks = {task.spec.name: task for task in tasks}
        self._settings = settings
        self._states: dict[str, TaskState] = {}
        self._log = get_logger()
        self._models = ModelFactory(
            [task.spec for task in tasks],
            random_init=settings.random_init,
            fetch_base=settings.fetch_base,
            log=self._log,
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks' names."""
        return tuple(self._tasks)

    def forget(self) -> None:
        """Reset local parameters, error feedback and changed bases, since another run has begun."""
        self._states = {task: state for task, state in self._states.items() if not state.belongs_to_run}
        for state in self._states.values():
            if state.feedback:
                state.feedback.forget()

    def state_for(self, slice_: Slice) -> TaskState:
        """Return the state of a slice's task, made for the slice's plan.

        Raises:
            ConfigError: the server's task of this name differs.
            ModelUnavailableError: the encoder's architecture or its tokenizer can't be loaded.
        """
        state, plan = self._states.get(slice_.task), slice_.plan
        if state is not None and state.plan == plan:
            return state
        if state is not None and state.plan.differs_only_in_rate(plan):  # keeps the model and its local parameters
            trainer = self._settings.trainer(self._tasks[slice_.task].spec, plan, self._settings.device)
            state = replace(state, plan=plan, trainer=trainer)
            first, num_rounds = plan.rate_schedule
            self._log.info(
                "plan.changed",
                task=slice_.task,
                learning_rate=plan.learning_rate,
                schedule_first_round=first,
                schedule_num_rounds=num_rounds,
            )
        else:
            state = self._made(slice_, state.feedback if state else self._feedback())
        self._states[slice_.task] = state
        return state

    def state_of(self, task: str) -> TaskState:
        """Return the state that was made last for a task."""
        return self._states[task]

    def _made(self, slice_: Slice, feedback: ErrorFeedback | None) -> TaskState:
        task, plan, settings = self._tasks[slice_.task], slice_.plan, self._settings
        spec = task.spec
        if plan.task_type is not None:
            spec.require_same(plan.task_type, plan.labels)
        source = settings.model or plan.client_model
        self._log.info("model.loading", source=source)
        tokenizer = load_tokenizer(source)
        model = self._models.new(spec, source, plan, tokenizer)
        base = None
        if plan.adapters is not None:
            base = ModelBase(model, is_own=self._models.has_own_base(plan), source=source)
        local = LocalParameters(model, plan.local, slice_.run_id, self._path_of_local(spec.name))
        train, validation = (
            EncodedRows(rows.head(count), spec, tokenizer, plan.max_length)
            for rows, count in (
                (task.data.train, task.train_samples or plan.train_samples),
                (task.data.validation, task.val_samples or plan.val_samples),
            )
        )
        self._log.info("data.ready", task=spec.name, **_counts(train, validation, plan.max_length))
        trainer = settings.trainer(spec, plan, settings.device)
        return TaskState(
            plan,
            model.to(settings.device),
            trainer,
            train,
            validation,
            ClientModelSynchronizer(spec.name, plan.local),
            feedback,
            local,
            base,
        )

    def _path_of_local(self, task: str) -> Path | None:
        folder = self._settings.state_dir
        return folder / f"{self._client_id}.{task}.safetensors" if folder else None

    def _feedback(self) -> ErrorFeedback | None:
        upload = self._settings.upload
        return ErrorFeedback(upload, self._settings.topk_density) if upload != "float32" else None


def _counts(train: EncodedRows, validation: EncodedRows, max_length: int) -> dict[str, int]:
    """Return the numbers of rows, and of truncated rows if known, as keys for the log."""
    cut = {"train_rows_cut": train.num_cut, "validation_rows_cut": validation.num_cut}
    known = {name: count for name, count in cut.items() if count is not None}
    return {
        "train_rows": len(train),
        "validation_rows": len(validation),
        **known,
        **({"max_length": max_length} if known else {}),
    }
