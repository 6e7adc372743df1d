"""Weighted tasks in whole runs: what is remembered of them is committed, and reported."""

import re
import sys
from pathlib import Path

import pytest
import yaml
from fedmtl.v1 import federation_pb2 as pb

from fedmtl_core.errors import ConfigError
from tests.server.playing import metrics, model, play, push
from tests.support import reports_of, serving, watching

TASKS = {"a": "sst2", "b": "qqp", "c": "qqp"}
NAMES = ("uniform", "fixed", "temperature", "uncertainty", "gradnorm", "pcgrad", "cagrad", "famo")


def settings_of(name, **given):
    given = {"task_weights": {"sst2": 1, "qqp": 4}} if name == "fixed" else given
    given |= {"learning_rate": 0.5} if name in ("uncertainty", "gradnorm", "famo") else {}
    return {"sections": {"aggregation": {"task_weighting": name, **given}}, "num_rounds": 4, "min_clients": RULE}


RULE = {"sst2": 1, "qqp": 2}


@pytest.mark.parametrize("name", NAMES)
async def test_a_run_taken_up_again_and_again_comes_to_the_same_bits_as_one_that_was_not(name, tmp_path):
    """After each round, and in the middle of it."""
    async with serving(tmp_path / "whole", model(), **settings_of(name)) as server:
        expected = await play(server, (1, 2, 3), TASKS)
    for round_ in (1, 2, 3):
        async with serving(tmp_path / "parts", model(seed=round_ - 1), **settings_of(name)) as server:
            async with watching(server, **TASKS) as clients:
                await push(clients["b"], round_)
        async with serving(tmp_path / "parts", model(seed=2), **settings_of(name)) as server:
            assert [one.client_id for one in server.federation.status().clients if one.reported] == ["b"]
            async with watching(server, **TASKS) as clients:
                await push(clients["a"], round_)
                await push(clients["c"], round_)
                await clients["a"].until(pb.ROUND_EVENT_KIND_OPENED, round_ + 1)
            got = {scope: one.buffer.numpy().tobytes() for scope, one in server.federation.model.components.items()}
    assert got == expected
    whole, parts = (reports_of(tmp_path / folder) for folder in ("whole", "parts"))
    assert [one.stages["task_weighting"] for one in whole] == [one.stages["task_weighting"] for one in parts]


async def test_each_weighting_brings_the_encoder_elsewhere_and_no_head(tmp_path):
    """Else the test above would show nothing."""
    reached = {}
    for name in ("examples", *NAMES):
        async with serving(tmp_path / name, model(), **settings_of(name)) as server:
            reached[name] = await play(server, (1, 2), TASKS)
    assert len({one["shared"] for one in reached.values()}) == len(reached)


async def test_the_report_has_what_each_task_and_client_counts_for(tmp_path):
    async with serving(tmp_path, model(), **settings_of("fixed")) as server:
        await play(server, [1], TASKS)
    (report,) = reports_of(tmp_path)
    assert {task.task: task.encoder_share for task in report.tasks} == pytest.approx({"sst2": 0.2, "qqp": 0.8})
    encoder = next(one for one in report.components if one.scope == "shared")
    # a, b and c have 2, 3 and 1 examples
    assert {one.client_id: one.weight for one in encoder.contributions} == pytest.approx({"a": 0.2, "b": 0.6, "c": 0.2})
    head = next(one for one in report.components if one.scope == "task:qqp")
    assert {one.client_id: one.weight for one in head.contributions} == {"b": 0.75, "c": 0.25}


async def test_a_round_without_a_task_leaves_what_is_remembered_of_it(tmp_path):
    rules = settings_of("uncertainty") | {"min_clients": 1}
    async with serving(tmp_path, model(), quorum_timeout_s=0.3, **rules) as server:
        await play(server, [1], {"a": "sst2", "b": "qqp"})
        await play(server, [2], {"a": "sst2"})
    first, second = (one.stages["task_weighting"]["shared"]["log_variances"] for one in reports_of(tmp_path))
    assert first.keys() == second.keys() == {"sst2", "qqp"}
    assert first["qqp"] == second["qqp"] != 0
    assert first["sst2"] != second["sst2"]
    assert {one.task: one.encoder_share for one in reports_of(tmp_path)[1].tasks} == {"sst2": 1.0, "qqp": 0.0}


