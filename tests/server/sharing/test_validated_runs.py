"""Runs in which paired losses choose whose updates a task takes: over gRPC, killed, taken up and rolled back."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import torch
from fedmtl.v1 import federation_pb2 as pb
from safetensors import safe_open
from structlog.testing import capture_logs
from typer.testing import CliRunner

from fedmtl_core.config import Config
from fedmtl_core.errors import ConfigError, StoreError
from fedmtl_core.model.modeling import TOY_MODEL
from fedmtl_core.model.sharing import SharingRules
from fedmtl_server.commands.app import app
from fedmtl_server.model import MTLServerModel
from fedmtl_server.saved_runs import load_model, open_run
from fedmtl_server.sharing.source_mixing import SourceMixing
from tests import federations
from tests.server.sharing.test_shared_layers import Layered
from tests.support import eventually, model_bytes, reports_of, serving, specs, watching

OPENED, FINISHED, FAILED = pb.ROUND_EVENT_KIND_OPENED, pb.ROUND_EVENT_KIND_FINISHED, pb.ROUND_EVENT_KIND_FAILED
CLIENTS = {"a": "qqp", "b": "mrpc", "c": "sst2"}  # the first two have tasks of one type
GIVEN = {
    "num_rounds": 3,
    "sections": {
        "sharing": {"adaptive": {"policy": "validated"}},
        "store": {"keep_checkpoints": 9},
        "server_optimizer": {"name": "fedavgm"},
    },
}
SAYS = {
    ("qqp", 2, "with.mrpc"): -0.25,
    ("mrpc", 2, "with.qqp"): -0.25,
    ("sst2", 2, "with.qqp"): -0.5,
    ("mrpc", 3, "own"): -0.5,
    ("sst2", 3, "own"): -0.5,
    ("mrpc", 4, "with.sst2"): -0.5,
    ("qqp", 4, "own"): 0.5,
}
"""By task, round and variant, the variant's mean loss minus the model's, which is 1; otherwise the variant is worse."""


def layered_model(seed=0):
    torch.manual_seed(seed)
    return MTLServerModel(Layered(), specs(*CLIENTS.values()), hidden_size=4, sharing=SharingRules(own=None))


def evaluations(task, round_, names):
    differences = {name: SAYS.get((task, round_, name), 0.125) for name in names}
    return [
        pb.VariantEvaluation(
            name=name, num_examples=400, loss=1 + one, loss_difference=one, squared_deviations=0.25, metrics={"loss": 1}
        )
        for name, one in differences.items()
    ]


def trained(client_id, round_, data):
    generator = np.random.default_rng(100 * round_ + ord(client_id))
    return {
        scope: (np.frombuffer(part, "<f4") + generator.standard_normal(len(part) // 4)).astype("<f4").tobytes()
        for scope, part in data.items()
    }


async def push(client, round_):
    """One client's answer of a round; what it was offered, by variant: its bytes."""
    header, data = await client.get_slice(round=round_)
    offered = {one.name: (await client.get_slice(round=round_, variant=one.name))[1] for one in header.variants}
    fields = {
        "received_metrics": {"accuracy": 0.5, "loss": 1.0},
        "num_eval_examples": 400,
        "variants": evaluations(client.task, round_, offered),
    }
    if header.purpose == pb.ROUND_PURPOSE_EVALUATE:
        fields |= {"kind": pb.UPDATE_KIND_METRICS, "num_examples": 0, "components": []}
        data = {}
    await client.push(client.update(header, trained(client.client_id, round_, data), **fields))
    return {(client.task, round_, name): part for name, part in offered.items()}


def is_open(server, round_):
    return server.federation.status().round == round_ and server.federation._round.is_open.is_set()


