"""A client's run: watches the rounds, and in each one downloads the slice, trains on it and uploads the update."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from fedmtl_client.base import BaseSource
from fedmtl_client.progress import training_progress
from fedmtl_client.schedule import TaskSchedule
from fedmtl_client.slices import Slice, SliceVariant
from fedmtl_client.trainer import TrainingStopped
from fedmtl_client.transport import Receipt, RoundEvent, Transport
from fedmtl_client.worker import DamagedModelError, RoundWorker
from fedmtl_core.errors import MalformedStreamError, RequestError, StaleRoundError, UnavailableError, WrongRunError
from fedmtl_core.logs import EVALUATED, JOINED, TRAINED, get_logger
from fedmtl_core.runtime.tracing import OFF, Tracing
from fedmtl_core.tasks.evaluation import Evaluation
from fedmtl_core.tasks.plan import Purpose
from fedmtl_core.wire.encoded import EncodedComponent
from fedmtl_core.wire.updates import Update


@dataclass(frozen=True)
class RoundWork:
    """A client's work in one round."""

    round: int
    task: str
    purpose: Purpose
    received_metrics: Mapping[str, float]
    """Metrics of the received model on the client's evaluation rows, without undefined ones."""
    trained_metrics: Mapping[str, float] = field(default_factory=dict)
    """Metrics of the client's model after training, with the `train_loss`; empty in a round that only evaluates."""
    num_examples: int = 0
    """Number of training rows."""
    bytes_sent: int = 0


@dataclass(frozen=True)
class ClientResult:
    """A client's work in a run."""

    run_id: str
    client_id: str
    tasks: Sequence[str]
    """All tasks that the client has rows for; `RoundWork` has the task of each round."""
    rounds: Mapping[int, RoundWork]
    """By number, the rounds in which the client's update counted."""


