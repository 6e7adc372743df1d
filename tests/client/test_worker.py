"""A client's work in one round, driven with slices made by hand: no server, no connection."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import math
import subprocess
import sys
import weakref

import pytest
import torch

from fedmtl_client.api import FederationApi
from fedmtl_client.data import EncodedRows, load_task_data
from fedmtl_client.scaffold import ControlVariates
from fedmtl_client.session import ClientSession
from fedmtl_client.slices import Slice
from fedmtl_client.task_state import ClientTask, WorkerSettings
from fedmtl_client.trainer import Trainer, TrainingResult, TrainingStopped
from fedmtl_client.worker import DamagedModelError, RoundWorker, round_seed
from fedmtl_core.config import Config, DataConfig
from fedmtl_core.errors import ConfigError, DivergedError, LayoutMismatchError
from fedmtl_core.model.modeling import TOY_MODEL, load_tokenizer
from fedmtl_core.tasks.glue import PRESETS
from fedmtl_core.wire.controls import control_layout
from fedmtl_core.wire.encodings import decode
from fedmtl_core.wire.layout import Component
from fedmtl_server.aggregation.aggregator import ClientUpdate, MTLAggregator
from fedmtl_server.model import MTLServerModel
from tests.support import model_bytes, serving

CPU = torch.device("cpu")
NUM_ROWS, NUM_EVALUATED = 48, 20
TASKS = ("sst2", "stsb")
CONFIG = Config.model_validate(
    {
        "model": {"server_model": TOY_MODEL, "head_dropout": 0.0},
        "training": {"local_epochs": 1, "num_rounds": 2, "learning_rate": 2e-3, "max_length": 32, "seed": 7},
        "tasks": {task: {"data": {"builtin": task}} for task in TASKS},
    }
)
PLAN = CONFIG.plan("sst2")
SGD = dataclasses.replace(PLAN, optimizer="sgd", learning_rate=0.05, warmup_ratio=0.0)
HEAD = ("heads.sst2.weight", "heads.sst2.bias")


@functools.cache
def data_of(task):
    return load_task_data(PRESETS[task], DataConfig(builtin=task))


def worker_of(*tasks, client_id="a", rows=NUM_ROWS, **settings):
    given = [ClientTask(PRESETS[task], data_of(task), rows, NUM_EVALUATED) for task in tasks or ("sst2",)]
    return RoundWorker(client_id, given, WorkerSettings(CPU, model=TOY_MODEL, **settings))


def model_of():
    return MTLServerModel.from_config(CONFIG)


def slice_of(round_=1, plan=PLAN, *, task="sst2", model=None, purpose="train", without=(), **controls):
    """A slice with memory of its own.

    Args:
        without: names of the parameters that the client keeps for itself.
    """
    model = model or model_of()
    components = {}
    for scope in model.scopes_for(task):
        views = {name: view for name, view in model.components[scope].views().items() if name not in without}
        if views:
            components[scope] = Component.pack(scope, views)
    return Slice("run", round_, task, purpose, plan, components, **controls)


def zero_controls(slice_):
    return {scope: Component(control_layout(one.layout)) for scope, one in slice_.components.items()}


def values_of(components):
    return {scope: component.buffer.clone() for scope, component in components.items()}


def bits(trained):
    return [one.data.numpy().tobytes() for one in trained.components]


def decoded(trained):
    """By scope, the components that an update carries."""
    return {one.layout.scope: decode(one.layout.layout, one.layout.encoding, one.data) for one in trained.components}


def trained_alone(round_=1, plan=PLAN, client_id="a"):
    """The model after one round by the trainer alone, and what the training came to."""
    spec, model = PRESETS["sst2"], model_of().module_for("sst2")
    rows = data_of("sst2").train.head(NUM_ROWS)
    encoded = EncodedRows(rows, spec, load_tokenizer(TOY_MODEL), plan.max_length)
    result = Trainer(spec, plan, CPU).train(model, encoded, round_, seed=round_seed(plan.seed, client_id, round_))
    return model.exchanged(), result


class TestEvaluation:
    def test_its_update_is_the_metrics_of_the_received_model_alone(self):
        update = worker_of().evaluate(slice_of(3, purpose="evaluate"))
        assert (update.run_id, update.client_id, update.task, update.base_round) == ("run", "a", "sst2", 3)
        assert (update.kind, update.components, update.num_examples, update.extras) == ("metrics", (), 0, {})
        assert update.received.keys() == {"accuracy", "loss"}
        assert update.received.num_examples == NUM_EVALUATED
        assert not update.trained.says_anything

    @pytest.mark.parametrize("download", ["float32", "int8"])
    def test_the_slice_stays_as_it_was_received_and_is_announced(self, download):
        worker, slice_ = worker_of(download=download), slice_of()
        received = values_of(slice_.components)
        for scope in slice_.components:
            worker.cache.set_version(scope, b"digest")
        worker.evaluate(slice_)
        assert all(torch.equal(one.buffer, received[scope]) for scope, one in slice_.components.items())
        assert worker.cache.versions().keys() == slice_.components.keys()


class TestParameters:
    def test_its_update_is_what_the_trainer_alone_makes_of_the_slice_to_the_bit(self):
        trained = worker_of().train(slice_of())
        expected, result = trained_alone()
        views = {name: view for one in decoded(trained).values() for name, view in one.views().items()}
        assert views.keys() == expected.keys()
        assert all(torch.equal(view, expected[name]) for name, view in views.items())
        update = trained.update
        assert (update.kind, update.num_examples, update.scopes) == ("parameters", NUM_ROWS, ("shared", "task:sst2"))
        assert update.extras == {"normalization": {"num_steps": result.num_steps}}
        assert update.received.keys() == {"accuracy", "loss"}
        assert update.trained.keys() == {"accuracy", "loss", "train_loss"}
        assert update.trained["train_loss"] == pytest.approx(result.loss)
        assert trained.result.num_steps == result.num_steps

    def test_two_updates_of_one_slice_are_the_same_but_for_their_names(self):
        worker = worker_of()
        first, second = worker.train(slice_of()).update, worker.train(slice_of()).update
        assert first.update_id != second.update_id
        assert dataclasses.replace(second, update_id=first.update_id).repeats(first)

    def test_the_model_lives_in_the_slice_s_memory_which_is_no_version_any_more(self):
        worker, slice_ = worker_of(), slice_of()
        for scope in (*slice_.components, "another"):
            worker.cache.set_version(scope, b"digest")
        trained = worker.train(slice_)
        for one in trained.components:
            assert one.data.data_ptr() == slice_.components[one.layout.scope].buffer.data_ptr()
        assert worker.cache.versions().keys() == {"another"}

    @pytest.mark.parametrize("settings", [{"download": "int8"}, {"download": "topk"}, {"upload": "float16"}])
    def test_a_slice_that_is_needed_as_it_was_received_is_not_trained_in(self, settings):
        worker, slice_ = worker_of(**settings), slice_of()
        received = values_of(slice_.components)
        for scope in slice_.components:
            worker.cache.set_version(scope, b"digest")
        worker.train(slice_)
        assert all(torch.equal(one.buffer, received[scope]) for scope, one in slice_.components.items())
        assert worker.cache.versions().keys() == slice_.components.keys()

    def test_a_plan_that_changes_makes_the_model_anew(self):
        worker = worker_of()
        worker.train(slice_of(1))
        longer = dataclasses.replace(PLAN, local_epochs=2)
        trained = worker.train(slice_of(1, longer))
        assert bits(trained) == bits(worker_of().train(slice_of(1, longer)))
        assert trained.update.extra_of("normalization", "num_steps") == 2 * trained_alone()[1].num_steps

    def test_each_of_several_tasks_has_a_model_and_rows_of_its_own(self):
        worker, alone = worker_of("sst2", "stsb"), worker_of("stsb")
        assert worker.tasks == TASKS
        worker.train(slice_of())
        plan = CONFIG.plan("stsb")
        trained = worker.train(slice_of(1, plan, task="stsb"))
        assert trained.update.scopes == ("shared", "task:stsb")
        assert bits(trained) == bits(alone.train(slice_of(1, plan, task="stsb")))

    def test_a_slice_of_another_model_is_refused(self):
        with pytest.raises(LayoutMismatchError, match="the slice doesn't fit this client's model"):
            worker_of().train(dataclasses.replace(slice_of(), components={}))

    def test_a_task_that_means_something_else_to_the_server_is_refused(self):
        other = dataclasses.replace(PLAN, labels=("positive", "negative"))
        with pytest.raises(ConfigError, match=r"^task sst2: the server has the labels positive, negative"):
            worker_of().evaluate(slice_of(1, other))


class TestErrorFeedback:
    def test_an_update_is_a_delta_in_the_encoding_of_the_settings(self):
        slice_ = slice_of()
        trained = worker_of(upload="float16").train(slice_)
        expected, _ = trained_alone()
        assert trained.update.kind == "delta"
        assert {one.encoding for one in trained.update.components} == {"float16"}
        for scope, delta in decoded(trained).items():
            received = slice_.components[scope].views()
            for name, view in delta.views().items():
                torch.testing.assert_close(view, expected[name] - received[name], rtol=2e-3, atol=1e-6)

    def test_what_is_rounded_away_comes_with_the_next_update_once_the_first_counts(self):
        worker = worker_of(upload="topk")
        first = worker.train(slice_of())
        again = worker.train(slice_of())  # the first didn't count: nothing of it arrived
        assert bits(again) == bits(first)
        worker.counted(again.update)
        assert bits(worker.train(slice_of())) != bits(first)

    def test_another_run_owes_nothing(self):
        worker = worker_of(upload="topk")
        first = worker.train(slice_of())
        worker.counted(first.update)
        worker.forget()
        assert bits(worker.train(slice_of())) == bits(first)


class TestControlVariates:
    def test_its_update_is_a_delta_with_the_sum_of_the_learning_rates(self):
        slice_ = slice_of(1, SGD)
        with_controls = dataclasses.replace(slice_, controls=zero_controls(slice_), control_since=1)
        trained = worker_of().train(with_controls)
        assert trained.update.kind == "delta"
        assert {one.encoding for one in trained.update.components} == {"float32"}
        result = trained_alone(1, SGD)[1]
        assert trained.update.extras == {
            "normalization": {"num_steps": result.num_steps},
            "control_variates": {"learning_rate_sum": result.learning_rate_sum, "control_round": 0},
        }

    def test_the_variates_follow_the_updates_that_count_and_the_run(self):
        worker = worker_of()

        def control_round(round_, since=1):
            slice_ = slice_of(round_, SGD)
            trained = worker.train(dataclasses.replace(slice_, controls=zero_controls(slice_), control_since=since))
            return trained.update.extra_of("control_variates", "control_round"), trained

        before, first = control_round(1)
        not_counted, _ = control_round(1)
        assert (before, not_counted) == (0, 0)
        worker.counted(first.update)
        counted, second = control_round(2)
        assert counted == 1
        assert bits(second) != bits(control_round_of_a_newcomer(2))
        worker.counted(second.update)
        assert control_round(3)[0] == 2
        assert control_round(5, since=4)[0] == 0  # the server has begun anew
        worker.forget()
        assert control_round(2)[0] == 0

    def test_what_corrected_the_gradients_is_gone_when_the_update_is_made(self, monkeypatch):
        """It is as large as the model, and so is the update."""
        made, alive = [], []
        correction, trained = ControlVariates.correction, ControlVariates.trained

        def noted(self, model):
            made.append(weakref.ref(correct := correction(self, model)))
            return correct

        def looked(self, *arguments):
            alive.extend(one() for one in made)
            return trained(self, *arguments)

        monkeypatch.setattr(ControlVariates, "correction", noted)
        monkeypatch.setattr(ControlVariates, "trained", looked)
        slice_ = slice_of(plan=SGD)
        worker_of().train(dataclasses.replace(slice_, controls=zero_controls(slice_), control_since=1))
        assert alive == [None]

    def test_a_client_of_several_tasks_is_refused(self):
        slice_ = slice_of(1, SGD)
        with pytest.raises(
            ConfigError, match=r"control_variates: .* clients with one task each; this client has sst2, st"
        ):
            worker_of("sst2", "stsb").train(dataclasses.replace(slice_, controls=zero_controls(slice_)))


def control_round_of_a_newcomer(round_):
    slice_ = slice_of(round_, SGD)
    return worker_of().train(dataclasses.replace(slice_, controls=zero_controls(slice_), control_since=1))


class TestLocalParameters:
    PLAN = dataclasses.replace(PLAN, local=HEAD)

    def received_loss(self, worker, round_):
        """The loss of what the slice and the client's own head make together."""
        return worker.evaluate(slice_of(round_, self.PLAN, without=HEAD))

    def test_they_are_never_sent_and_move_with_the_updates_that_count(self, tmp_path):
        worker = worker_of(state_dir=tmp_path)
        first = self.received_loss(worker, 1)
        trained = worker.train(slice_of(1, self.PLAN, without=HEAD))
        assert trained.update.scopes == ("shared",)
        assert not {spec.name for one in trained.update.components for spec in one.layout.tensors} & set(HEAD)
        assert self.received_loss(worker, 1).received.same_as(first.received)  # it didn't count
        assert not list(tmp_path.iterdir())
        trained = worker.train(slice_of(1, self.PLAN, without=HEAD))
        worker.counted(trained.update)
        kept = self.received_loss(worker, 2)
        assert not kept.received.same_as(first.received)
        assert [path.name for path in tmp_path.iterdir()] == ["a.sst2.safetensors"]
        again = worker_of(state_dir=tmp_path)  # as after a restart
        assert self.received_loss(again, 2).received.same_as(kept.received)

    def test_another_run_begins_with_their_first_values(self):
        worker = worker_of()
        first = self.received_loss(worker, 1)
        worker.counted(worker.train(slice_of(1, self.PLAN, without=HEAD)).update)
        worker.forget()
        assert self.received_loss(worker, 1).received.same_as(first.received)


