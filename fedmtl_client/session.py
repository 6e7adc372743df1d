"""A client's life in a run: watch the rounds, and in each one fetch the slice, work on it, send the update."""

from __future__ import annotations

import contextlib
import inspect
import math
import queue
import threading
import uuid
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from fedmtl.v1 import federation_pb2 as pb

from fedmtl_client.api import FederationApi, Slice
from fedmtl_client.data import EncodedRows, TaskData
from fedmtl_client.downloads import Holdings
from fedmtl_client.feedback import ErrorFeedback
from fedmtl_client.local_state import LocalParameters
from fedmtl_client.models import ModelFactory
from fedmtl_client.progress import training_progress
from fedmtl_client.scaffold import ControlVariates
from fedmtl_client.schedule import TaskSchedule
from fedmtl_client.synchronizer import ClientModelSynchronizer
from fedmtl_client.trainer import Trainer, TrainingResult, TrainingStopped
from fedmtl_core.errors import (
    ConfigError,
    DivergedError,
    MalformedStreamError,
    RequestError,
    StaleRoundError,
    UnavailableError,
    WrongRunError,
)
from fedmtl_core.logs import JOINED, get_logger
from fedmtl_core.model.modeling import MultiTaskModel, load_tokenizer
from fedmtl_core.runtime.tracing import OFF, Tracing
from fedmtl_core.tasks.evaluation import Evaluation
from fedmtl_core.tasks.plan import Purpose, TrainingPlan, UpdateKind
from fedmtl_core.tasks.spec import TaskSpec
from fedmtl_core.wire.encoded import EncodedComponent
from fedmtl_core.wire.evaluation_messages import details_to_proto
from fedmtl_core.wire.formats import DEFAULT_DENSITY, DELTA_ENCODINGS, Encoding
from fedmtl_core.wire.messages import UPDATE_KIND_TO_PROTO


@dataclass(frozen=True)
class ClientSettings:
    """What a client decides for itself; None and 0 leave it to the server's plan."""

    device: torch.device
    model: str | None = None
    upload: Encoding = "float32"
    """How updates travel. Any other than `float32` is lossy, and sent as a delta with error feedback."""
    download: Encoding = "float32"
    """How slices travel."""
    topk_density: float = DEFAULT_DENSITY
    random_init: bool = False
    """Whether encoder layers that it keeps for itself begin with random values."""
    state_dir: Path | None = None
    """Where parameters that it keeps for itself are, from one start to the next; None for in memory alone."""
    trainer: Callable[[TaskSpec, TrainingPlan, torch.device], Trainer] = Trainer
    """Makes what trains and evaluates."""
    progress_bar: bool = False
    """Whether training shows a bar where standard error is a terminal."""
    schedule: TaskSchedule | None = None
    """Which of its tasks it has next, where that isn't the server's choice."""


@dataclass(frozen=True)
class ClientTask:
    """One task that a client takes part in; 0 leaves a number to the server's plan."""

    spec: TaskSpec
    data: TaskData
    """Its rows."""
    train_samples: int = 0
    val_samples: int = 0


@dataclass(frozen=True)
class RoundWork:
    """What a client did in one round."""

    round: int
    task: str
    purpose: Purpose
    received_metrics: Mapping[str, float]
    """Of the model it received, on its evaluation rows; without those that are undefined."""
    trained_metrics: Mapping[str, float] = field(default_factory=dict)
    """Of its own, after training, with the `train_loss`; empty where it was asked to evaluate alone."""
    num_examples: int = 0
    """Rows it trained on."""
    bytes_sent: int = 0


@dataclass(frozen=True)
class ClientResult:
    """What a client did in a run."""

    run_id: str
    client_id: str
    tasks: Sequence[str]
    """All that it has rows for; `RoundWork` says which it had in a round."""
    rounds: Mapping[int, RoundWork]
    """By number, the rounds that its update came in time for."""


