"""The norm of the tasks' deltas is preserved in whole runs over gRPC: the model, the report and the log."""

import dataclasses
import json
import math

import numpy as np
import pytest
from fedmtl.v1 import federation_pb2 as pb
from structlog.testing import capture_logs

from fedmtl_core.errors import ConfigError
from fedmtl_core.model.sharing import SharingRules
from fedmtl_server.commands.round_shown import _scaling
from fedmtl_server.rounds.report import RoundReport
from tests.server.playing import model, play, push
from tests.server.sharing.test_shared_layers import as_floats, layered_model
from tests.support import model_bytes, reports_of, serving, watching

PRESERVE = {"aggregation": {"task_weighting": "uniform", "scaling": "preserve"}}
TASKS = {"a": "sst2", "b": "qqp", "c": "stsb"}
PARTS = {
    "embeddings": ("encoder.embedding.weight",),
    "0": ("encoder.layer.0.weight", "encoder.layer.0.bias"),
    "1": ("encoder.layer.1.weight", "encoder.layer.1.bias"),
}
"""The parts that several tasks share in `layered_model`: two by all, and layer 1 by qqp and stsb."""


def encoder_of(model, task, names):
    """A part of a task's encoder as one vector."""
    tensors = model.get_model_slice_for_task(task)
    return np.concatenate([tensors[name].double().numpy().ravel() for name in names])


async def test_each_part_moves_by_the_mean_norm_of_those_that_share_it_and_all_reports_say_so(tmp_path):
    model = layered_model("sst2", "qqp", "stsb")
    before = {(task, part): encoder_of(model, task, PARTS[part]) for task in TASKS.values() for part in PARTS}
    own = {}
    with capture_logs() as logs:
        async with serving(tmp_path, model, sections=PRESERVE) as server:
            async with watching(server, **TASKS) as clients:
                for client in clients.values():
                    await client.until(pb.ROUND_EVENT_KIND_OPENED)
                for client_id, client in clients.items():
                    header, data = await client.get_slice()
                    generator = np.random.default_rng(ord(client_id))
                    trained = {
                        scope: (values + generator.standard_normal(values.shape)).astype("<f4")
                        for scope, values in as_floats(data).items()
                    }
                    await client.push(client.update(header, {s: v.tobytes() for s, v in trained.items()}))
                    sent = dict(_tensors(model, trained))
                    for part, names in PARTS.items():
                        values = np.concatenate([sent[name].astype(np.float64).ravel() for name in names])
                        own[client.task, part] = values - before[client.task, part]
                event = await clients["a"].until(pb.ROUND_EVENT_KIND_COMMITTED)
    expected = {}
    for part, tasks in {"embeddings": TASKS.values(), "0": TASKS.values(), "1": ("qqp", "stsb")}.items():
        mean = np.mean([own[task, part] for task in tasks], axis=0)
        norm = np.mean([np.linalg.norm(own[task, part]) for task in tasks])
        expected[part] = min(norm / np.linalg.norm(mean), math.sqrt(len(tasks)))
        for task in tasks:
            moved = encoder_of(model, task, PARTS[part]) - before[task, part]
            np.testing.assert_allclose(moved, expected[part] * mean, rtol=1e-4, atol=1e-5)
    assert len({round(one, 3) for one in expected.values()}) == 3
    # sst2 has layer 1 for itself
    moved = encoder_of(model, "sst2", PARTS["1"]) - before["sst2", "1"]
    np.testing.assert_allclose(moved, own["sst2", "1"], rtol=1e-4, atol=1e-5)
    by_scope = {
        "shared": {part: pytest.approx(expected[part]) for part in ("embeddings", "0")},
        "group:pairs": {"1": pytest.approx(expected["1"])},
    }
    watched = {one.scope: dict(one.scaling) for one in event.report.components if one.scaling}
    assert watched == by_scope
    (stored,) = reports_of(tmp_path)
    assert {one.scope: one.scaling for one in stored.components if one.scaling} == by_scope
    logged = {one["scope"]: one["scaling"] for one in logs if one["event"] == "component.averaged" and "scaling" in one}
    assert logged == by_scope
    assert {one.task: one.encoder_share for one in stored.tasks} == pytest.approx(dict.fromkeys(TASKS.values(), 1 / 3))
    shown = (
        f"shared: embeddings {expected['embeddings']:.3f}, 0 {expected['0']:.3f}; group:pairs: 1 {expected['1']:.3f}"
    )
    assert _scaling(stored.to_dict()) == {"scaling": shown}


