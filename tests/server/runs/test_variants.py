"""Variants of slices in served runs: what clients get, what becomes of what they say, and what outlives a server."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math

import grpc
import numpy as np
import pytest
import torch
from fedmtl.v1 import federation_pb2 as pb
from structlog.testing import capture_logs
from typer.testing import CliRunner

from fedmtl_core.errors import AggregationError
from fedmtl_core.tasks.paired import PairedLoss
from fedmtl_core.wire.encodings import decode
from fedmtl_core.wire.layout import Component, Layout
from fedmtl_server.aggregation.variants import Variant, make_variant
from fedmtl_server.commands.app import app
from fedmtl_server.saved_runs import choose_round, open_run
from fedmtl_server.storage.history import History
from fedmtl_server.storage.paths import HISTORY_FILE
from tests.server.offering import Offering, install
from tests.support import (
    TinyEncoder,
    WireClient,
    eventually,
    full_of,
    model_bytes,
    reports_of,
    serving,
    tiny_model,
    watching,
)

OPENED, COMMITTED = pb.ROUND_EVENT_KIND_OPENED, pb.ROUND_EVENT_KIND_COMMITTED
FINISHED = pb.ROUND_EVENT_KIND_FINISHED
HEAD = Layout.of("task:sst2", {"heads.sst2.weight": torch.empty(2, 4), "heads.sst2.bias": torch.empty(2)})


def said(name, difference, *, size=10, deviations=2.0, loss=1.0, **fields):
    return pb.VariantEvaluation(
        name=name, num_examples=size, loss=loss, loss_difference=difference, squared_deviations=deviations, **fields
    )


def evaluated(*variants, accuracy=0.5, size=10):
    return {"received_metrics": {"accuracy": accuracy, "loss": 1.0}, "num_eval_examples": size, "variants": variants}


DIVERGED = pb.VariantEvaluation(name="mixed", diverged=True)
METRICS = {"kind": pb.UPDATE_KIND_METRICS, "num_examples": 0, "components": []}


async def refused(call):
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error.value


class TestDownloads:
    async def test_a_slices_header_has_a_table_of_each_variant_and_a_variant_its_components_alone(
        self, tmp_path, monkeypatch
    ):
        stages = install(monkeypatch)
        async with serving(tmp_path, tiny_model("sst2", "qqp"), min_clients=1) as server:
            async with watching(server, a="sst2", b="qqp") as clients:
                await clients["a"].until(OPENED)
                header, data = await clients["a"].get_slice(round=1)
                assert [one.name for one in header.variants] == ["own", "mixed"]
                assert list(data) == ["shared", "task:sst2"]
                assert server.federation.stats.bytes_sent > sum(map(len, data.values()))
                for told, variant in zip(header.variants, stages[0].variants({}, "train")["sst2"], strict=True):
                    sent = server.federation.stats.bytes_sent
                    mine, parts = await clients["a"].get_slice(round=1, variant=told.name)
                    (component,) = variant.components
                    assert parts == {component.scope: component.buffer.numpy().tobytes()}
                    assert list(mine.components) == list(told.components)
                    assert mine.components[0].digest == hashlib.sha256(parts[component.scope]).digest()
                    assert (mine.variant, mine.round, mine.task) == (told.name, 1, "sst2")
                    assert (list(mine.variants), mine.total_bytes) == ([], component.layout.num_bytes)
                    assert server.federation.stats.bytes_sent > sent + component.layout.num_bytes
                header, _ = await clients["b"].get_slice(round=1)
                assert list(header.variants) == []
                header, _ = await clients["a"].get_slice(task="", all_tasks=True)
                assert list(header.variants) == []

    async def test_bytes_that_a_client_has_under_any_scope_are_not_sent(self, tmp_path, monkeypatch):
        install(monkeypatch)
        async with serving(tmp_path, tiny_model("sst2")) as server, watching(server, a="sst2") as clients:
            await clients["a"].until(OPENED)
            header, _ = await clients["a"].get_slice()
            (component,) = header.variants[0].components
            held = [pb.HeldComponent(scope="task:other", digest=component.digest, num_bytes=component.num_bytes)]
            mine, parts = await clients["a"].get_slice(variant="own", held=held)
            assert parts == {component.scope: b""}
            assert mine.components[0].start_offset == component.num_bytes
            held[0].digest = bytes(32)
            assert len((await clients["a"].get_slice(variant="own", held=held))[1][component.scope]) == 40

    @pytest.mark.parametrize("encoding", ["float16", "bfloat16"])
    async def test_a_variant_is_rounded_as_the_slice_is(self, encoding, tmp_path, monkeypatch):
        stages = install(monkeypatch)
        form = pb.Encoding.Value(f"ENCODING_{encoding.upper()}")
        async with serving(tmp_path, tiny_model("sst2")) as server, watching(server, a="sst2") as clients:
            await clients["a"].until(OPENED)
            header, parts = await clients["a"].get_slice(variant="own", encoding=form)
        (component,) = stages[0].variants({}, "train")["sst2"][0].components
        (got,) = parts.values()
        decoded = decode(component.layout, encoding, torch.frombuffer(bytearray(got), dtype=torch.uint8))
        rounded = {name: view.to(getattr(torch, encoding)).float() for name, view in component.views().items()}
        assert all(torch.equal(view, rounded[name]) for name, view in decoded.views().items())
        assert header.components[0].digest == decoded.digest()

    async def test_clients_whose_model_lags_behind_compare_the_variant_at_that_distance(self, tmp_path, monkeypatch):
        """With differences of the largest numbers alone, what clients have isn't the model."""
        stages = install(monkeypatch)
        model = tiny_model("sst2")
        topk = {"encoding": pb.ENCODING_TOPK}
        sections = {"wire": {"topk_density": 0.1}}
        async with serving(tmp_path, model, num_rounds=3, sections=sections) as server:
            async with watching(server, a="sst2") as clients:
                held, version = [], {}
                for round_ in (1, 2):
                    await clients["a"].until(OPENED, round_)
                    header, data = await clients["a"].get_slice(round=round_, held=held, **topk)
                    for part in header.components:
                        if part.encoding == pb.ENCODING_FLOAT32:
                            version[part.scope] = np.frombuffer(data[part.scope], "<f4").copy()
                        else:
                            count = len(data[part.scope]) // 8
                            index = np.frombuffer(data[part.scope][: 4 * count], "<u4")
                            version[part.scope][index] += np.frombuffer(data[part.scope][4 * count :], "<f4")
                    held = [
                        pb.HeldComponent(scope=part.scope, digest=part.digest, num_bytes=part.num_bytes)
                        for part in header.components
                    ]
                    if round_ == 1:
                        trained = {s: np.arange(len(v)).astype("<f4").tobytes() for s, v in version.items()}
                        await clients["a"].push(clients["a"].update(header, trained))
                exact = np.frombuffer(model_bytes(model)["task:sst2"], "<f4")
                assert not np.array_equal(version["task:sst2"], exact)
                mine, parts = await clients["a"].get_slice(round=2, variant="own", held=held, **topk)
                assert mine.components[0].encoding == pb.ENCODING_FLOAT32
                (component,) = stages[0].variants({}, "train")["sst2"][0].components
                own = component.buffer.view(torch.float32).numpy()
                (got,) = parts.values()
                expected = version["task:sst2"] + (own - exact)
                np.testing.assert_allclose(np.frombuffer(got, "<f4"), expected, rtol=1e-6, atol=1e-6)
                # What the comparison is about is the same as with the exact model.
                np.testing.assert_allclose(np.frombuffer(got, "<f4") - version["task:sst2"], own - exact, atol=1e-5)

    async def test_what_is_not_offered_is_refused(self, tmp_path, monkeypatch):
        install(monkeypatch)
        async with serving(tmp_path, tiny_model("sst2", "qqp"), num_rounds=2) as server:
            async with WireClient(server, "a", "sst2") as early:
                error = await refused(early.get_slice(variant="own"))
                assert error.code() is grpc.StatusCode.ABORTED
                assert "no round is open that offers variants for the task sst2" in error.details()
            async with watching(server, a="sst2", b="qqp") as clients:
                await clients["a"].until(OPENED)
                for fields, code, text in [
                    ({"variant": "other"}, "INVALID_ARGUMENT", "variant: expected one of own, mixed, got 'other'"),
                    ({"variant": "x" * 5000}, "INVALID_ARGUMENT", "(5000 characters)"),
                    ({"variant": "own", "task": "qqp"}, "ABORTED", "no round is open that offers variants"),
                    ({"variant": "own", "round": 7}, "ABORTED", "requested for round 7"),
                    ({"variant": "own", "task": "", "all_tasks": True}, "INVALID_ARGUMENT", "expected a task with"),
                ]:
                    error = await refused(clients["a"].get_slice(**fields))
                    assert (error.code().name, text in error.details()) == (code, True), error.details()


