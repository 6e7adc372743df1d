"""A client's work in one round, without a wire: a slice in, an update out."""

from __future__ import annotations

import inspect
import math
import uuid
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from fedmtl_client.component_cache import ComponentCache
from fedmtl_client.scaffold import ControlVariates
from fedmtl_client.slices import Slice
from fedmtl_client.task_state import ClientTask, TaskState, TaskStates, WorkerSettings
from fedmtl_client.trainer import Step, Trainer, TrainingResult
from fedmtl_core.errors import ConfigError, DivergedError
from fedmtl_core.runtime.tracing import OFF, Tracing
from fedmtl_core.tasks.evaluation import Evaluation
from fedmtl_core.tasks.plan import UpdateKind
from fedmtl_core.wire.encoded import EncodedComponent
from fedmtl_core.wire.formats import DELTA_ENCODINGS, Encoding
from fedmtl_core.wire.updates import Extras, Update


@dataclass(frozen=True)
class TrainedUpdate:
    """A client's work in a round of training."""

    update: Update
    components: Sequence[EncodedComponent]
    """The update's tensors in the order of the slice. They are valid until the next slice is received or loaded."""
    result: TrainingResult


class DamagedModelError(DivergedError):
    """The model that was received gives values that aren't finite.

    Args:
        round_: the round that it was received in.
        error: how that was noticed.
        update: tells the server, which refuses it and warns whoever runs it.
    """

    def __init__(self, round_: int, error: DivergedError, update: Update):
        super().__init__(
            f"the model received in round {round_} gives values that aren't finite ({error}); the server's "
            "model is damaged, this client's data and training are not the cause. Whoever runs the server can take "
            "the run back to an earlier round: fedmtl-server runs rollback",
            error.loss,
        )
        self.update = update