@dataclass(frozen=True)
class _Workbench:
    """What stays of one task from round to round."""

    plan: TrainingPlan
    model: MultiTaskModel
    trainer: Trainer
    train: EncodedRows
    validation: EncodedRows
    synchronizer: ClientModelSynchronizer
    feedback: ErrorFeedback | None
    local: LocalParameters


class ClientSession:
    """One client in one run.

    Args:
        api: the connection to the server.
        tasks: what it has rows for; at least one task.
        settings: what it decides for itself.
        tracing: records what it does in a round.
    """

    def __init__(
        self,
        api: FederationApi,
        tasks: Sequence[ClientTask],
        settings: ClientSettings,
        tracing: Tracing = OFF,
    ):
        self._api = api
        self._tracing = tracing
        self._tasks = {task.spec.name: task for task in tasks}
        self._settings = settings
        self._schedule = settings.schedule or TaskSchedule(tuple(self._tasks))
        self._holdings = Holdings()
        self._controls = ControlVariates()
        self._run_id = ""
        self._done: dict[int, RoundWork] = {}
        self._events: queue.SimpleQueue[pb.WatchRoundsResponse | Exception] = queue.SimpleQueue()
        self._newest: pb.WatchRoundsResponse | None = None
        self._num_received = 0
        self._num_followed = 0
        self._no_longer_watching = False
        self._counted: tuple[str, int] | None = None
        self._num_before_counted = 0
        self._workbenches: dict[str, _Workbench] = {}
        self._log = get_logger()
        self._models = ModelFactory([task.spec for task in tasks], random_init=settings.random_init, log=self._log)

    def run(self) -> ClientResult:
        """Take part until the run is over. The connection is closed then.

        Returns:
            What was done, in the last run if the server went over to another.

        Raises:
            UnavailableError: the server stayed away for too long.
            RequestError: the server refuses this client.
            ConfigError: a task of the server's is another than this client's of that name.
        """
        watcher = threading.Thread(target=self._watch, name="watch-rounds", daemon=True)
        watcher.start()
        try:
            self._follow()
        finally:
            self._api.close()
            watcher.join()
        return ClientResult(self._run_id, self._api.client_id, tuple(self._tasks), self._done)

    def _follow(self) -> None:
        while True:
            event = self._events.get()
            if isinstance(event, Exception):
                raise event
            self._num_followed += 1
            if event.kind == pb.ROUND_EVENT_KIND_FINISHED:
                self._log.info("run.finished", run_id=event.run_id, rounds=event.num_rounds)
                return
            if event.kind == pb.ROUND_EVENT_KIND_WAITING and event.waiting_for:
                self._log.info("round.waiting", **_progress(event), waiting_for=event.waiting_for)
            if event.kind == pb.ROUND_EVENT_KIND_OPENED and self._is_wanted(event):
                self._require_task(event)
                self._take_part(event)

    def _watch(self) -> None:
        """Hand the run's events to `run`; the newest is at hand even while it trains."""
        try:
            for event in self._api.watch():
                if self._newest is None or event.run_id != self._newest.run_id:
                    names = ", ".join(self._tasks)
                    self._log.info(JOINED, run_id=event.run_id, client_id=self._api.client_id, task=names)
                self._newest = event
                self._num_received += 1
                self._events.put(event)
        except Exception as error:  # whatever it is, it is the main thread's to raise
            self._no_longer_watching = True
            self._events.put(error)

    def _is_wanted(self, event: pb.WatchRoundsResponse) -> bool:
        """Whether an opened round is this client's to work on, and still open; it may have waited in the queue."""
        asked = event.in_cohort and not event.reported and not self._has_been_answered(event)
        newer = self._newest is not None and self._newest.round > event.round
        return asked and not newer and not self._has_closed(event)

    def _require_task(self, event: pb.WatchRoundsResponse) -> None:
        if event.task not in self._tasks:
            raise MalformedStreamError(
                f"the server has given this client the task {event.task!r} in round {event.round}, expected one of "
                f"{', '.join(self._tasks)}"
            )

    def _has_been_answered(self, event: pb.WatchRoundsResponse) -> bool:
        """Whether the update that the event asks for was counted while the event waited in the queue.

        An event that came later means it: the server has lost the update with its memory or with a damaged checkpoint,
        and holds the round again.
        """
        return (event.run_id, event.round) == self._counted and self._num_followed <= self._num_before_counted

    def _take_part(self, event: pb.WatchRoundsResponse) -> None:
        """Do a round's work. A round that closes meanwhile is left; the next event says how it goes on."""
        try:
            with self._tracing.span("round", round=event.round, client_id=self._api.client_id, task=event.task):
                self._work(self._get_slice(event), event)
        except (StaleRoundError, WrongRunError) as error:
            self._log.warning("round.missed", **_progress(event), reason=str(error))
        except TrainingStopped:
            self._log.warning("round.missed", **_progress(event), reason="it closed before training was done")
        except UnavailableError as error:
            if not self._has_closed(event):
                raise UnavailableError(f"{_progress(event)['progress']}: {error}") from None
            self._log.warning("round.missed", **_progress(event), reason=str(error))

    def _get_slice(self, event: pb.WatchRoundsResponse) -> Slice:
        if event.run_id != self._run_id:
            self._run_id = event.run_id
            self._done = {}
            self._controls.forget()
            self._workbenches = {task: bench for task, bench in self._workbenches.items() if not bench.plan.local}
            for bench in self._workbenches.values():  # what others keep for themselves begins anew too
                if bench.feedback:
                    bench.feedback.forget()
        with self._tracing.call("GetSlice"):
            return self._api.get_slice(
                event.round,
                run_id=event.run_id,
                task=event.task,
                encoding=self._settings.download,
                holdings=self._holdings,
                should_stop=lambda: self._has_closed(event),
            )

    def _work(self, slice_: Slice, event: pb.WatchRoundsResponse) -> None:
        bench = self._prepare(event.task, slice_.plan)
        # A slice may have been rounded: control variates are of how far the model went from there, on both sides.
        kind: UpdateKind = "delta" if bench.feedback or slice_.controls else slice_.plan.update
        # Without need of the slice as it came, the model may live in its memory.
        share = kind == "parameters" and self._settings.download not in DELTA_ENCODINGS
        share = share and self._settings.device.type == "cpu"
        bench.synchronizer.load(bench.model, slice_.components, share=share)
        bench.local.put(bench.model)
        received = self._evaluate_received(bench, slice_, event)
        header = _header_of_metrics(slice_, self._api.client_id, event.task, received)
        if slice_.purpose == "evaluate":
            self._push(header, [], event)
            self._done[slice_.round] = RoundWork(slice_.round, event.task, "evaluate", received.metrics)
            facts = {"metrics": dict(received), **_undefined(received)}
            self._log.info("model.evaluated", **_progress(event), task=event.task, **facts)
            return
        if share:
            self._holdings.spoil(slice_.components)
        if slice_.controls:
            self._controls.begin(slice_.controls, slice_.control_since)
            header.control_round = self._controls.round
        result, trained = self._train(bench, slice_, event)
        header.num_steps = result.num_steps
        header.kind = UPDATE_KIND_TO_PROTO[kind]
        header.num_examples = len(bench.train)
        header.trained_metrics.update(trained)
        header.trained_details.CopyFrom(details_to_proto(trained))
        header.next_task = self._schedule.after(event.task, event.round)
        update = _encoded_update(bench, kind)
        if slice_.controls:
            header.learning_rate_sum = result.learning_rate_sum
            self._controls.trained(slice_.round, update, result.learning_rate_sum)
        receipt = self._push(header, update, event)
        bench.local.keep(bench.model, slice_.round)
        self._controls.counted()
        if bench.feedback:
            bench.feedback.counted()
        self._api.task = header.next_task or self._api.task  # a watch that is opened again says it too
        self._done[slice_.round] = RoundWork(
            slice_.round, event.task, "train", received.metrics, trained.metrics, header.num_examples, receipt.num_bytes
        )
        self._log.info(
            "update.sent",
            **_progress(event),
            task=event.task,
            received=dict(received),
            trained=dict(trained),
            **_undefined(received, trained),
            bytes_sent=receipt.num_bytes,
        )

    def _push(
        self, header: pb.UpdateHeader, components: list[EncodedComponent], event: pb.WatchRoundsResponse
    ) -> pb.PushUpdateResponse:
        with self._tracing.call("PushUpdate"):
            receipt = self._api.push_update(header, components, should_stop=lambda: self._has_closed(event))
        self._counted, self._num_before_counted = (event.run_id, receipt.round), self._num_received
        return receipt

    def _evaluate(self, bench: _Workbench) -> Evaluation:
        with self._tracing.span("evaluate"):
            measured: Mapping[str, float] = bench.trainer.evaluate(bench.model, bench.validation)
        if isinstance(measured, Evaluation):
            return measured
        return Evaluation.of(measured, len(bench.validation))  # of a trainer of the user's own

    def _evaluate_received(self, bench: _Workbench, slice_: Slice, event: pb.WatchRoundsResponse) -> Evaluation:
        """The metrics of the model that was received. If it gives none, the server is told.

        Raises:
            DivergedError: it gives values that aren't finite.
        """
        try:
            return self._evaluate(bench)
        except DivergedError as error:
            evaluation = Evaluation(num_examples=len(bench.validation))
            header = _header_of_metrics(slice_, self._api.client_id, event.task, evaluation)
            header.received_metrics["loss"] = error.loss if not math.isfinite(error.loss) else math.nan
            with contextlib.suppress(RequestError):  # which it answers with; what this client has to say stays
                self._push(header, [], event)
            raise DivergedError(
                f"the model received in round {event.round} gives values that aren't finite ({error}); the server's "
                "model is damaged, this client's data and training are not the cause. Whoever runs the server can take "
                "the run back to an earlier round: fedmtl-server runs rollback",
                error.loss,
            ) from None

    def _evaluate_trained(self, bench: _Workbench, result: TrainingResult) -> Evaluation:
        """The metrics of the model after training.

        Raises:
            DivergedError: it gives values that aren't finite, or its training, which may be a user's own, says so.
        """
        try:
            if not math.isfinite(result.loss):
                raise DivergedError(f"train_loss {result.loss}", result.loss)
            return self._evaluate(bench)
        except DivergedError as error:
            raise DivergedError(
                f"training diverged: the model gives values that aren't finite after {result.num_steps} steps "
                f"({error}); lower training.learning_rate",
                error.loss,
            ) from None

    def _train(
        self, bench: _Workbench, slice_: Slice, event: pb.WatchRoundsResponse
    ) -> tuple[TrainingResult, Evaluation]:
        """Train for a round.

        Returns:
            What it came to, and the metrics of the model then.

        Raises:
            DivergedError: the loss, or the model then, isn't finite.
        """
        corrections = {}
        if slice_.controls and len(self._tasks) > 1:
            raise ConfigError(
                f"training.control_variates: the server's are of clients of one task each; this one has "
                f"{', '.join(self._tasks)}"
            )
        if slice_.controls:
            _require_correctable(bench.trainer)
            corrections = {"correct": self._controls.correction(bench.model)}
        title = _progress(event)["progress"]
        with self._tracing.span("train"), training_progress(title, bar=self._settings.progress_bar) as on_step:
            result = bench.trainer.train(
                bench.model,
                bench.train,
                slice_.round,
                seed=_seed(slice_.plan.seed, self._api.client_id, slice_.round),
                on_step=on_step,
                should_stop=lambda: self._has_closed(event),
                **corrections,
            )
        metrics = self._evaluate_trained(bench, result)
        self._log.info(
            "round.trained", **_progress(event), loss=result.loss, steps=result.num_steps, seconds=result.seconds
        )
        return result, metrics.with_metric("train_loss", result.loss)

    def _prepare(self, name: str, plan: TrainingPlan) -> _Workbench:
        """Model and tokenised rows of a task, made in its first round and again only if the plan changes.

        Raises:
            ConfigError: the server's task of this name is another.
        """
        bench = self._workbenches.get(name)
        if bench and bench.plan == plan:
            return bench
        task = self._tasks[name]
        spec = task.spec
        if plan.task_type is not None:
            spec.require_same(plan.task_type, plan.labels)
        source = self._settings.model or plan.client_model
        self._log.info("model.loading", source=source)
        settings = self._settings
        tokenizer = load_tokenizer(source)
        model = self._models.new(spec, source, plan, tokenizer)
        path = settings.state_dir / f"{self._api.client_id}.{name}.safetensors" if settings.state_dir else None
        local = LocalParameters(model, plan.local, self._run_id, path)
        train, validation = (
            EncodedRows(rows.head(count), spec, tokenizer, plan.max_length)
            for rows, count in (
                (task.data.train, task.train_samples or plan.train_samples),
                (task.data.validation, task.val_samples or plan.val_samples),
            )
        )
        self._log.info("data.ready", task=name, **_counts(train, validation, plan.max_length))
        trainer = settings.trainer(spec, plan, settings.device)
        lossy = settings.upload != "float32"
        feedback = ErrorFeedback(settings.upload, settings.topk_density) if lossy else None
        self._workbenches[name] = _Workbench(
            plan,
            model.to(settings.device),
            trainer,
            train,
            validation,
            ClientModelSynchronizer(name, plan.local),
            bench.feedback if bench else feedback,
            local,
        )
        return self._workbenches[name]

    def _has_closed(self, event: pb.WatchRoundsResponse) -> bool:
        """Whether nothing this client does can count in the event's round any more."""
        newest = self._newest
        if self._no_longer_watching or newest is None or newest.run_id != event.run_id:
            return True
        return newest.oldest_base_round > event.round