async def test_what_clients_say_of_a_variant_is_pooled_told_to_stages_and_reported(tmp_path, monkeypatch):
    stages = install(monkeypatch)
    model = tiny_model("sst2", "qqp")
    says = {
        "a": evaluated(said("own", -0.5), said("mixed", 0.25, metrics={"accuracy": 0.75}), said("unknown", -9)),
        "b": evaluated(
            said("own", 0.1, size=30, deviations=0.5, loss=2.0),
            pb.VariantEvaluation(name="mixed", diverged=True),
            size=30,
        ),
        "c": {"received_metrics": {"accuracy": 0.5}, "num_eval_examples": 3},
    }
    with capture_logs() as logs:
        async with serving(tmp_path, model, min_clients={"sst2": 2, "qqp": 1}) as server:
            async with watching(server, a="sst2", b="sst2", c="qqp") as clients:
                await clients["a"].until(OPENED)
                for name in ("b", "c", "a"):  # the order of the cohort counts, not that of arrival
                    header, data = await clients[name].get_slice(round=1)
                    await clients[name].push(clients[name].update(header, data, **says[name]))
                event = await clients["a"].until(COMMITTED, 1)
    pooled = PairedLoss.pooled([PairedLoss(10, 1.0, -0.5, 2.0), PairedLoss(30, 2.0, 0.1, 0.5)])
    own, mixed = stages[0].seen[1]["sst2"]
    assert (own.name, own.paired, own.num_diverged) == ("own", pooled, 0)
    assert own.difference == pytest.approx((10 * -0.5 + 30 * 0.1) / 40)
    assert list(own.clients) == ["a", "b"]
    assert (mixed.name, mixed.difference, mixed.num_diverged) == ("mixed", math.inf, 1)
    assert (mixed.paired, mixed.metrics["accuracy"].value) == (PairedLoss(10, 1.0, 0.25, 2.0), 0.75)

    report = reports_of(tmp_path)[0].tasks[0].variants
    assert [one.name for one in report] == ["own", "mixed"]
    assert (report[0].loss_difference, report[0].standard_error) == (pooled.difference, pooled.standard_error)
    assert report[1].clients == {"a": PairedLoss(10, 1.0, 0.25, 2.0), "b": None}
    message = event.report.tasks[0].variants
    assert [(one.name, one.num_clients, one.num_examples, one.num_diverged) for one in message] == [
        ("own", 2, 40, 0),
        ("mixed", 1, 10, 1),
    ]
    assert message[0].loss_difference == pooled.difference
    assert message[0].standard_error == pooled.standard_error
    assert (dict(message[1].metrics), message[0].chosen) == ({"accuracy": 0.75}, False)
    assert list(event.report.tasks[1].variants) == []
    logged = [one for one in logs if one["event"] == "variant.reported"]
    assert [(one["variant"], one["loss_difference"]) for one in logged] == [
        ("own", pooled.difference),
        ("mixed", math.inf),
    ]
    shown = CliRunner().invoke(app, ["runs", "show", str(tmp_path), "--round", "1"]).output
    text = " ".join(shown.split())
    assert f"sst2: variant own: loss -0.050 ± {pooled.standard_error:.3f} on 40 rows" in text
    assert "variant mixed: loss not finite for 1 client" in text
    as_json = CliRunner().invoke(app, ["runs", "show", str(tmp_path), "--round", "1", "--json"]).output
    stored = json.loads(as_json)["round"]["report"]["tasks"][0]["variants"]
    assert stored[1]["clients"]["b"] is None


