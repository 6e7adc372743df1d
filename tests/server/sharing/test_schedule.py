"""Sharing that changes by a schedule: averages against plain numpy, runs taken up, and clients that follow."""

from __future__ import annotations

import asyncio
import dataclasses

import numpy as np
import pytest
import torch
from fedmtl.v1 import federation_pb2 as pb
from safetensors.numpy import load_file
from typer.testing import CliRunner

from fedmtl_client.trainer import Trainer
from fedmtl_core.config import Config, EarlyStoppingConfig
from fedmtl_core.errors import ConfigError, StoreError
from fedmtl_core.model.modeling import TOY_MODEL
from fedmtl_core.model.sharing import GroupTree, SharingRules
from fedmtl_core.model.sharing_schedule import SharingChange, SharingSchedule
from fedmtl_server.aggregation.stages.task_weighting import TaskWeights
from fedmtl_server.aggregation_rules import AggregationRules
from fedmtl_server.aggregation_setup import make_pipeline
from fedmtl_server.commands.app import app
from fedmtl_server.model import MTLServerModel
from fedmtl_server.rounds.stopping import should_stop
from fedmtl_server.saved_runs import load_model, open_run
from fedmtl_server.sharing.layer_moves import LayerRegrouping
from tests import federations
from tests.server.sharing.test_policies import CLIENTS, EXAMPLES, play, push
from tests.server.sharing.test_shared_layers import Layered
from tests.support import eventually, model_bytes, reports_of, serving, specs, watching

TASKS = ("sst2", "qqp", "stsb")
APART = (("sst2",), ("qqp",), ("stsb",))
SCHEDULE = [
    {"after_round": 1, "layers": {"0-1": "task"}},
    {"after_round": 3, "layers": {1: "pairs", "rest": "task"}},
]
GROUPS = {"pairs": ["qqp", "stsb"]}


def scheduled(*entries, **more):
    return {"sharing": {"groups": GROUPS, "schedule": list(entries or SCHEDULE)}, **more}


def layered_model(seed=0):
    torch.manual_seed(seed)
    return MTLServerModel(Layered(), specs(*TASKS), hidden_size=4, sharing=SharingRules(groups=GROUPS))


def own(model, name):
    """A tensor of each task's encoder."""
    return {task: model.get_model_slice_for_task(task)[name].numpy().copy() for task in TASKS}


# The schedule alone.


def test_an_entry_holds_until_another_one_names_the_part():
    tree = GroupTree(TASKS, GROUPS)
    schedule = SharingSchedule(tree, [SharingChange(2, {"0-1": "task"}), SharingChange(4, {"1": "group"})])
    after = {
        round_: {part: (one.entry, one.blocks) for part, one in schedule.after(round_).items()} for round_ in range(6)
    }
    assert after[0] == after[1] == {}
    assert after[2] == after[3] == {"0": (0, APART), "1": (0, APART)}
    assert after[4] == after[5] == {"0": (0, APART), "1": (1, (("sst2",), ("qqp", "stsb")))}


def test_a_layer_that_the_encoder_lacks_is_named_with_its_entry():
    shape = layered_model().parts.shape
    with pytest.raises(ConfigError, match=r"sharing\.schedule\[1\]\.layers: the encoder has no layer 2; it has 0, 1"):
        SharingSchedule.of(shape, SharingRules(), [SharingChange(1, {"1": "task"}), SharingChange(2, {"1-2": "task"})])


def test_a_part_that_has_only_norms_stays_as_the_norms_are_to_be_shared():
    parts = layered_model().parts
    fixed = dataclasses.replace(parts, rules=SharingRules(norms="task"))
    schedule = SharingSchedule.of(parts.shape, fixed.rules, [SharingChange(1, {"1": "task"})])
    assert set(fixed.planned(schedule)) == {1}
    schedule = SharingSchedule.of(parts.shape, fixed.rules, [SharingChange(1, {"1": "task", "rest": "shared"})])
    with pytest.raises(ConfigError, match=r"sharing\.schedule: rest has only normalization layers, whose sharing"):
        LayerRegrouping(fixed, schedule)