class TestClosing:
    def test_training_that_is_stopped_midway_leaves_no_trace_in_the_next(self):
        worker, steps = worker_of(upload="int8"), []
        with pytest.raises(TrainingStopped):
            worker.train(slice_of(), steps.append, lambda: len(steps) == 1)
        assert [(step.step, step.num_steps) for step in steps] == [(1, 2)]
        assert bits(worker.train(slice_of(2))) == bits(worker_of(upload="int8").train(slice_of(2)))

    def test_every_step_is_told(self):
        steps = []
        trained = worker_of().train(slice_of(), steps.append)
        assert [step.step for step in steps] == list(range(1, trained.result.num_steps + 1))
        assert steps[-1].epoch_ended


class TestDivergence:
    @pytest.mark.parametrize("work", ["evaluate", "train"])
    def test_a_damaged_model_is_an_error_with_an_update_that_says_so(self, work):
        slice_ = slice_of(4)
        slice_.components["shared"].buffer.view(torch.float32).fill_(math.nan)
        with pytest.raises(DamagedModelError, match=r"^the model received in round 4 gives values") as error:
            getattr(worker_of(), work)(slice_)
        update = error.value.update
        assert (update.kind, update.base_round, update.components) == ("metrics", 4, ())
        assert math.isnan(update.received["loss"])
        assert update.received.num_examples == NUM_EVALUATED

    def test_training_that_diverges_is_the_client_s_own_error(self):
        wild = dataclasses.replace(SGD, learning_rate=1e30, max_grad_norm=0.0, batch_size=8)
        with pytest.raises(DivergedError, match=r"^training diverged: ") as error:
            worker_of().train(slice_of(1, wild))
        assert not isinstance(error.value, DamagedModelError)


