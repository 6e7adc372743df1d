"""Runs that start from another run's model: what they take, what is new, and what is refused."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch
from fedmtl.v1 import federation_pb2 as pb
from typer.testing import CliRunner

from fedmtl_core.config import Config
from fedmtl_core.errors import ConfigError, CorruptCheckpointError, StoreError
from fedmtl_core.model.modeling import TOY_MODEL
from fedmtl_server import doctor
from fedmtl_server.commands.app import app
from fedmtl_server.initial_model import start_from
from fedmtl_server.model import MTLServerModel
from fedmtl_server.saved_runs import best_round, open_run
from fedmtl_server.starting_run import find_source
from tests.support import eventually, model_bytes, serving, watching

LAYER, HEAD = "encoder.encoder.layer.1.output.dense.weight", "heads.sst2.weight"
TASKS = ("sst2", "qqp", "stsb")


def sections(tasks=TASKS, *, seed=1, sharing=None, from_run=None, more_model=None, runs_dir="runs", **of_tasks):
    return {
        "model": {"server_model": TOY_MODEL, "from_run": from_run and str(from_run), **(more_model or {})},
        "training": {"seed": seed, "num_rounds": 1, "max_length": 32},
        "sharing": sharing or {},
        "server": {"port": 0, "runs_dir": str(runs_dir)},
        "tasks": {task: of_tasks.get(task, {}) for task in tasks},
    }


def config(*arguments, **named):
    return Config.model_validate(sections(*arguments, **named))


async def saved(folder: Path, *arguments, apart=False, **named) -> MTLServerModel:
    """A run that has not trained yet: its model is that of round 0.

    Args:
        apart: whether to add a number of its own to each component, so that tasks' own layers differ.
    """
    given = sections(*arguments, **named)
    model = MTLServerModel.from_config(Config.model_validate(given))
    if apart:
        for number, component in enumerate(model.components.values(), 1):
            for view in component.views().values():
                view.add_(number)
    async with serving(folder, model, sections=given):
        pass
    return model


def started(source, *arguments, **named):
    """The model that a run starts with, the one that it would have had, and what was taken."""
    wanted = config(*arguments, from_run=source, **named)
    model = MTLServerModel.from_config(wanted)
    before = {task: model.get_model_slice_for_task(task) for task in model.tasks}
    found = find_source(wanted)
    assert found is not None
    return model, before, start_from(found, model)


def all_equal(one, other, names):
    return all(torch.equal(one[name], other[name]) for name in names)


async def test_the_encoder_and_the_heads_of_the_same_tasks_are_taken_and_other_heads_are_new(tmp_path):
    theirs = await saved(tmp_path / "first", ("sst2", "qqp"))
    model, before, taken = started(tmp_path / "first", seed=2)
    for task in ("sst2", "qqp"):
        mine, other = model.get_model_slice_for_task(task), theirs.get_model_slice_for_task(task)
        assert mine.keys() == other.keys()
        assert all_equal(mine, other, mine)
        assert not all_equal(mine, before[task], mine)
    mine = model.get_model_slice_for_task("stsb")
    heads = [name for name in mine if name.startswith("heads.")]
    assert all_equal(mine, before["stsb"], heads)
    assert all_equal(mine, theirs.get_model_slice_for_task("qqp"), [name for name in mine if name not in heads])
    assert (taken.heads, taken.new_heads, taken.averaged) == (["sst2", "qqp"], ["stsb"], {})


async def test_a_head_of_another_meaning_is_new(tmp_path):
    await saved(tmp_path / "first", sst2={"labels": ["bad", "good"]})
    model, before, taken = started(tmp_path / "first", seed=2, sst2={"labels": ["good", "bad"]})
    assert (taken.heads, taken.new_heads) == (["qqp", "stsb"], ["sst2"])
    assert torch.equal(model.get_model_slice_for_task("sst2")[HEAD], before["sst2"][HEAD])


async def test_each_task_takes_its_own_encoder_and_what_tasks_share_is_the_mean_of_theirs(tmp_path):
    theirs = await saved(tmp_path / "first", sharing={"layers": {"0-1": "task"}}, apart=True)
    of = {task: theirs.get_model_slice_for_task(task)[LAYER] for task in TASKS}
    assert not torch.equal(of["sst2"], of["qqp"])

    apart, _, taken = started(tmp_path / "first", seed=2, sharing={"layers": {"0-1": "task"}})
    assert all(torch.equal(apart.get_model_slice_for_task(task)[LAYER], of[task]) for task in TASKS)
    assert taken.averaged == {}

    groups = {"groups": {"pairs": ["qqp", "stsb"]}, "layers": {"0-1": "group"}}
    grouped, _, taken = started(tmp_path / "first", seed=2, sharing=groups)
    assert torch.equal(grouped.get_model_slice_for_task("sst2")[LAYER], of["sst2"])
    mean = ((of["qqp"].double() + of["stsb"].double()) / 2).float()
    torch.testing.assert_close(grouped.get_model_slice_for_task("stsb")[LAYER], mean)
    assert taken.averaged == {"group:pairs": ("qqp", "stsb")}

    shared, _, taken = started(tmp_path / "first", seed=2)
    mean = (sum(one.double() for one in of.values()) / 3).float()
    torch.testing.assert_close(shared.get_shared_parameters()[LAYER], mean)
    assert taken.averaged == {"shared": TASKS}


async def test_a_new_task_adds_nothing_to_a_mean_and_alone_starts_from_that_of_all(tmp_path):
    theirs = await saved(tmp_path / "first", sharing={"layers": {"1": "task"}}, apart=True)
    of = {task: theirs.get_model_slice_for_task(task)[LAYER] for task in TASKS}
    groups = {"groups": {"pairs": ["qqp", "mrpc"]}, "layers": {"1": "group"}}
    model, _, taken = started(tmp_path / "first", ("sst2", "qqp", "mrpc", "cola"), seed=2, sharing=groups)
    assert torch.equal(model.get_model_slice_for_task("mrpc")[LAYER], of["qqp"])
    outside = ((of["sst2"].double()) / 1).float()  # sst2 and cola are in no group: one copy, and cola is new
    assert torch.equal(model.get_model_slice_for_task("cola")[LAYER], outside)
    assert taken.averaged == {}
    own, _, taken = started(tmp_path / "first", ("mrpc", "cola"), seed=2, sharing={"layers": {"1": "task"}})
    mean = (sum(one.double() for one in of.values()) / 3).float()
    torch.testing.assert_close(own.get_model_slice_for_task("cola")[LAYER], mean)
    assert taken.averaged == {"task:mrpc": TASKS, "task:cola": TASKS}


async def test_a_run_is_named_by_its_folder_its_name_or_its_id_and_a_round(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("first", "an@second"):
        await saved(tmp_path / "runs" / name)
    run_id = open_run(tmp_path / "runs" / "first").run_id
    here = {"runs_dir": tmp_path / "runs"}
    for text in ("runs/first", "first", run_id, run_id[:9], "first@0", "first@last", f"{run_id[:9]}@0"):
        source = find_source(config(from_run=text, **here))
        assert source is not None
        assert (source.run.run_id, source.round) == (run_id, 0)
    assert find_source(config(from_run="an@second", **here)).run.folder.name == "an@second"
    assert find_source(config(from_run=tmp_path / "runs" / "an@second", **here)).run.folder.name == "an@second"
    assert find_source(config(**here)) is None
    for text, expected in (
        ("third", r"model\.from_run: there is no run 'third': expected the path .* a run in .*runs, which has first, "),
        ("first@7", r"model\.from_run: runs/first has no checkpoint of round 7; it has checkpoints of rounds 0"),
        ("first@newest", r"model\.from_run: expected a round's number, `best` or `last` after the @"),
        ("first@best", r"model\.from_run: .*first has no checkpoint with measured values of all of sst2, qqp, stsb"),
    ):
        with pytest.raises(ConfigError, match=expected):
            find_source(config(from_run=text, runs_dir="runs"))
    with pytest.raises(ConfigError, match=r"there is no run 'x'.* which has no run"):
        find_source(config(from_run="x", runs_dir=tmp_path / "nowhere"))


async def test_the_best_round_is_that_of_the_highest_mean_over_the_tasks_of_both_runs(tmp_path):
    await saved(tmp_path / "first", ("sst2", "qqp"))
    first = tmp_path / "first" / "checkpoints" / "round-0000.safetensors"
    for round_ in (1, 2, 3):
        shutil.copy(first, first.with_name(f"round-000{round_}.safetensors"))
    run = open_run(tmp_path / "first")
    values = {"sst2": [0.5, 0.9, 0.7, math.nan], "qqp": [0.5, 0.1, 0.6, 0.9]}
    metrics = {
        task: {round_: {run.config.tasks[task].spec(task).main_metric: value} for round_, value in enumerate(by_round)}
        for task, by_round in values.items()
    }
    object.__setattr__(run, "metrics", metrics)
    object.__setattr__(run, "digests", None)
    assert best_round(run, ["sst2", "qqp"]) == 2
    assert best_round(run, ["sst2"]) == 1
    assert best_round(run, ["qqp"]) == 3


async def test_another_architecture_is_refused_by_its_first_tensors(tmp_path):
    await saved(tmp_path / "first")
    with pytest.raises(
        ConfigError, match=r"another encoder than model\.server_model: encoder\.encoder\.layer\.1\."
    ) as e:
        started(tmp_path / "first", more_model={"num_hidden_layers": 1})
    assert "expected nothing, got float32 [" in str(e.value)
    assert "more differ" in str(e.value)


async def test_parts_that_clients_kept_are_not_to_be_had(tmp_path):
    await saved(tmp_path / "first", sharing={"layers": {"1": "local"}, "head": "local"})
    with pytest.raises(ConfigError, match=r"kept encoder\.encoder\.layer\.1\..* for themselves \(`local`\)"):
        started(tmp_path / "first")
    model, before, taken = started(tmp_path / "first", seed=2, sharing={"layers": {"1": "local"}})
    assert (taken.heads, taken.new_heads) == ([], list(TASKS))
    assert torch.equal(model.get_model_slice_for_task("sst2")[HEAD], before["sst2"][HEAD])


async def test_a_damaged_checkpoint_is_refused(tmp_path):
    await saved(tmp_path / "first")
    path = tmp_path / "first" / "checkpoints" / "round-0000.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptCheckpointError, match=r"model\.from_run: .*the bytes aren't those that were written"):
        started(tmp_path / "first")
    path.write_bytes(data[:1000])
    with pytest.raises(StoreError, match=r"model\.from_run: .*round-0000\.safetensors"):
        started(tmp_path / "first")


async def test_a_server_starts_from_a_run_and_resumes_from_its_own_checkpoint(tmp_path, capfd):
    theirs = await saved(tmp_path / "first", ("sst2", "qqp"))
    given = sections(("sst2", "stsb"), seed=2, from_run=tmp_path / "first")
    model = MTLServerModel.from_config(Config.model_validate(given))
    async with serving(tmp_path / "second", model, num_rounds=2, sections=given | {"training": {"num_rounds": 2}}):
        assert model_bytes(model)["shared"] == model_bytes(theirs)["shared"]
        assert model_bytes(model)["task:sst2"] == model_bytes(theirs)["task:sst2"]
        held = model_bytes(model)
    captured = capfd.readouterr()
    log = captured.out + captured.err
    assert "model.taken" in log
    assert "heads=['sst2']" in log
    assert "new_heads=['stsb']" in log
    first_id = open_run(tmp_path / "first").run_id
    shutil.rmtree(tmp_path / "first")
    again = MTLServerModel.from_config(config(("sst2", "stsb"), seed=3))
    async with serving(
        tmp_path / "second", again, num_rounds=2, sections=given | {"training": {"num_rounds": 2}}
    ) as server:
        await eventually(lambda: server.federation.published.round == 1)
        assert model_bytes(again) == held
        async with watching(server, x="sst2", y="stsb") as clients:
            for client in clients.values():
                await client.until(pb.ROUND_EVENT_KIND_OPENED, 1)
    shown = CliRunner().invoke(app, ["runs", "show", str(tmp_path / "second")])
    text = " ".join(shown.output.split())
    assert "from round 0 of run" in text
    assert "heads of sst2; new heads of stsb" in text
    exported = CliRunner().invoke(app, ["export", str(tmp_path / "it"), "--all", "--run-dir", str(tmp_path / "second")])
    assert exported.exit_code == 0, exported.output
    card = " ".join((tmp_path / "it" / "README.md").read_text().split())
    assert f"Training started from the model of round 0 of the run `{first_id}`, an encoder of the arch" in card


async def test_the_doctor_checks_the_run_to_start_from(tmp_path):
    await saved(tmp_path / "first")
    (tmp_path / "here").mkdir()

    def told(run_dir=None, **named):
        found = doctor.examine(config(runs_dir=tmp_path / "here", **named), run_dir)
        return [(one.level.value, one.found) for one in found if one.check == "from_run"]

    ((level, text),) = told(from_run=tmp_path / "first")
    assert (level, text) == ("ok", f"the model of round 0 of the run in {tmp_path / 'first'}")
    ((level, text),) = told(from_run="nowhere")
    assert level == "fail"
    assert "there is no run 'nowhere'" in text
    ((level, text),) = told(from_run=tmp_path / "first", more_model={"num_hidden_layers": 1})
    assert level == "fail"
    assert "another encoder" in text
    ((level, text),) = told(tmp_path / "first", from_run="nowhere")
    assert level == "ok"
    assert text.startswith("not used")