def test_a_schedule_needs_no_mean_of_each_task_and_room_for_the_largest_model_only():
    model = layered_model()  # 56 numbers in the encoder, of which layers 0 and 1 have 20 each; heads of 10, 10 and 5
    config = Config.model_validate({"tasks": {key: {} for key in TASKS}, **scheduled()})
    pipeline = make_pipeline(config, model, AggregationRules.of(config))
    stage = pipeline.find(LayerRegrouping)
    assert pipeline.find(TaskWeights) is None
    assert not stage.needs_task_means
    largest = 8 + 60 + 60 + 8 + 25  # after round 1; after round 3, layer 1 is there twice and the norm three times
    before = 8 + 20 + 20 + 8 + 25
    assert stage.growth == pytest.approx(largest / before, rel=0.1)  # but for padding


def test_training_does_not_stop_before_the_last_entry_has_had_its_patience():
    section = EarlyStoppingConfig(patience=2)
    never_better = {"sst2": dict.fromkeys(range(5), 0.5)}
    assert should_stop(section, never_better)
    assert not should_stop(section, never_better, since=3)
    assert should_stop(section, {"sst2": dict.fromkeys(range(6), 0.5)}, since=3)


# Whole runs.


async def test_what_a_schedule_parts_is_copied_exactly_and_what_it_joins_is_the_mean_by_examples(tmp_path):
    model = layered_model()
    before = {name: tensor.numpy().copy() for name, tensor in model.get_shared_parameters().items()}
    name, norm = "encoder.layer.1.weight", "encoder.last_norm.weight"

    def step(round_):
        return np.linspace(0.5, 1.5, 16, dtype=np.float32).reshape(4, 4) * (1 + 0.1 * round_)

    async with serving(tmp_path, model, num_rounds=5, sections=scheduled()) as server:
        await play(server, [1])
        assert model.sharing.scopes == ("shared", *(f"task:{task}" for task in TASKS))
        average = before[name] + step(1) * (1 + 2 - 3) / 6
        each = own(model, name)
        np.testing.assert_allclose(each["sst2"], average, atol=1e-6)
        assert all(np.array_equal(each["sst2"], one) for one in each.values())
        await play(server, [2])
        apart = own(model, name)
        np.testing.assert_allclose(apart["qqp"], average + step(2), atol=1e-6)  # x, y and z each for itself
        np.testing.assert_allclose(apart["stsb"], average - step(2), atol=1e-6)
        assert norm in model.sharing.tensors("shared")
        await play(server, [3])
        third = {task: apart[task] + step(3) for task in TASKS}
        joined = own(model, name)
        np.testing.assert_allclose(joined["sst2"], third["sst2"], atol=1e-5)  # its own, as before
        mean = (EXAMPLES["y"] * third["qqp"] + EXAMPLES["z"] * third["stsb"]) / 5
        np.testing.assert_allclose(joined["qqp"], mean, atol=1e-5)
        assert np.array_equal(joined["qqp"], joined["stsb"])
        assert model.sharing.scopes[1] == "group:pairs"
        assert norm in model.sharing.tensors("task:qqp")
    first, _, third = reports_of(tmp_path)
    together = [list(TASKS)]
    assert (first.moved, first.moved_by) == (
        {"0": together, "1": together},
        dict.fromkeys(["0", "1"], "sharing.schedule[0]"),
    )
    assert (third.moved, third.moved_by) == (
        {"1": [[task] for task in TASKS], "rest": together},
        dict.fromkeys(["1", "rest"], "sharing.schedule[1]"),
    )
    assert third.sharing["1"] == [["sst2"], ["qqp", "stsb"]]