async def play(server, rounds, names=("a", "b", "c")):
    """Hold rounds as far as these clients' updates go; what was offered."""
    offered = {}
    async with watching(server, **CLIENTS) as clients:
        for round_ in rounds:
            await eventually(lambda: is_open(server, round_))  # noqa: B023  # awaited at once
            for name in names:
                offered |= await push(clients[name], round_)
        if round_ == GIVEN["num_rounds"] + 1 and "c" in names:
            await clients["a"].until(FINISHED)
            await server.run_task
        elif "c" in names:
            await eventually(lambda: is_open(server, round_ + 1))
    return offered


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run without a restart: its folder, final bytes, and what it offered."""
    folder = tmp_path_factory.mktemp("whole")

    async def run():
        async with serving(folder, layered_model(), **GIVEN) as server:
            offered = await play(server, (1, 2, 3, 4))
            return model_bytes(server.federation.model), offered

    return folder, *asyncio.run(run())


def sources_by_round(folder):
    return [
        {task: one["sources"] for task, one in report.stages["sources"]["selections"].items()}
        for report in reports_of(folder)
    ]


def chosen_by_round(folder):
    return [{task.task: task.chosen.name for task in one.tasks if task.chosen} for one in reports_of(folder)]


def test_the_reports_say_what_was_tried_and_taken(whole):
    folder, _, offered = whole
    assert sources_by_round(folder) == [
        {"qqp": ["qqp"], "mrpc": ["mrpc"], "sst2": ["sst2"]},
        {"qqp": ["qqp", "mrpc"], "mrpc": ["qqp", "mrpc"], "sst2": ["qqp", "sst2"]},
        {"qqp": ["qqp", "mrpc"], "mrpc": ["mrpc"], "sst2": ["sst2"]},
        {"qqp": ["qqp", "mrpc"], "mrpc": ["mrpc", "sst2"], "sst2": ["sst2"]},
    ]
    assert chosen_by_round(folder) == [
        {},
        {"qqp": "with.mrpc", "mrpc": "with.qqp", "sst2": "with.qqp"},
        {"mrpc": "own", "sst2": "own"},
        {"mrpc": "with.sst2"},
    ]
    assert sorted(name for task, round_, name in offered if (task, round_) == ("qqp", 3)) == [
        "own",
        "shorter",
        "with.sst2",
    ]
    shown = CliRunner().invoke(app, ["runs", "show", str(folder), "--round", "2"]).output
    assert "sst2: variant with.qqp: loss -0.500 ± 0.001 on 400 rows, chosen" in " ".join(shown.split())


async def test_the_final_choice_is_what_the_run_has_and_serves(whole):
    folder, final, offered = whole
    (mixed,) = offered["mrpc", 4, "with.sst2"].values()
    model = layered_model(seed=9)
    async with serving(folder, model, **GIVEN, finished=True):
        assert model_bytes(model) == final
        views = model.get_model_slice_for_task("mrpc")
    tried = [name for name in views if name.startswith("encoder.") and "embedding" not in name]
    assert b"".join(views[name].numpy().tobytes() for name in tried) == mixed
    run = open_run(folder)
    assert [one["purpose"] for one in run.reports] == ["train", "train", "train", "evaluate"]
    assert run.digests[4]["task:mrpc"] == model.components["task:mrpc"].digest().hex()
    assert run.digests[4]["task:qqp"] == run.digests[3]["task:qqp"]


@pytest.mark.parametrize("stops", [(2,), (4,), (1, 2, 3, 4)], ids=str)
async def test_a_server_that_ends_in_a_round_and_after_it_goes_on_to_the_same_bits(stops, whole, tmp_path):
    folder, final, offered = whole
    again, seed = {}, -1
    for round_ in (1, 2, 3, 4):
        if round_ in stops:
            for names in (("a",), ("b",)):
                async with serving(tmp_path, layered_model(seed := seed + 1), **GIVEN) as server:
                    again |= await play(server, [round_], names)
        async with serving(tmp_path, layered_model(seed := seed + 1), **GIVEN) as server:
            again |= await play(server, [round_], ("c",) if round_ in stops else ("a", "b", "c"))
            got = model_bytes(server.federation.model)
    assert got == final
    assert again == offered
    assert sources_by_round(tmp_path) == sources_by_round(folder)
    assert chosen_by_round(tmp_path) == chosen_by_round(folder)
    for one, other in zip(reports_of(folder), reports_of(tmp_path), strict=True):
        assert one.stages == other.stages


@pytest.mark.parametrize("round_", [2, 4])
async def test_a_server_that_ends_in_the_middle_of_a_commit_makes_it_again(round_, whole, tmp_path, monkeypatch):
    _, final, _ = whole

    def fails(*_, **__):
        raise StoreError("the server was killed here")

    async with serving(tmp_path, layered_model(), **GIVEN) as server:
        await play(server, range(1, round_))
    async with serving(tmp_path, layered_model(1), **GIVEN) as server:
        with monkeypatch.context() as patch:
            patch.setattr(server.store, "end_round", fails)
            async with watching(server, **CLIENTS) as clients:
                await eventually(lambda: is_open(server, round_))
                for client in clients.values():
                    await push(client, round_)
                await asyncio.wait([server.run_task])
    async with serving(tmp_path, layered_model(2), **GIVEN, finished=True) as server:
        if round_ == 4:
            await server.run_task
        else:
            await play(server, (3, 4))
        assert model_bytes(server.federation.model) == final


@pytest.mark.parametrize("to_round", [0, 1, 2])
async def test_a_run_rolled_back_decides_again_as_it_did(to_round, whole, tmp_path):
    _, final, offered = whole
    async with serving(tmp_path, layered_model(), **GIVEN) as server:
        await play(server, (1, 2, 3))
    rolled = CliRunner().invoke(app, ["runs", "rollback", str(tmp_path), "--to-round", str(to_round)])
    assert rolled.exit_code == 0, rolled.output
    async with serving(tmp_path, layered_model(4), **GIVEN) as server:
        again = await play(server, range(to_round + 1, 5))
        assert model_bytes(server.federation.model) == final
    assert again == {key: one for key, one in offered.items() if key[1] > to_round}


async def test_a_checkpoint_without_its_state_is_not_taken_up(whole, tmp_path):
    """The tasks' last deltas are part of a commit: without them, the run goes on from the round before."""
    _, final, _ = whole
    async with serving(tmp_path, layered_model(), **GIVEN) as server:
        await play(server, (1, 2))
    (tmp_path / "checkpoints" / "round-0002.state.safetensors").unlink()
    with capture_logs() as logs:
        async with serving(tmp_path, layered_model(4), **GIVEN) as server:
            await play(server, (2, 3, 4))
            assert model_bytes(server.federation.model) == final
    told = {one["event"]: one for one in logs}
    assert "round-0002.state.safetensors is missing" in told["checkpoint.refused"]["reason"]