def _tensors(model, trained):
    """The tensors in a slice's flat vectors, by name."""
    for scope, values in trained.items():
        for spec in model.components[scope].layout.tensors:
            start = spec.offset // 4
            yield spec.name, values[start : start + spec.num_elements]


def test_a_report_of_before_has_no_factors():
    report = RoundReport(1, "train", 0, 1.0, [], [], [], [], 0, 0, 0, [])
    values = json.loads(json.dumps(report.to_dict()))
    values["components"] = [{"scope": "shared", "num_tensors": 1, "contributions": []}]
    assert RoundReport.from_dict(values).components[0].scaling == {}
    assert _scaling(values) == {}


@pytest.mark.parametrize("weighting", ["examples", "pcgrad"])
async def test_a_run_that_is_stopped_in_every_round_comes_to_the_same_bits(weighting, tmp_path):
    tasks = {"a": "sst2", "b": "qqp", "c": "qqp"}
    rules = {
        "sections": {
            "aggregation": {"task_weighting": weighting, "scaling": "preserve", "normalization": "fednova"},
            "server_optimizer": {"name": "fedavgm"},
        },
        "num_rounds": 4,
        "min_clients": {"sst2": 1, "qqp": 2},
    }
    steps = {"a": 3, "b": 5, "c": 2}

    async def pushed(client, round_):
        await push(client, round_, num_steps=steps[client.client_id])

    async with serving(tmp_path / "whole", model(), **rules) as server:
        async with watching(server, **tasks) as clients:
            for round_ in (1, 2, 3):
                for client in clients.values():
                    await pushed(client, round_)
                await clients["a"].until(pb.ROUND_EVENT_KIND_OPENED, round_ + 1)
        expected = model_bytes(server.federation.model)
    for round_ in (1, 2, 3):
        async with serving(tmp_path / "parts", model(seed=round_ - 1), **rules) as server:
            async with watching(server, **tasks) as clients:
                await pushed(clients["b"], round_)
        async with serving(tmp_path / "parts", model(seed=2), **rules) as server:
            async with watching(server, **tasks) as clients:
                await pushed(clients["a"], round_)
                await pushed(clients["c"], round_)
                await clients["a"].until(pb.ROUND_EVENT_KIND_OPENED, round_ + 1)
            got = model_bytes(server.federation.model)
    assert got == expected
    whole, parts = (
        [[dataclasses.asdict(one) for one in report.components] for report in reports_of(tmp_path / folder)]
        for folder in ("whole", "parts")
    )
    assert whole == parts
    assert all(report[0]["scaling"] for report in whole)


async def test_asynchronous_rounds_scale_by_the_tasks_that_came(tmp_path):
    """The second round has two updates of one task, whose delta stays as it is."""
    rules = {"sections": PRESERVE, "num_rounds": 4, "min_clients": {"qqp": 1}, "mode": "async", "buffer_size": 2}
    delta = {"kind": pb.UPDATE_KIND_DELTA}
    async with serving(tmp_path, model(), **rules) as server:
        await play(server, [1], {"a": "sst2", "b": "qqp"}, **delta)
        await play(server, [2], {"b": "qqp", "c": "qqp"}, **delta)
    first, second = (report.components[0].scaling for report in reports_of(tmp_path))
    assert list(first) == ["rest"]
    assert 1 < first["rest"] <= math.sqrt(2)
    assert second == {}


async def test_a_part_keeps_a_factor_of_its_own_when_the_schedule_moves_it_to_another_component(tmp_path):
    sections = PRESERVE | {"sharing": {"schedule": [{"after_round": 1, "layers": {"rest": "task"}}]}}
    async with serving(
        tmp_path, layered_model("sst2", "qqp", rules=SharingRules()), num_rounds=3, sections=sections
    ) as server:
        await play(server, (1, 2), {"a": "sst2", "b": "qqp"})
    first, second = ({one.scope: list(one.scaling) for one in report.components} for report in reports_of(tmp_path))
    assert sorted(first["shared"]) == ["0", "1", "embeddings", "rest"]
    assert sorted(second["shared"]) == ["0", "1", "embeddings"]
    assert not any(second[scope] for scope in second if scope != "shared")


async def test_a_run_is_not_resumed_with_another_scaling(tmp_path):
    async with serving(tmp_path, model(), sections=PRESERVE, num_rounds=2) as server:
        await play(server, [1], {"a": "sst2", "b": "qqp"})
    other = {"aggregation": PRESERVE["aggregation"] | {"scaling": 1.5}}
    with pytest.raises(ConfigError, match=r"aggregation\.scaling: the run has 'preserve', got 1\.5"):
        async with serving(tmp_path, model(), sections=other, num_rounds=2):
            pass