@pytest.mark.parametrize("optimizer", ["fedavg", "fedadam"])
async def test_a_run_killed_in_any_round_and_after_it_goes_on_to_the_same_bits(tmp_path, optimizer):
    given = {
        "sections": scheduled(
            server_optimizer={"name": optimizer}, robustness={"norms": {"action": "clip", "median_factor": 2}}
        ),
        "num_rounds": 5,
    }
    async with serving(tmp_path / "whole", layered_model(), **given) as server:
        expected = await play(server, (1, 2, 3, 4))
    for round_ in (1, 2, 3, 4):
        async with serving(tmp_path / "parts", layered_model(seed=round_ - 1), **given) as server:
            async with watching(server, **CLIENTS) as clients:
                await push(clients["y"], round_)
        async with serving(tmp_path / "parts", layered_model(seed=9), **given) as server:
            async with watching(server, **CLIENTS) as clients:
                await push(clients["x"], round_)
                await push(clients["z"], round_)
                await clients["x"].until(pb.ROUND_EVENT_KIND_OPENED, round_ + 1)
            got = model_bytes(server.federation.model)
    assert got == expected
    whole, parts = (reports_of(tmp_path / folder) for folder in ("whole", "parts"))
    assert [(one.moved, one.moved_by, one.sharing) for one in whole] == [
        (one.moved, one.moved_by, one.sharing) for one in parts
    ]


async def test_a_server_that_ends_in_the_middle_of_an_entrys_commit_makes_it_again(tmp_path, monkeypatch):
    given = {"sections": scheduled(), "num_rounds": 5}
    async with serving(tmp_path / "whole", layered_model(), **given) as server:
        expected = await play(server, (1,))

    def fails(*_: object, **__: object) -> None:
        raise StoreError("the server was killed here")

    async with serving(tmp_path / "parts", layered_model(), **given) as server:
        with monkeypatch.context() as patch:
            patch.setattr(server.store, "end_round", fails)
            async with watching(server, **CLIENTS) as clients:
                for client in clients.values():
                    await push(client, 1)
                await asyncio.wait([server.run_task])
    assert "task:qqp/encoder.layer.1.weight" in load_file(tmp_path / "parts" / "checkpoints" / "round-0001.safetensors")
    async with serving(tmp_path / "parts", layered_model(seed=3), **given) as server:
        await eventually(lambda: server.federation.published.round == 2)
        assert model_bytes(server.federation.model) == expected


async def test_a_run_rolled_back_before_an_entry_makes_the_change_again(tmp_path):
    given = {"sections": scheduled(store={"keep_checkpoints": 9}), "num_rounds": 5}
    async with serving(tmp_path, layered_model(), **given) as server:
        expected = await play(server, (1, 2, 3))
    rolled = CliRunner().invoke(app, ["runs", "rollback", str(tmp_path), "--to-round", "0"])
    assert rolled.exit_code == 0, rolled.output
    async with serving(tmp_path, layered_model(seed=4), **given) as server:
        assert server.federation.model.sharing.is_one_model
        assert await play(server, (1, 2, 3)) == expected


async def test_a_run_is_not_taken_up_with_another_schedule(tmp_path):
    async with serving(tmp_path, layered_model(), num_rounds=5, sections=scheduled()):
        pass
    with pytest.raises(ConfigError, match=r"sharing\.schedule: the run has \["):
        async with serving(tmp_path, layered_model(), num_rounds=5, sections=scheduled(SCHEDULE[0])):
            pass


async def test_a_round_that_fails_leaves_its_entry_to_the_next_commit(tmp_path):
    sections = scheduled({"after_round": 1, "layers": {"1": "task"}})
    given = {"num_rounds": 3, "min_clients": {"sst2": 1, "qqp": 1, "stsb": 1}, "on_missing_quorum": "fail"}
    model = layered_model()
    async with serving(tmp_path, model, sections=sections, deadline_s=1, **given) as server:
        async with watching(server, **CLIENTS) as clients:
            await push(clients["x"], 1)  # y and z are there, and send nothing
            await clients["x"].until(pb.ROUND_EVENT_KIND_FAILED)
            assert model.sharing.is_one_model
            await clients["x"].until(pb.ROUND_EVENT_KIND_OPENED, 2)
            for client in clients.values():
                await push(client, 2)
            await clients["x"].until(pb.ROUND_EVENT_KIND_OPENED, 3)
            assert not model.sharing.is_one_model
    assert [one.moved_by for one in reports_of(tmp_path)][:2] == [{}, {"1": "sharing.schedule[0]"}]


