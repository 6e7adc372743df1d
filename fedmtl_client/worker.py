"""A client's work in one round, without a connection: takes a slice, returns an update."""

from __future__ import annotations

import inspect
import math
import time
import uuid
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from fedmtl_client.base import BaseSource
from fedmtl_client.component_cache import ComponentCache
from fedmtl_client.scaffold import ControlVariates
from fedmtl_client.slices import Slice
from fedmtl_client.task_state import ClientTask, TaskState, TaskStates, WorkerSettings
from fedmtl_client.trainer import Step, Trainer, TrainingResult
from fedmtl_client.trials import GetVariant, Trials
from fedmtl_client.variant_start import Start, leave
from fedmtl_core.errors import ConfigError, DivergedError
from fedmtl_core.logs import get_logger
from fedmtl_core.runtime.tracing import OFF, Tracing
from fedmtl_core.tasks.evaluation import Evaluation
from fedmtl_core.tasks.paired import VariantEvaluation
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
    """The received model gives values that aren't finite.

    Args:
        round_: the round in which the model was received.
        error: the error that showed it.
        update: reports the damage to the server, which refuses the update and warns its operator.
    """

    def __init__(self, round_: int, error: DivergedError, update: Update):
        super().__init__(
            f"the model received in round {round_} gives values that aren't finite ({error}). The server's model is "
            "damaged; this client's data and training are not the cause. The server's operator can return the run to "
            "an earlier round: fedmtl-server runs rollback",
            error.loss,
        )
        self.update = update