async def test_a_report_that_cannot_be_is_refused_by_its_field_and_leaves_no_trace(tmp_path, monkeypatch):
    stages = install(monkeypatch)
    bad = {
        "header.variants[0].loss": evaluated(said("own", 0.0, loss=math.nan)),
        "header.variants[1].loss_difference": evaluated(said("mixed", 0.0), said("own", 7.0)),
        "header.variants[0].name": evaluated(said("\0" * 10_000, 0.0)),
        "header.variants[0].num_examples": evaluated(said("own", 0.0, size=2**62)),
        "header.variants[0].metrics": evaluated(said("own", 0.0, metrics={"accuracy": 7.0})),
        "header.variants[0].diverged": evaluated(said("own", 0.0, diverged=True)),
    }
    async with serving(tmp_path, tiny_model("sst2")) as server, watching(server, a="sst2") as clients:
        await clients["a"].until(OPENED)
        header, data = await clients["a"].get_slice()
        for field, fields in bad.items():
            error = await refused(clients["a"].push(clients["a"].update(header, data, **fields)))
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert error.details().startswith(field.removeprefix("header.")), error.details()
        many = evaluated(*(said(f"v{number}", 0.0) for number in range(17)))
        error = await refused(clients["a"].push(clients["a"].update(header, data, **many)))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await clients["a"].push(clients["a"].update(header, data, **evaluated(said("own", -0.5))))
        await clients["a"].until(COMMITTED)
    assert stages[0].seen[1]["sst2"][0].difference == -0.5
    report = reports_of(tmp_path)[0]
    assert report.num_refused == len(bad) + 1