async def test_a_policy_moves_only_what_the_schedule_leaves_to_it(tmp_path):
    """The policy parts layer 1 after round 1 by its cosines; the schedule has layer 0 and the embeddings."""
    adaptive = {"policy": "cosine", "patience": 1, "smoothing": 0.0, "max_parameters": 3.0}
    entry = {"after_round": 1, "layers": {"0": "task", "embeddings": "task"}}
    sections = {"sharing": {"groups": GROUPS, "schedule": [entry], "adaptive": adaptive}}
    model = layered_model()
    async with serving(tmp_path, model, num_rounds=3, sections=sections) as server:
        await play(server, [1, 2])
    first, second = reports_of(tmp_path)[:2]
    assert first.moved_by == {
        "embeddings": "sharing.schedule[0]",
        "0": "sharing.schedule[0]",
        "1": "sharing.adaptive",
    }
    assert first.sharing["1"] == [["sst2", "qqp"], ["stsb"]]
    assert list(first.stages["sharing"]["policy"]["cosines"]) == ["1", "rest"]  # of what it may move
    assert second.moved == {}
    assert second.sharing == first.sharing


async def test_runs_show_says_which_entry_moved_a_layer(tmp_path):
    async with serving(tmp_path, layered_model(), num_rounds=5, sections=scheduled()) as server:
        await play(server, [1])
    shown = CliRunner().invoke(app, ["runs", "show", str(tmp_path), "--round", "1"])
    assert shown.exit_code == 0, shown.output
    assert "1: sst2+qqp+stsb to sst2 | qqp | stsb (sharing.schedule[0])" in " ".join(shown.output.split())


OWN_RULE = """
from fedmtl_server.aggregation.rules import BlockRule

class Largest(BlockRule):
    def aggregate(self, values, weights, context):
        return values.max(dim=0).values
"""