class ClientSession:
    """One client in one run.

    Args:
        transport: the connection to the server.
        worker: works on slices, under the client id of the connection.
        schedule: the client's own choice of its next task; None to leave it to the server.
        progress_bar: whether training shows a bar if standard error is a terminal.
        tracing: records spans of the client's rounds and calls.
    """

    def __init__(
        self,
        transport: Transport,
        worker: RoundWorker,
        *,
        schedule: TaskSchedule | None = None,
        progress_bar: bool = False,
        tracing: Tracing = OFF,
    ):
        self._transport = transport
        self._worker = worker
        self._schedule = schedule or TaskSchedule(worker.tasks)
        self._progress_bar = progress_bar
        self._tracing = tracing
        self._run_id = ""
        self._done: dict[int, RoundWork] = {}
        self._events: queue.SimpleQueue[RoundEvent | Exception] = queue.SimpleQueue()
        self._newest: RoundEvent | None = None
        self._num_received = 0
        self._num_followed = 0
        self._no_longer_watching = False
        self._counted: tuple[str, int] | None = None
        self._num_before_counted = 0
        self._log = get_logger()

    def run(self) -> ClientResult:
        """Participate until the run is over, then close the connection.

        Returns:
            The client's work. If the server changed to another run, only the work in the last run.

        Raises:
            UnavailableError: the server was unreachable for too long.
            RequestError: the server refuses this client.
            ConfigError: the server's task of this name differs from the client's.
        """
        watcher = threading.Thread(target=self._watch, name="watch-rounds", daemon=True)
        watcher.start()
        try:
            self._follow()
        finally:
            self._transport.close()
            watcher.join()
        return ClientResult(self._run_id, self._transport.client_id, self._worker.tasks, self._done)

    def _follow(self) -> None:
        while True:
            event = self._events.get()
            if isinstance(event, Exception):
                raise event
            self._num_followed += 1
            if event.kind == "finished":
                self._log.info("run.finished", run_id=event.run_id, rounds=event.num_rounds)
                return
            if event.kind == "waiting" and event.waiting_for:
                self._log.info("round.waiting", progress=event.title, waiting_for=event.waiting_for)
            if event.kind == "opened" and self._is_wanted(event):
                self._require_task(event)
                self._take_part(event)

    def _watch(self) -> None:
        """Queue the run's events for `run`, and keep the newest accessible during training."""
        try:
            for event in self._transport.watch():
                if self._newest is None or event.run_id != self._newest.run_id:
                    names = ", ".join(self._worker.tasks)
                    self._log.info(JOINED, run_id=event.run_id, client_id=self._transport.client_id, task=names)
                self._newest = event
                self._num_received += 1
                self._events.put(event)
        except Exception as error:  # the main thread raises it, whatever it is
            self._no_longer_watching = True
            self._events.put(error)

    def _is_wanted(self, event: RoundEvent) -> bool:
        """Whether an opened round, whose event may have waited in the queue, still needs this client's work."""
        asked = event.in_cohort and not event.reported and not self._has_been_answered(event)
        newer = self._newest is not None and self._newest.round > event.round
        return asked and not newer and not self._has_closed(event)

    def _require_task(self, event: RoundEvent) -> None:
        if event.task not in self._worker.tasks:
            raise MalformedStreamError(
                f"the server assigned the task {event.task!r} to this client in round {event.round}, expected one of "
                f"{', '.join(self._worker.tasks)}"
            )

    def _has_been_answered(self, event: RoundEvent) -> bool:
        """Whether the update that the event asks for was counted while the event waited in the queue.

        An event that arrived after that is a new request. The server has lost the update, with its memory or with a
        damaged checkpoint, and repeats the round.
        """
        return (event.run_id, event.round) == self._counted and self._num_followed <= self._num_before_counted

    def _has_closed(self, event: RoundEvent) -> bool:
        """Whether no work of this client can count in the event's round any longer."""
        newest = self._newest
        if self._no_longer_watching or newest is None or newest.run_id != event.run_id:
            return True
        return newest.oldest_base_round > event.round

    def _take_part(self, event: RoundEvent) -> None:
        """Work on a round. If the round closes meanwhile, abandon it; the next event says how the run continues."""
        try:
            with self._tracing.span("round", round=event.round, client_id=self._transport.client_id, task=event.task):
                self._work(self._get_slice(event), event)
        except (StaleRoundError, WrongRunError) as error:
            self._log.warning("round.missed", progress=event.title, reason=str(error))
        except TrainingStopped:
            self._log.warning("round.missed", progress=event.title, reason="the round closed before training was done")
        except UnavailableError as error:
            if not self._has_closed(event):
                raise UnavailableError(f"{event.title}: {error}") from None
            self._log.warning("round.missed", progress=event.title, reason=str(error))

    def _get_slice(self, event: RoundEvent) -> Slice:
        if event.run_id != self._run_id:
            self._run_id = event.run_id
            self._done = {}
            self._worker.forget()
        with self._tracing.call("GetSlice"):
            return self._transport.get_slice(
                event.round,
                run_id=event.run_id,
                task=event.task,
                encoding=self._worker.download,
                cache=self._worker.cache,
                should_stop=lambda: self._has_closed(event),
            )

    def _get_variant(self, slice_: Slice, name: str, event: RoundEvent) -> SliceVariant:
        with self._tracing.call("GetSlice"):
            return self._transport.get_variant(
                slice_,
                name,
                encoding=self._worker.download,
                cache=self._worker.cache,
                should_stop=lambda: self._has_closed(event),
            )

    def _base(self, slice_: Slice, event: RoundEvent) -> BaseSource:
        return BaseSource(
            lambda: self._transport.describe_base(slice_, should_stop=lambda: self._has_closed(event)).tensors,
            lambda own: self._transport.get_base(slice_, own, should_stop=lambda: self._has_closed(event)),
        )

    def _work(self, slice_: Slice, event: RoundEvent) -> None:
        try:
            if slice_.purpose == "evaluate":
                self._evaluate(slice_, event)
            else:
                self._train(slice_, event)
        except DamagedModelError as error:
            with contextlib.suppress(RequestError):  # the server refuses this update; the client's message says more
                self._push(error.update, (), event)
            raise

    def _evaluate(self, slice_: Slice, event: RoundEvent) -> None:
        update = self._worker.evaluate(
            slice_,
            lambda: self._has_closed(event),
            lambda name: self._get_variant(slice_, name, event),
            self._base(slice_, event),
        )
        self._push(update, (), event)
        self._done[slice_.round] = RoundWork(slice_.round, update.task, "evaluate", update.received.metrics)
        facts = {"metrics": dict(update.received), **_undefined(update.received)}
        seconds = self._worker.evaluation_seconds
        self._log.info(EVALUATED, progress=event.title, task=update.task, **facts, evaluation_seconds=seconds)

    def _train(self, slice_: Slice, event: RoundEvent) -> None:
        with training_progress(event.title, bar=self._progress_bar) as on_step:
            trained = self._worker.train(
                slice_,
                on_step,
                lambda: self._has_closed(event),
                lambda name: self._get_variant(slice_, name, event),
                self._base(slice_, event),
            )
        result = trained.result
        self._log.info(
            TRAINED,
            progress=event.title,
            loss=result.loss,
            steps=result.num_steps,
            seconds=result.seconds,
            evaluation_seconds=self._worker.evaluation_seconds,
        )
        update = replace(trained.update, next_task=self._schedule.after(event.task, event.round))
        receipt = self._push(update, trained.components, event)
        self._worker.counted(update)
        self._done[slice_.round] = RoundWork(
            slice_.round,
            update.task,
            "train",
            update.received.metrics,
            update.trained.metrics,
            update.num_examples,
            receipt.num_bytes,
        )
        self._log.info(
            "update.sent",
            progress=event.title,
            task=update.task,
            received=dict(update.received),
            trained=dict(update.trained),
            **_undefined(update.received, update.trained),
            bytes_sent=receipt.num_bytes,
        )

    def _push(self, update: Update, components: Sequence[EncodedComponent], event: RoundEvent) -> Receipt:
        with self._tracing.call("PushUpdate"):
            receipt = self._transport.push_update(update, components, lambda: self._has_closed(event))
        self._counted, self._num_before_counted = (event.run_id, receipt.round), self._num_received
        return receipt


def _undefined(*evaluations: Evaluation) -> dict[str, dict[str, str]]:
    """Return the metrics without a value and the reasons, as keys for the log; empty if all have values."""
    reasons = {name: reason for one in evaluations for name, reason in one.undefined.items()}
    return {"undefined": reasons} if reasons else {}