def is_open(server, round_):
    """Whether a round accepts updates, as its clients have been told."""
    return server.federation.status().round == round_ and server.federation._round.is_open.is_set()


async def run_of(run_dir, *, stops=(), num_rounds=2, answers):
    """A run with one client of each task, whose server ends before the rounds' second update where `stops` says.

    Returns:
        The bytes of the model at the end, and by round, of each variant that was offered: digest and bytes.
    """
    offered, seed, model = {}, 0, None
    stops, done = list(stops), set()
    while True:
        seed += 1
        model = tiny_model("sst2", "qqp", encoder=TinyEncoder(seed=0 if seed == 1 else 99))
        async with serving(run_dir, model, num_rounds=num_rounds, quorum_timeout_s=30) as server:
            async with watching(server, a="sst2", b="qqp") as clients:
                stopped = False
                for round_ in range(1, num_rounds + 2):
                    for name in ("a", "b"):
                        if (round_, name) in done:
                            continue
                        if name == "b" and round_ in stops:
                            stops.remove(round_)
                            stopped = True
                            break
                        await eventually(lambda: is_open(server, round_))  # noqa: B023  # awaited at once
                        header, data = await clients[name].get_slice(round=round_)
                        for told in header.variants:
                            got = await clients[name].get_slice(round=round_, variant=told.name)
                            offered.setdefault((round_, told.name), []).append((told.components[0].digest, got[1]))
                        fields = answers(name, round_)
                        if header.purpose == pb.ROUND_PURPOSE_EVALUATE:
                            data, fields = {}, {**fields, **METRICS}
                        else:
                            data = full_of(data, round_)
                        await clients[name].push(clients[name].update(header, data, **fields))
                        done.add((round_, name))
                    if stopped:
                        break
                if not stopped:
                    await clients["a"].until(FINISHED)
                    await server.run_task
                    return model_bytes(model), offered