class RoundWorker:
    """The models, rows and trainers of one client's tasks, and what they remember from round to round.

    It knows no connection and no events. Whoever drives it brings it slices, and calls `counted` with each update that
    the server has acknowledged.

    Args:
        client_id: the client's name; the seed of each round depends on it.
        tasks: the client's tasks; at least one.
        settings: what the client decides for itself.
        tracing: records spans of evaluation and training.
    """

    def __init__(self, client_id: str, tasks: Sequence[ClientTask], settings: WorkerSettings, tracing: Tracing = OFF):
        self.client_id = client_id
        self.cache = ComponentCache()
        """The memory for slices. A slice that was received into another cache can be worked on too."""
        self._settings = settings
        self._tracing = tracing
        self._states = TaskStates(client_id, tasks, settings)
        self._controls = ControlVariates()

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks that it has rows for."""
        return self._states.names

    @property
    def download(self) -> Encoding:
        """How slices are to travel to it."""
        return self._settings.download

    def forget(self) -> None:
        """Begin anew with what belongs to one run: local parameters, error feedback, control variates."""
        self._controls.forget()
        self._states.forget()

    def evaluate(self, slice_: Slice) -> Update:
        """Measure the model that was received, on the task's evaluation rows.

        Returns:
            An update with the metrics alone.

        Raises:
            DamagedModelError: the model gives values that aren't finite.
            ConfigError: the server's task of this name is another.
            LayoutMismatchError: the slice doesn't fit the model.
        """
        state = self._states.state_for(slice_)
        self._load(state, slice_, self._kind(state, slice_), to_train=False)
        return self._evaluate_received(state, slice_)

    def train(
        self,
        slice_: Slice,
        on_step: Callable[[Step], None] = lambda step: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> TrainedUpdate:
        """Measure the model that was received, train it for one round, and measure it again.

        Args:
            slice_: the task's slice. Its components may have other values afterwards.
            on_step: called after every optimiser step.
            should_stop: called before every optimiser step; training ends when it returns True.

        Raises:
            TrainingStopped: `should_stop` returned True.
            DamagedModelError: the model that was received gives values that aren't finite.
            DivergedError: the loss, or the trained model, isn't finite.
            ConfigError: the server's task of this name is another, or the client can't train as the server asks.
            LayoutMismatchError: the slice doesn't fit the model.
            NonFiniteError: a value of a lossy update is NaN or infinite.
        """
        state = self._states.state_for(slice_)
        kind = self._kind(state, slice_)
        self._load(state, slice_, kind, to_train=True)
        received = self._evaluate_received(state, slice_)
        corrections = self._corrections(state, slice_)
        control_round = self._controls.round
        with self._tracing.span("train"):
            result = state.trainer.train(
                state.model,
                state.train,
                slice_.round,
                seed=round_seed(slice_.plan.seed, self.client_id, slice_.round),
                on_step=on_step,
                should_stop=should_stop,
                **corrections,
            )
        del corrections  # as large as the model, and so is what follows
        trained = self._evaluate_trained(state, result)
        components = state.encoded_update(kind)
        if slice_.controls:
            self._controls.trained(slice_.round, components, result.learning_rate_sum)
        update = replace(
            received,
            kind=kind,
            num_examples=len(state.train),
            trained=trained.with_metric("train_loss", result.loss),
            components=tuple(one.layout for one in components),
            extras=_extras(result, control_round if slice_.controls else None),
        )
        return TrainedUpdate(update, components, result)

    def counted(self, update: Update) -> None:
        """Keep what belongs to the last update: the server has acknowledged it.

        Args:
            update: the update that `train` made last.

        Raises:
            DataError: the local parameters can't be written to their file; they are kept in memory then.
        """
        self._states.state_of(update.task).counted(update.base_round)
        self._controls.counted()

    def _kind(self, state: TaskState, slice_: Slice) -> UpdateKind:
        # A slice may have been rounded: control variates are of how far the model went from there, on both sides.
        return "delta" if state.feedback or slice_.controls else slice_.plan.update

    def _load(self, state: TaskState, slice_: Slice, kind: UpdateKind, *, to_train: bool) -> None:
        """Put a slice, and the client's local parameters, into the task's model.

        Where nothing needs the slice as it was received, the model lives in the slice's memory and nothing is copied.
        Training overwrites that memory, so its components are no version any more that the client could announce.
        """
        is_needed = kind != "parameters" or self._settings.download in DELTA_ENCODINGS
        share = not is_needed and self._settings.device.type == "cpu"
        if share and to_train:
            self.cache.invalidate(slice_.components)
        state.synchronizer.load(state.model, slice_.components, share=share)
        state.local.put(state.model)

    def _corrections(self, state: TaskState, slice_: Slice) -> Mapping[str, Callable[[], None]]:
        """What a trainer's `train` is to be called with besides, where the server has control variates.

        Raises:
            ConfigError: the client has several tasks, or its trainer takes no correction.
        """
        if not slice_.controls:
            return {}
        self._controls.begin(slice_.controls, slice_.control_since)
        if len(self.tasks) > 1:
            raise ConfigError(
                f"training.control_variates: the server's are of clients of one task each; this one has "
                f"{', '.join(self.tasks)}"
            )
        _require_correctable(state.trainer)
        return {"correct": self._controls.correction(state.model)}

    def _evaluate(self, state: TaskState) -> Evaluation:
        with self._tracing.span("evaluate"):
            measured: Mapping[str, float] = state.trainer.evaluate(state.model, state.validation)
        if isinstance(measured, Evaluation):
            return measured
        return Evaluation.of(measured, len(state.validation))  # of a trainer of the user's own

    def _evaluate_received(self, state: TaskState, slice_: Slice) -> Update:
        """An update with the metrics of the model that was received, and nothing else yet."""
        update = Update(
            run_id=slice_.run_id,
            client_id=self.client_id,
            task=slice_.task,
            base_round=slice_.round,
            update_id=uuid.uuid4().hex,
            kind="metrics",
        )
        try:
            return replace(update, received=self._evaluate(state))
        except DivergedError as error:
            loss = error.loss if not math.isfinite(error.loss) else math.nan
            told = replace(update, received=Evaluation({"loss": loss}, len(state.validation)))
            raise DamagedModelError(slice_.round, error, told) from None

    def _evaluate_trained(self, state: TaskState, result: TrainingResult) -> Evaluation:
        """The metrics of the model after training.

        Raises:
            DivergedError: it gives values that aren't finite, or its training, which may be a user's own, says so.
        """
        try:
            if not math.isfinite(result.loss):
                raise DivergedError(f"train_loss {result.loss}", result.loss)
            return self._evaluate(state)
        except DivergedError as error:
            raise DivergedError(
                f"training diverged: the model gives values that aren't finite after {result.num_steps} steps "
                f"({error}); lower training.learning_rate",
                error.loss,
            ) from None


def round_seed(seed: int, client_id: str, round_: int) -> int:
    """The seed of one client's training in one round.

    Args:
        seed: the plan's.
    """
    return (seed + zlib.crc32(f"{client_id}/{round_}".encode())) % 2**63


def _extras(result: TrainingResult, control_round: int | None) -> Extras:
    """The numbers that single stages of the aggregation need.

    Args:
        control_round: the round of the client's control variates; None without any.
    """
    extras = {"normalization": {"num_steps": result.num_steps}}
    if control_round is None:
        return extras
    controls = {"learning_rate_sum": result.learning_rate_sum, "control_round": control_round}
    return {**extras, "control_variates": controls}


def _require_correctable(trainer: Trainer) -> None:
    """Check that a trainer, which may be a user's own, takes what corrects its gradients.

    Raises:
        ConfigError: it doesn't.
    """
    parameters = inspect.signature(trainer.train).parameters.values()
    if not any(one.name == "correct" or one.kind is one.VAR_KEYWORD for one in parameters):
        raise ConfigError(
            f"training.control_variates: expected a trainer whose `train` takes `correct`, got {type(trainer).__name__}"
        )