# Two workers and the server's average, without sockets and with them.


async def over_grpc(tmp_path, settings):
    """The model after a run with a server and two clients."""
    model = model_of()
    sections = CONFIG.model_dump(mode="json", exclude_unset=True)
    async with serving(tmp_path, model, sections=sections, min_clients=1) as server:
        sessions = [
            ClientSession(
                FederationApi(server.address, client_id=f"client-{task}", task=task, reconnect_s=20),
                worker_of(task, client_id=f"client-{task}", **settings),
            )
            for task in TASKS
        ]
        await asyncio.gather(*(asyncio.to_thread(session.run) for session in sessions))
        return model_bytes(server.federation.model)


def without_sockets(settings):
    """The model after the same rounds in this thread alone."""
    model = model_of()
    workers = {task: worker_of(task, client_id=f"client-{task}", **settings) for task in TASKS}
    for round_ in range(1, CONFIG.training.num_rounds + 1):
        base = {scope: component.clone() for scope, component in model.components.items()}
        updates = []
        for task, worker in workers.items():
            trained = worker.train(slice_of(round_, CONFIG.plan(task), task=task, model=model))
            worker.counted(trained.update)
            update = trained.update
            parts = {scope: one.clone() for scope, one in decoded(trained).items()}
            updates.append(ClientUpdate(update.client_id, task, update.num_examples, parts, update.kind))
        averaged = MTLAggregator().aggregate_mtl_updates(updates, base, round_)
        model.set_shared_parameters(averaged["shared"])
        for task, head in averaged["task_heads"].items():
            model.set_task_head_parameters(task, head)
    return model_bytes(model)