def _counts(train: EncodedRows, validation: EncodedRows, max_length: int) -> dict[str, int]:
    """How many rows there are, and how many of them are cut, as far as that is known."""
    cut = {"train_rows_cut": train.num_cut, "validation_rows_cut": validation.num_cut}
    known = {name: count for name, count in cut.items() if count is not None}
    return {
        "train_rows": len(train),
        "validation_rows": len(validation),
        **known,
        **({"max_length": max_length} if known else {}),
    }


def _header_of_metrics(slice_: Slice, client_id: str, task: str, received: Evaluation) -> pb.UpdateHeader:
    """The header of a new update that has nothing but the metrics of the slice."""
    return pb.UpdateHeader(
        run_id=slice_.run_id,
        client_id=client_id,
        task=task,
        base_round=slice_.round,
        update_id=uuid.uuid4().hex,
        kind=pb.UPDATE_KIND_METRICS,
        received_metrics=dict(received),
        received_details=details_to_proto(received),
        num_eval_examples=received.num_examples,
    )


def _undefined(*evaluations: Evaluation) -> dict[str, dict[str, str]]:
    """For the log, which metrics have no value, and why, if any."""
    reasons = {name: reason for one in evaluations for name, reason in one.undefined.items()}
    return {"undefined": reasons} if reasons else {}


def _encoded_update(bench: _Workbench, kind: UpdateKind) -> list[EncodedComponent]:
    components = bench.synchronizer.update(bench.model, kind)
    if bench.feedback:
        return bench.feedback.encode(components)
    return [EncodedComponent.exact(component) for component in components]


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


def _progress(event: pb.WatchRoundsResponse) -> dict[str, str]:
    if event.purpose == pb.ROUND_PURPOSE_EVALUATE:
        return {"progress": "Final evaluation"}
    return {"progress": f"Round {event.round}/{event.num_rounds}"}


def _seed(seed: int, client_id: str, round_: int) -> int:
    return (seed + zlib.crc32(f"{client_id}/{round_}".encode())) % 2**63