@pytest.mark.parametrize(
    ("key", "value"), [("min_gain", 0.5), ("trials", 1), ("error_rate", 0.2), ("layers", ["0"]), ("policy", None)]
)
async def test_a_run_is_not_taken_up_with_other_margins(key, value, tmp_path):
    async with serving(tmp_path, layered_model(), **GIVEN):
        pass
    sections = {**GIVEN["sections"], "sharing": {"adaptive": {"policy": "validated", key: value}}}
    with pytest.raises(ConfigError, match=rf"sharing\.adaptive\.{key}: the run has "):
        async with serving(tmp_path, layered_model(), num_rounds=3, sections=sections):
            pass


def test_a_checkpoints_state_has_the_last_deltas_under_their_tasks(whole):
    folder, _, _ = whole
    with safe_open(folder / "checkpoints" / "round-0003.state.safetensors", "np") as file:
        keys = list(file.keys())
        deltas = {key: file.get_tensor(key) for key in keys if key.startswith("delta:")}
    assert {key.partition("/")[0] for key in deltas} == {"delta:qqp", "delta:mrpc", "delta:sst2"}
    assert not any("embedding" in key for key in deltas)
    assert {one.dtype for one in deltas.values()} == {np.dtype("float32")}


async def test_a_failed_round_decides_nothing_and_its_variants_are_offered_again(tmp_path):
    given = {**GIVEN, "num_rounds": 500, "on_missing_quorum": "fail", "rejoin_grace_s": 0.1}
    async with serving(tmp_path, layered_model(), **given) as server:
        await play(server, [1])
    async with serving(tmp_path, layered_model(1), **given, deadline_s=1.0) as server:
        stage = server.federation._commits.pipeline.find(SourceMixing)
        before = stage.state().metadata
        async with watching(server, **CLIENTS) as clients:
            await clients["a"].until(OPENED)
            header, data = await clients["a"].get_slice()
            fields = {
                "received_metrics": {"loss": 1.0},
                "num_eval_examples": 400,
                "variants": evaluations("qqp", 2, ["with.mrpc", "with.sst2"]),
            }
            await clients["a"].push(clients["a"].update(header, trained("a", 2, data), **fields))
            await clients["a"].until(FAILED)
            assert stage.state().metadata == before
            again = header
            while again.round == header.round or not again.variants:
                await clients["a"].until(OPENED)
                again, _ = await clients["a"].get_slice()
            assert list(again.variants) == list(header.variants)