def answers(name, round_):
    accuracy = {"accuracy": 0.5 + round_ / 10}
    if name == "b":
        return {"received_metrics": accuracy, "num_eval_examples": 4}
    own = said("own", -0.5 / round_, metrics={"accuracy": 0.9, "loss": 0.5})
    return {**evaluated(said("mixed", 0.25), own), "received_metrics": accuracy}


@pytest.mark.parametrize("stops", [(1,), (2,), (3,), (1, 2, 3)], ids=str)
async def test_a_server_that_ends_in_any_round_offers_the_same_bytes_again_and_knows_what_was_said(
    stops, tmp_path, monkeypatch
):
    """In the end each choice, and the model, are the same as without a restart."""
    stages = install(monkeypatch, chooses=True)
    whole, offered = await run_of(tmp_path / "whole", answers=answers)
    expected = stages[-1].seen
    again, offered_again = await run_of(tmp_path / "again", stops=stops, answers=answers)
    assert again == whole
    assert {key: one[0] for key, one in offered_again.items()} == {key: one[0] for key, one in offered.items()}
    assert all(one == many[0] for many in offered_again.values() for one in many)
    seen = {round_: results for stage in stages[1:] for round_, results in stage.seen.items()}
    assert {round_: results["sst2"] for round_, results in seen.items()}.keys() == {1, 2, 3}
    for round_, results in seen.items():
        for mine, theirs in zip(results["sst2"], expected[round_]["sst2"], strict=True):
            assert (mine.name, mine.paired) == (theirs.name, theirs.paired)
    reports = [reports_of(tmp_path / name) for name in ("whole", "again")]
    for one, other in zip(*reports, strict=True):
        assert one.tasks[0].variants == other.tasks[0].variants
        assert one.stages == other.stages


async def test_the_variant_that_a_stage_chooses_at_the_end_is_the_final_model_everywhere(tmp_path, monkeypatch):
    stages = install(monkeypatch, chooses=True)
    final, offered = await run_of(tmp_path, answers=answers)
    digest, parts = offered[3, "own"][0]
    (own,) = parts.values()
    assert final["task:sst2"] == own
    assert final["task:qqp"] == full_of({"h": bytes(40)}, 2)["h"]
    assert stages[-1].num_concluded == 1

    # Its checkpoint and its metrics are those of the evaluation round.
    history = History.open(tmp_path / HISTORY_FILE, create=False)
    run = history.runs()[0]
    rounds, metrics = history.rounds(run.run_id), history.metrics(run.run_id)
    history.close()
    assert rounds[-1].checkpoint["task:sst2"] == digest.hex()
    assert (rounds[-1].purpose, rounds[-1].has_model, run.state) == ("evaluate", True, "finished")
    accuracy = {(one.round, one.task): one.value for one in metrics if one.name == "accuracy"}
    assert (accuracy[2, "sst2"], accuracy[3, "sst2"], accuracy[3, "qqp"]) == (0.8, 0.9, 0.8)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["sst2"]["by_round"] == {"0": 0.6, "1": 0.7, "2": 0.8, "3": 0.9}
    assert (results["sst2"]["last_round"], results["sst2"]["best_round"]) == (3, 3)
    chosen = reports_of(tmp_path)[-1].tasks[0].chosen
    assert (chosen.name, chosen.num_examples) == ("own", 10)
    shown = CliRunner().invoke(app, ["runs", "show", str(tmp_path), "--round", "3"]).output
    assert "variant own: loss -0.167 ± 0.149 on 10 rows, chosen" in " ".join(shown.split())

    saved = open_run(tmp_path)
    assert [choose_round(saved, which, "sst2") for which in ("last", "best")] == [3, 3]

    # A server that serves the run after its end sends it, without variants.
    model = tiny_model("sst2", "qqp", encoder=TinyEncoder(seed=99))
    async with serving(tmp_path, model, num_rounds=2, finished=True) as server:
        assert model_bytes(model) == final
        async with WireClient(server, "a", "sst2") as client:
            header, data = await client.get_slice(round=3)
            assert (data["task:sst2"], list(header.variants)) == (own, [])
            assert header.components[1].digest == digest
            assert (await refused(client.get_slice(variant="own"))).code() is grpc.StatusCode.ABORTED