class RoundWorker:
    """The models, rows and trainers of one client's tasks, and their state between rounds.

    It has no connection and receives no events. Its caller passes it slices, and calls `counted` with each update that
    the server has acknowledged.

    Args:
        client_id: the client's name; the seed of each round depends on it.
        tasks: the client's tasks; at least one.
        settings: the client's own settings.
        tracing: records spans of evaluation and training.
    """

    def __init__(self, client_id: str, tasks: Sequence[ClientTask], settings: WorkerSettings, tracing: Tracing = OFF):
        self.client_id = client_id
        self.cache = ComponentCache()
        """The memory for slices. Slices that were received into another cache are accepted too."""
        self.evaluation_seconds = 0.0
        """Seconds of all evaluations since the last slice was loaded."""
        self._settings = settings
        self._tracing = tracing
        self._states = TaskStates(client_id, tasks, settings)
        self._controls = ControlVariates()

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the client's tasks."""
        return self._states.names

    @property
    def download(self) -> Encoding:
        """The encoding in which slices are to be sent to the client."""
        return self._settings.download

    def forget(self) -> None:
        """Reset the state that belongs to one run: local parameters, error feedback, control variates."""
        self._controls.forget()
        self._states.forget()

    def evaluate(
        self,
        slice_: Slice,
        should_stop: Callable[[], bool] = lambda: False,
        get_variant: GetVariant | None = None,
        base: BaseSource | None = None,
    ) -> Update:
        """Evaluate the received model on the task's evaluation rows, and then its variants.

        Args:
            slice_: the task's slice.
            should_stop: called before every variant; True skips the remaining variants.
            get_variant: downloads a variant of the slice; None to evaluate no variant.
            base: asks the server for the base of adapters; None if the client has it.

        Returns:
            An update with only the metrics.

        Raises:
            DamagedModelError: the model gives values that aren't finite.
            ConfigError: the server's task of this name differs, or the client's base of the adapters does.
            LayoutMismatchError: the slice doesn't fit the model.
        """
        state = self._state_for(slice_, base)
        self._load(state, slice_, self._kind(state, slice_))
        received = self._evaluate_received(state, slice_)
        return self._with_variants(received, state, slice_, should_stop, get_variant)[0]

    def train(
        self,
        slice_: Slice,
        on_step: Callable[[Step], None] = lambda step: None,
        should_stop: Callable[[], bool] = lambda: False,
        get_variant: GetVariant | None = None,
        base: BaseSource | None = None,
    ) -> TrainedUpdate:
        """Evaluate the received model and its variants, train the model for one round, and evaluate it again.

        If a variant is better by its start margin, training starts from the best such variant. The update is then the
        received model plus the trained parameters minus the variant.

        Args:
            slice_: the task's slice. Training may change its components.
            on_step: called after every optimizer step.
            should_stop: called before every variant and every optimizer step; True ends training.
            get_variant: downloads a variant of the slice; None to evaluate no variant.
            base: asks the server for the base of adapters; None if the client has it.

        Raises:
            TrainingStopped: `should_stop` returned True.
            DamagedModelError: the received model gives values that aren't finite.
            DivergedError: the loss, or the trained model, isn't finite.
            ConfigError: the server's task of this name differs, the client's base of the adapters does, or the client
                can't train as the server asks.
            LayoutMismatchError: the slice doesn't fit the model.
            NonFiniteError: a value of a lossy update is NaN or infinite.
        """
        state = self._state_for(slice_, base)
        kind = self._kind(state, slice_)
        is_overwritten = self._load(state, slice_, kind)
        received = self._evaluate_received(state, slice_)
        received, start = self._with_variants(received, state, slice_, should_stop, get_variant)
        if is_overwritten:
            self.cache.invalidate(slice_.components.keys() - set(slice_.read_only))
        differences = start.enter(state.model) if start else {}
        result = self._train(state, slice_, on_step, should_stop)
        control_round = self._controls.round
        trained = self._evaluate_trained(state, result)
        leave(state.model, differences)
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
        """Keep the state that belongs to the last update, since the server has acknowledged it.

        Args:
            update: the update that `train` made last.

        Raises:
            DataError: the local parameters can't be written to their file; they are kept in memory even then.
        """
        self._states.state_of(update.task).counted(update.base_round)
        self._controls.counted()

    def _state_for(self, slice_: Slice, base: BaseSource | None) -> TaskState:
        """Return the state of a slice's task, whose model has the base that the slice needs."""
        state = self._states.state_for(slice_)
        if state.base is not None:
            state.base.require(slice_, base)
        return state

    def _kind(self, state: TaskState, slice_: Slice) -> UpdateKind:
        # Slices may be rounded, so client and server measure control variates from the slice: deltas are required.
        return "delta" if state.feedback or slice_.controls else slice_.plan.update

    def _load(self, state: TaskState, slice_: Slice, kind: UpdateKind) -> bool:
        """Load a slice and the client's local parameters into the task's model.

        If the received slice isn't needed unchanged, the model shares its memory and nothing is copied.

        Returns:
            Whether training overwrites the slice's memory, so that the cache must not report its versions any longer.
        """
        is_needed = kind != "parameters" or self._settings.download in DELTA_ENCODINGS
        share = not is_needed and self._settings.device.type == "cpu"
        self.evaluation_seconds = 0.0
        state.synchronizer.load(state.model, slice_.components, share=share, read_only=slice_.read_only)
        if state.base is not None:
            state.model.freeze(slice_.not_trained)
        state.local.put(state.model)
        return share

    def _train(
        self, state: TaskState, slice_: Slice, on_step: Callable[[Step], None], should_stop: Callable[[], bool]
    ) -> TrainingResult:
        """Train the task's model for one round.

        Raises:
            TrainingStopped: `should_stop` returned True.
            DivergedError: the loss isn't finite.
            ConfigError: the client can't train as the server asks.
        """
        corrections = self._corrections(state, slice_)  # as large as the model, so they must not outlive training
        with self._tracing.span("train"):
            return state.trainer.train(
                state.model,
                state.train,
                slice_.round,
                seed=round_seed(slice_.plan.seed, self.client_id, slice_.round),
                on_step=on_step,
                should_stop=should_stop,
                **corrections,
            )

    def _corrections(self, state: TaskState, slice_: Slice) -> Mapping[str, Callable[[], None]]:
        """Return the additional arguments of a trainer's `train` if the server has control variates.

        Raises:
            ConfigError: the client has several tasks, or its trainer takes no correction.
        """
        if not slice_.controls:
            return {}
        self._controls.begin(slice_.controls, slice_.control_since)
        if len(self.tasks) > 1:
            raise ConfigError(
                f"training.control_variates: the server's control variates need clients with one task each; this "
                f"client has {', '.join(self.tasks)}"
            )
        _require_correctable(state.trainer)
        return {"correct": self._controls.correction(state.model)}

    def _evaluate(self, state: TaskState) -> Evaluation:
        began = time.monotonic()
        with self._tracing.span("evaluate"):
            measured: Mapping[str, float] = state.trainer.evaluate(state.model, state.validation)
        self.evaluation_seconds += time.monotonic() - began
        if isinstance(measured, Evaluation):
            return measured
        return Evaluation.of(measured, len(state.validation))  # from a custom trainer

    def _evaluate_received(self, state: TaskState, slice_: Slice) -> Update:
        """Return an update with only the metrics of the received model."""
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
            report = replace(update, received=Evaluation({"loss": loss}, len(state.validation)))
            raise DamagedModelError(slice_.round, error, report) from None

    def _with_variants(
        self,
        update: Update,
        state: TaskState,
        slice_: Slice,
        should_stop: Callable[[], bool],
        get_variant: GetVariant | None,
    ) -> tuple[Update, Start | None]:
        """Return the update of the received model with the evaluations of the slice's variants, and the variant from
        which training starts; None to start from the slice."""
        variants: tuple[VariantEvaluation, ...] = ()
        start = None
        if get_variant is not None and slice_.variants:
            trials = Trials(state.model, slice_, lambda: self._evaluate(state), get_variant, should_stop)
            variants, start = trials.run(update.received), trials.start
            if start is not None:
                get_logger().info("training.started", task=slice_.task, round=slice_.round, variant=start.name)
        return replace(update, received=replace(update.received, losses=None), variants=variants), start

    def _evaluate_trained(self, state: TaskState, result: TrainingResult) -> Evaluation:
        """Return the metrics of the model after training.

        Raises:
            DivergedError: the model gives values that aren't finite, or the trainer, which may be custom, reports so.
        """
        try:
            if not math.isfinite(result.loss):
                raise DivergedError(f"train_loss {result.loss}", result.loss)
            return replace(self._evaluate(state), losses=None)
        except DivergedError as error:
            raise DivergedError(
                f"training diverged: the model gives values that aren't finite after {result.num_steps} steps "
                f"({error}); lower training.learning_rate",
                error.loss,
            ) from None


def round_seed(seed: int, client_id: str, round_: int) -> int:
    """Return the seed of one client's training in one round.

    Args:
        seed: the plan's seed.
    """
    return (seed + zlib.crc32(f"{client_id}/{round_}".encode())) % 2**63


def _extras(result: TrainingResult, control_round: int | None) -> Extras:
    """Return the numbers that individual stages of the aggregation need.

    Args:
        control_round: the round of the client's control variates; None without control variates.
    """
    extras = {"normalization": {"num_steps": result.num_steps}}
    if control_round is None:
        return extras
    controls = {"learning_rate_sum": result.learning_rate_sum, "control_round": control_round}
    return {**extras, "control_variates": controls}


def _require_correctable(trainer: Trainer) -> None:
    """Check that a trainer, which may be custom, accepts a correction of its gradients.

    Raises:
        ConfigError: its `train` has no `correct`.
    """
    parameters = inspect.signature(trainer.train).parameters.values()
    if not any(one.name == "correct" or one.kind is one.VAR_KEYWORD for one in parameters):
        raise ConfigError(
            f"training.control_variates: expected a trainer whose `train` has a parameter `correct`, got "
            f"{type(trainer).__name__}"
        )