async def test_a_rule_of_ones_own_goes_with_a_schedule(tmp_path, monkeypatch):
    (tmp_path / "largest_rule.py").write_text(OWN_RULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sections = scheduled(aggregation={"rule": "largest_rule:Largest"})
    model = layered_model()
    async with serving(tmp_path / "run", model, num_rounds=5, sections=sections) as server:
        await play(server, [1])
        first = own(model, "encoder.layer.1.weight")
        await play(server, [2])
        second = own(model, "encoder.layer.1.weight")
    step = np.linspace(0.5, 1.5, 16, dtype=np.float32).reshape(4, 4) * 1.2
    np.testing.assert_allclose(second["stsb"], first["stsb"] - step, atol=1e-6)  # no other task's is the largest
    np.testing.assert_allclose(second["qqp"], first["qqp"] + step, atol=1e-6)


# The learning rate.


def config_of(schedule, **training):
    return Config.model_validate(
        {
            "model": {"server_model": TOY_MODEL, "head_dropout": 0},
            "training": {"local_epochs": 1, "max_length": 32, **training},
            "server": {"port": 0},
            "rounds": {"rejoin_grace_s": 0.5},
            "sharing": {"schedule": schedule},
            "tasks": {
                task: {"data": {"builtin": task}, "train_samples": 32, "val_samples": 20} for task in ("sst2", "qqp")
            },
            "clients": [{"client_id": "a", "task": "sst2"}, {"client_id": "b", "task": "qqp"}],
        }
    )


def rates(config, round_, steps=10):
    """The learning rate of each of a round's steps, as FedMTL's client has it."""
    trainer = Trainer(config.tasks["sst2"].spec("sst2"), config.plan("sst2", round_), torch.device("cpu"))
    optimizer, schedule = trainer.optimizer(torch.nn.Linear(2, 2), steps, round_)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def linear(peak, warmup_ratio, steps):
    """Warm-up and linear decay, written out."""
    warm = round(warmup_ratio * steps)
    return [peak * (one / warm if one < warm else (steps - one) / (steps - warm)) for one in range(steps)]


def test_a_restarted_schedule_warms_up_again_and_falls_to_0_over_the_rounds_of_its_own():
    entries = [
        {"after_round": 1, "layers": {"0": "task"}, "restart_schedule": True, "learning_rate": 0.5},
        {"after_round": 2, "layers": {"1": "task"}},
        {"after_round": 4, "layers": {"1": "shared"}, "restart_schedule": True},
    ]
    config = config_of(entries, num_rounds=6, learning_rate=1.0, warmup_ratio=0.2)
    assert rates(config, 1) == pytest.approx(linear(1.0, 0.2, 10))
    middle = [rate for round_ in (2, 3, 4) for rate in rates(config, round_)]
    assert middle == pytest.approx(linear(0.5, 0.2, 30))
    assert [rate for round_ in (5, 6) for rate in rates(config, round_)] == pytest.approx(linear(0.5, 0.2, 20))


def test_another_rate_without_a_restart_is_the_same_schedule_with_another_peak():
    config = config_of(
        [{"after_round": 2, "layers": {"0": "task"}, "learning_rate": 0.25}], num_rounds=4, learning_rate=1.0
    )
    whole = linear(1.0, 0.1, 40)
    assert [rate for round_ in (1, 2) for rate in rates(config, round_)] == pytest.approx(whole[:20])
    late = [rate for round_ in (3, 4) for rate in rates(config, round_)]
    assert late == pytest.approx([0.25 * rate for rate in whole[20:]])


def test_a_client_keeps_its_model_and_its_own_head_when_a_new_learning_rate_schedule_begins(tmp_path):
    """From round 2 on, no two clients share anything: what a client receives is what it trained in the round before."""
    whole = dict.fromkeys(["embeddings", "0-1", "pooler"], "task")
    entries = [
        {"after_round": 1, "layers": whole},
        {"after_round": 2, "layers": {"0": "task"}, "restart_schedule": True, "learning_rate": 1e-3, "num_rounds": 2},
    ]
    config = config_of(entries, learning_rate=1e-2)
    config = config.model_copy(update={"sharing": config.sharing.model_copy(update={"head": "local"})})
    _, clients = federations.run(config, tmp_path / "run")
    reports = reports_of(tmp_path / "run")
    assert [set(one.moved) for one in reports] == [{"embeddings", "0", "1", "pooler"}, set(), set(), set(), set()]
    model = load_model(open_run(tmp_path / "run"), 4)
    assert model.sharing.scopes == ("task:sst2", "task:qqp")
    for client in clients:
        for round_ in (2, 3, 4):
            trained = client.rounds[round_].trained_metrics["loss"]
            assert client.rounds[round_ + 1].received_metrics["loss"] == pytest.approx(trained, rel=1e-6)


@pytest.mark.parametrize("after_round", [1, 2])
async def test_the_plan_says_where_the_learning_rate_is_and_old_clients_may_ignore_it(tmp_path, after_round):
    entry = {"after_round": after_round, "layers": {"0": "task"}, "restart_schedule": True, "learning_rate": 3e-4}
    async with serving(tmp_path, layered_model(), num_rounds=4, sections=scheduled(entry)) as server:
        async with watching(server, **CLIENTS) as clients:
            plans = []
            for round_ in (1, 2, 3):
                header, _ = await clients["x"].get_slice(round=round_)
                plans.append(header.plan)
                for client in clients.values():
                    await push(client, round_)
                await clients["x"].until(pb.ROUND_EVENT_KIND_OPENED, round_ + 1)
    assert [(one.schedule_first_round, one.schedule_num_rounds) for one in plans] == [
        (1, after_round) if round_ <= after_round else (after_round + 1, 4 - after_round) for round_ in (1, 2, 3)
    ]
    assert [one.learning_rate for one in plans] == [2e-5 if r <= after_round else 3e-4 for r in (1, 2, 3)]
    assert all(one.num_rounds == 4 for one in plans)