async def test_without_a_better_variant_the_evaluated_model_is_the_final_one(tmp_path, monkeypatch):
    def worse(name, round_):
        return evaluated(said("own", 0.5), said("mixed", 0.25)) if name == "a" else {}

    install(monkeypatch, chooses=True)
    final, _ = await run_of(tmp_path, answers=worse)
    assert final["task:sst2"] == full_of({"h": bytes(40)}, 2)["h"]
    history = History.open(tmp_path / HISTORY_FILE, create=False)
    rounds = history.rounds(history.runs()[0].run_id)
    history.close()
    assert [one.has_model for one in rounds] == [True, True, True, False]
    assert reports_of(tmp_path)[-1].tasks[0].chosen is None


async def test_what_a_stage_must_save_is_saved_though_the_model_stays(tmp_path, monkeypatch):
    stages = install(monkeypatch, saves=True)
    final, _ = await run_of(tmp_path, answers=answers)
    history = History.open(tmp_path / HISTORY_FILE, create=False)
    last = history.rounds(history.runs()[0].run_id)[-1]
    history.close()
    states = {one.scope: one.digest().hex() for one in stages[-1].state().components.values()}
    assert last.checkpoint.items() >= states.items()
    assert final["task:sst2"] == full_of({"h": bytes(40)}, 2)["h"]
    assert reports_of(tmp_path)[-1].tasks[0].chosen is None


async def test_asynchronous_rounds_count_what_is_said_of_their_own_model(tmp_path, monkeypatch):
    stages, rounds = install(monkeypatch), {"mode": "async", "buffer_size": 1}
    delta = {"kind": pb.UPDATE_KIND_DELTA}
    async with serving(tmp_path, tiny_model("sst2"), num_rounds=2, min_clients=2, **rounds) as server:
        async with watching(server, a="sst2", b="sst2") as clients:
            await clients["a"].until(OPENED, 1)
            header, data = await clients["a"].get_slice(round=1)
            assert [one.name for one in header.variants] == ["own", "mixed"]
            first = clients["a"].update(header, full_of(data, 1), **delta, **evaluated(said("own", -0.5)))
            await clients["a"].push(first)
            await clients["a"].until(OPENED, 2)
            late = clients["b"].update(header, full_of(data, 1), **delta, **evaluated(said("own", -0.25)))
            await clients["b"].push(late)
            await eventually(lambda: 2 in stages[0].seen)
    assert [list(stages[0].seen[round_]["sst2"][0].clients) for round_ in (1, 2)] == [["a"], []]


async def test_a_variant_that_is_chosen_after_training_replaces_the_average(tmp_path, monkeypatch):
    install(monkeypatch, accepts=True)
    model = tiny_model("sst2")
    async with serving(tmp_path, model, num_rounds=2) as server, watching(server, a="sst2") as clients:
        await clients["a"].until(OPENED, 1)
        header, data = await clients["a"].get_slice()
        _, parts = await clients["a"].get_slice(variant="mixed")
        await clients["a"].push(clients["a"].update(header, full_of(data, 3), **evaluated(said("mixed", -0.5))))
        await clients["a"].until(OPENED, 2)
        now = model_bytes(model)
        assert [now["task:sst2"]] == list(parts.values())
        assert now["shared"] == full_of({"s": now["shared"]}, 3)["s"]
        assert (await clients["a"].get_slice(round=2))[1]["task:sst2"] == now["task:sst2"]
    model = tiny_model("sst2", encoder=TinyEncoder(seed=99))
    async with serving(tmp_path, model, num_rounds=2):
        assert model_bytes(model) == now
    assert reports_of(tmp_path)[0].tasks[0].chosen.name == "mixed"