# Real clients.


def crowd(**rounds):
    """A federation of the toy encoder, two of whose tasks are the same under two names."""
    few = {"train_samples": 32, "val_samples": 24, "data": {"builtin": "sst2"}}
    twin = {"type": "classification", "text_columns": ["sentence"], "labels": ["negative", "positive"]}
    return Config.model_validate(
        {
            "model": {"server_model": TOY_MODEL},
            "training": {"num_rounds": 3, "local_epochs": 1, "max_length": 32, "learning_rate": 1e-3},
            "rounds": {"rejoin_grace_s": 0.5, **rounds},
            "server": {"port": 0},
            "sharing": {"adaptive": {"policy": "validated", "trials": 2}},
            "tasks": {
                "sst2": {"min_clients": 1, **few},
                "twin": {"min_clients": 1, "label_column": "label", **twin, **few},
                "stsb": {"min_clients": 1, **few, "data": {"builtin": "stsb"}},
            },
            "clients": [
                {"client_id": "a", "task": "sst2", "shard": "1/2"},
                {"client_id": "b", "task": "sst2", "shard": "2/2"},
                {"client_id": "c", "tasks": ["twin", "stsb"]},
                {"client_id": "d", "task": "stsb"},
                {"client_id": "e", "task": "twin"},
            ],
        }
    )


@pytest.mark.parametrize(
    "rounds",
    [
        {"cohort": "fraction", "cohort_fraction": 0.5},
        {"cohort": "over_select", "cohort_size": 1, "cohort_extra": 1},
    ],
    ids=["fraction", "over-selection"],
)
def test_drawn_cohorts_and_clients_of_several_tasks_compare_what_their_round_offers(rounds, tmp_path):
    config = crowd(**rounds)
    federations.run(config, tmp_path)
    reports = reports_of(tmp_path)
    assert [one.purpose for one in reports] == ["train", "train", "train", "evaluate"]
    assert not any(one.failed for one in reports)
    for report in reports[1:]:
        for task in report.tasks:
            assert len(task.variants) <= 2 + 1  # the control
            counted = task.num_updates
            assert all(len(one.clients) <= counted for one in task.variants)
            evaluated = [one for one in task.variants if one.num_clients]
            assert all(one.standard_error is not None and one.num_examples <= 24 * counted for one in evaluated)
    assert any(one.clients for report in reports for task in report.tasks for one in task.variants)
    model = load_model(open_run(tmp_path), 3)
    assert {model.sharing.members(f"task:{task}") for task in config.tasks} == {(task,) for task in config.tasks}