async def test_a_rollback_takes_back_what_was_learned_since(tmp_path):
    async with serving(tmp_path, model(), **settings_of("famo")) as server:
        expected = await play(server, (1, 2, 3), TASKS)
    path = tmp_path / "checkpoints" / "round-0003.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    async with serving(tmp_path, model(seed=1), **settings_of("famo")) as server:
        assert server.federation.status().round == 3
        assert await play(server, [3], TASKS) == expected


async def test_weights_and_optimiser_go_together(tmp_path):
    rules = settings_of("gradnorm")
    rules["sections"] |= {"server_optimizer": {"name": "fedyogi"}}
    async with serving(tmp_path / "whole", model(), **rules) as server:
        expected = await play(server, (1, 2, 3), TASKS)
    for round_ in (1, 2, 3):
        async with serving(tmp_path / "parts", model(), **rules) as server:
            got = await play(server, [round_], TASKS)
    assert got == expected


async def test_asynchronous_rounds_weigh_the_tasks_that_came(tmp_path):
    """Two updates a round, one of each task; by examples they would count 2 to 3."""
    tasks, delta = {"a": "sst2", "b": "qqp"}, {"kind": pb.UPDATE_KIND_DELTA}
    rules = settings_of("uniform") | {"min_clients": 1}
    async with serving(tmp_path, model(), mode="async", buffer_size=2, **rules) as server:
        await play(server, (1, 2), tasks, **delta)
    shares = [{one.task: one.encoder_share for one in report.tasks} for report in reports_of(tmp_path)]
    assert shares == [{"sst2": 0.5, "qqp": 0.5}] * 2


async def test_a_run_is_not_taken_up_with_another_weighting(tmp_path):
    async with serving(tmp_path, model(), **settings_of("temperature", temperature=3)) as server:
        await play(server, [1], TASKS)
    with pytest.raises(ConfigError, match=r"aggregation\.temperature: the run has 3\.0, got 4\.0"):
        async with serving(tmp_path, model(), **settings_of("temperature", temperature=4)):
            pass


async def test_large_encoders_memory_goes_round(tmp_path):
    """Every task's mean is in an update's own buffer, and all but one of them are used again for the next updates."""
    async with serving(tmp_path, model(), **settings_of("uniform")) as server:
        await play(server, [1], TASKS)
        pool = server.federation.staging._pool
        free = pool.free_bytes
        await play(server, [2], TASKS)
        assert pool.free_bytes == free > 0


async def test_the_classes_that_the_documentation_shows_hold_a_run(tmp_path, monkeypatch):
    page = (Path(__file__).parents[3] / "docs" / "aggregation.md").read_text(encoding="utf-8")
    text = page.partition("## Write a server optimizer or a task weighting")[2].partition("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (sections,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "mine.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    async with serving(tmp_path / "run", model(), min_clients=1, sections=yaml.safe_load(sections)) as server:
        before = server.federation.model.get_shared_parameters()
        await play(server, [1], {"a": "sst2", "b": "qqp"})
        after = server.federation.model.get_shared_parameters()
    moves = {round(abs(value), 5) for name in before for value in (after[name] - before[name]).flatten().tolist()}
    assert moves == {0.0001}
    losses = {
        task: metrics(client, 1)["trained_metrics"]["train_loss"] for client, task in {"a": "sst2", "b": "qqp"}.items()
    }
    expected = {task: losses[task] / (losses["sst2"] + losses["qqp"]) for task in ("sst2", "qqp")}
    assert losses["sst2"] != losses["qqp"]
    assert {one.task: one.encoder_share for one in reports_of(tmp_path / "run")[0].tasks} == pytest.approx(expected)