async def test_a_failed_round_says_nothing_and_its_variants_are_offered_again(tmp_path, monkeypatch):
    stages = install(monkeypatch)
    late = {"min_clients": {"sst2": 1, "qqp": 1}, "deadline_s": 2.0, "on_missing_quorum": "fail", "rejoin_grace_s": 0.1}
    async with serving(tmp_path, tiny_model("sst2", "qqp"), num_rounds=500, **late) as server:
        async with watching(server, a="sst2", b="qqp") as clients:
            await clients["a"].until(OPENED, 1)
            header, data = await clients["a"].get_slice(round=1)
            await clients["a"].push(clients["a"].update(header, data, **evaluated(said("own", -0.5))))
            await clients["a"].until(pb.ROUND_EVENT_KIND_FAILED)
            assert stages[0].seen == {}
            again = pb.SliceHeader()
            while not again.variants:  # a later round may have failed too, before its slice was asked for
                await clients["a"].until(OPENED)
                again, _ = await clients["a"].get_slice()
            assert again.round > 1
            assert list(again.variants) == list(header.variants)


class TestStageErrors:
    """What a stage must not offer is an error that names it, except values that aren't finite."""

    @pytest.mark.parametrize(
        ("variants", "said"),
        [
            (
                [make_variant("sst2", "a b", {"heads.sst2.bias": torch.zeros(2)})],
                "the name of a variant: expected 1 to",
            ),
            (
                [make_variant("sst2", "own", {"heads.sst2.bias": torch.zeros(3)})],
                r"expected float32 \[2\], got float32",
            ),
            ([make_variant("sst2", "own", {"heads.qqp.bias": torch.zeros(2)})], "heads.qqp.bias: expected None"),
            ([Variant("own", ())], "expected at least one tensor, each once"),
            ([make_variant("sst2", "own", {"heads.sst2.bias": torch.zeros(2)})] * 2, "different names, got own twice"),
            (
                [make_variant("sst2", f"v{number}", {"heads.sst2.bias": torch.zeros(2)}) for number in range(17)],
                "at most 16 variants are allowed, got 17",
            ),
        ],
    )
    async def test_what_does_not_fit_the_model_is_an_error(self, variants, said, tmp_path, monkeypatch):
        stages = install(monkeypatch)
        async with serving(tmp_path, tiny_model("sst2")) as server:
            monkeypatch.setattr(stages[0], "_made", {"sst2": variants})
            async with WireClient(server, "a", "sst2") as client:
                await client.watch()
                with pytest.raises(AggregationError, match=said):
                    async with asyncio.timeout(20):
                        await asyncio.shield(server.run_task)

    async def test_a_variant_with_a_value_that_is_not_finite_is_left_out(self, tmp_path, monkeypatch):
        stages = install(monkeypatch)
        bad = make_variant("sst2", "bad", {"heads.sst2.bias": torch.tensor([1.0, math.nan])})
        with capture_logs() as logs:
            async with serving(tmp_path, tiny_model("sst2")) as server:
                stages[0]._made["sst2"].insert(0, bad)
                async with watching(server, a="sst2") as clients:
                    await clients["a"].until(OPENED)
                    header, _ = await clients["a"].get_slice()
        assert [one.name for one in header.variants] == ["own", "mixed"]
        assert [one["variant"] for one in logs if one["event"] == "variant.discarded"] == ["bad"]


def test_the_stage_of_these_tests_offers_other_bytes_in_each_round():
    stage = Offering([HEAD])
    first = stage.variants({}, "train")["sst2"][0].components[0]
    stage._round = 1
    assert not torch.equal(first.buffer, stage._make()["sst2"][0].components[0].buffer)
    assert isinstance(first, Component)