@pytest.mark.parametrize("settings", [{}, {"upload": "int8"}], ids=["parameters", "delta"])
async def test_two_workers_and_the_average_in_one_process_give_the_same_bits_as_over_grpc(settings, tmp_path):
    first = model_bytes(model_of())
    alone = without_sockets(settings)
    assert all(alone[scope] != before for scope, before in first.items())
    assert await over_grpc(tmp_path, settings) == alone


@pytest.mark.parametrize("module", ["worker", "session", "transport"])
def test_what_works_without_a_wire_imports_neither_grpc_nor_the_contract(module):
    code = (
        f"import sys; import fedmtl_client.{module}; "
        "print(sorted(name for name in sys.modules if name.split('.')[0] in ('grpc', 'fedmtl')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_seconds_of_all_evaluations_in_a_round_are_summed_and_begin_anew_in_the_next(monkeypatch):
    """A clock that each look moves on by 1: an evaluation takes 1, and training takes one evaluation more."""
    worker = worker_of()
    ticks = iter(range(1000))
    monkeypatch.setattr("fedmtl_client.worker.time.monotonic", lambda: float(next(ticks)))
    monkeypatch.setattr(Trainer, "train", lambda self, *_, **__: TrainingResult(0.5, 1, 0.0))
    worker.train(slice_of())
    assert worker.evaluation_seconds == 2.0
    worker.evaluate(slice_of(2, purpose="evaluate"))
    assert worker.evaluation_seconds == 1.0
