"""Rounds other than those that all clients begin and end together, over gRPC."""

import asyncio

import grpc
import pytest
import torch
from fedmtl.v1 import federation_pb2 as pb
from structlog.testing import capture_logs

from fedmtl_server.storage.history import History
from fedmtl_server.storage.paths import HISTORY_FILE
from tests.support import eventually, full_of, serving, tiny_model, watching

OPENED, COMMITTED, FAILED, FINISHED = (
    pb.ROUND_EVENT_KIND_OPENED,
    pb.ROUND_EVENT_KIND_COMMITTED,
    pb.ROUND_EVENT_KIND_FAILED,
    pb.ROUND_EVENT_KIND_FINISHED,
)
DELTA = {"kind": pb.UPDATE_KIND_DELTA}
ASYNC = {"mode": "async", "staleness_exponent": 1.0}


async def refusal(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code().name, caught.value.details()


def updates_of(run_dir):
    history = History.open(run_dir / HISTORY_FILE, create=False)
    try:
        return [(one.client_id, one.round, one.outcome) for one in history.updates(history.runs()[0].run_id)]
    finally:
        history.close()


async def test_an_asynchronous_round_commits_at_its_number_of_updates_and_a_late_one_counts_less_in_the_next(tmp_path):
    """With exponent 1 an update one commit old counts half: FedBuff's discount (1 + 1)^-1."""
    model = tiny_model("sst2")
    before = model.module.encoder.dense.bias.clone()
    async with serving(tmp_path, model, num_rounds=2, min_clients=2, buffer_size=1, **ASYNC) as server:
        async with watching(server, fast="sst2", slow="sst2") as clients:
            slow_header, data = await clients["slow"].get_slice()
            assert slow_header.plan.update_kind == pb.UPDATE_KIND_DELTA
            header, _ = await clients["fast"].get_slice()
            await clients["fast"].push(clients["fast"].update(header, full_of(data, 1), **DELTA))
            event = await clients["slow"].until(OPENED, 2)
            assert (event.oldest_base_round, event.in_cohort, event.reported) == (1, True, False)
            receipt = await clients["slow"].push(clients["slow"].update(slow_header, full_of(data, 4), **DELTA))
            assert (receipt.outcome, receipt.round) == (pb.OUTCOME_ACCEPTED, 2)
            report = (await clients["slow"].until(COMMITTED, 2)).report
        part = report.components[0].contributions[0]
        assert (part.client_id, part.staleness, part.weight) == ("slow", 1, 0.5)
        await eventually(lambda: torch.equal(model.module.encoder.dense.bias, before + 1 + 0.5 * 4))


async def test_an_upload_that_runs_while_an_asynchronous_round_commits_goes_on_into_the_next(tmp_path):
    """Nothing that a client has sent is lost to a commit that it knew nothing of."""
    async with serving(tmp_path, tiny_model("sst2"), num_rounds=3, min_clients=2, buffer_size=1, **ASYNC) as server:
        async with watching(server, a="sst2", b="sst2") as clients:
            header, data = await clients["a"].get_slice()
            half_sent, go_on = asyncio.Event(), asyncio.Event()

            async def slowly():
                messages = clients["a"].update(header, full_of(data, 1), **DELTA)
                for message in messages[:2]:
                    yield message
                half_sent.set()
                await go_on.wait()
                for message in messages[2:]:
                    yield message

            upload = asyncio.ensure_future(clients["a"].stub.PushUpdate(slowly()))
            await half_sent.wait()
            await clients["b"].push(clients["b"].update(header, full_of(data, 1), **DELTA))
            await clients["b"].until(OPENED, 2)
            go_on.set()
            assert (await upload).round == 2
            await clients["a"].until(COMMITTED, 2)
    assert updates_of(tmp_path) == [("b", 1, "counted"), ("a", 2, "counted")]


async def test_an_update_that_is_too_stale_is_sent_away_to_fetch_the_slice_again(tmp_path):
    rules = {"buffer_size": 1, "max_staleness": 0, **ASYNC}
    async with serving(tmp_path, tiny_model("sst2"), num_rounds=3, min_clients=2, **rules) as server:
        async with watching(server, a="sst2", b="sst2") as clients:
            header, data = await clients["a"].get_slice()
            await clients["b"].push(clients["b"].update(header, full_of(data, 1), **DELTA))
            event = await clients["a"].until(OPENED, 2)
            assert event.oldest_base_round == 2
            code, text = await refusal(clients["a"].push(clients["a"].update(header, full_of(data, 1), **DELTA)))
    assert (code, text) == ("ABORTED", "the update is for round 1, but the run is at round 2 (open)")


async def test_an_asynchronous_run_takes_no_parameters(tmp_path):
    async with serving(tmp_path, tiny_model("sst2"), buffer_size=1, **ASYNC) as server:
        async with watching(server, a="sst2") as clients:
            header, data = await clients["a"].get_slice()
            code, text = await refusal(clients["a"].push(clients["a"].update(header, data)))
    assert (code, text) == ("INVALID_ARGUMENT", "kind: an asynchronous run expects a delta, got parameters")


async def test_an_asynchronous_run_ends_with_an_evaluation_as_any_other(tmp_path):
    async with serving(tmp_path, tiny_model("sst2"), num_rounds=1, buffer_size=1, **ASYNC) as server:
        async with watching(server, a="sst2") as clients:
            header, data = await clients["a"].get_slice()
            await clients["a"].push(clients["a"].update(header, full_of(data, 0), **DELTA))
            event = await clients["a"].until(OPENED, 2)
            assert (event.purpose, event.oldest_base_round) == (pb.ROUND_PURPOSE_EVALUATE, 2)
            header, _ = await clients["a"].get_slice()
            await clients["a"].push(clients["a"].update(header, {}, kind=pb.UPDATE_KIND_METRICS, components=[]))
            await clients["a"].until(FINISHED)


async def test_of_more_clients_than_are_needed_the_late_ones_are_told_that_the_round_has_closed(tmp_path):
    """One of two is enough: four are there, two are asked, the second comes too late."""
    rules = {"cohort": "over_select", "cohort_size": 1, "cohort_extra": 1}
    async with serving(tmp_path, tiny_model("sst2"), num_rounds=3, **rules) as server:
        async with watching(server, a="sst2") as first, watching(server, b="sst2", c="sst2", d="sst2") as others:
            clients = first | others
            header, data = await clients["a"].get_slice()
            await clients["a"].push(clients["a"].update(header, data))  # the cohort of round 1: it was there first
            events = {name: await client.until(OPENED, 2) for name, client in clients.items()}
            prompt, late = (clients[name] for name, event in events.items() if event.in_cohort)
            header, data = await prompt.get_slice()
            await prompt.push(prompt.update(header, data))
            event = await late.until(COMMITTED, 2)
            code, _ = await refusal(late.push(late.update(header, data)))
    assert code == "ABORTED"
    assert [part.client_id for part in event.report.components[0].contributions] == [prompt.client_id]
    assert (event.cohort_size, list(event.report.missing_clients)) == (2, [late.client_id])


@pytest.mark.parametrize("policy", ["commit", "extend", "fail"])
async def test_what_becomes_of_a_round_without_its_quorum_is_as_configured_and_the_log_says_which(policy, tmp_path):
    model = tiny_model("sst2", "qqp")
    before = model.module.encoder.dense.bias.clone()
    rules = {"on_missing_quorum": policy, "deadline_s": 0.6, "max_extensions": 1}
    with capture_logs() as logs:
        async with serving(tmp_path, model, num_rounds=2, **rules) as server:
            async with watching(server, a="sst2", b="qqp") as clients:
                first = await clients["a"].until(OPENED, 1)
                header, data = await clients["a"].get_slice()
                await clients["a"].push(clients["a"].update(header, full_of(data, 1)))
                again = await clients["a"].event()
                while again.kind not in (OPENED, COMMITTED, FAILED):
                    again = await clients["a"].event()
                assert (first.round, again.round) == (1, 1)
                if policy == "extend":
                    assert (again.kind, again.reported) == (OPENED, True)
                    again = await clients["a"].until(COMMITTED, 1)
                assert again.kind == (FAILED if policy == "fail" else COMMITTED)
                assert list(again.report.missing_clients) == ["b"]
                assert again.report.failed == (policy == "fail")
                await clients["a"].until(OPENED, 2)
                header, data = await clients["a"].get_slice()
                assert header.round == 2
    bias = model.module.encoder.dense.bias
    assert torch.equal(bias, before) if policy == "fail" else torch.equal(bias, torch.ones(4))
    told = [line["event"] for line in logs if line["event"] in ("round.extended", "round.failed", "round.committed")]
    expected = {
        "commit": ["round.committed"],
        "extend": ["round.extended", "round.committed"],
        "fail": ["round.failed"],
    }
    assert told[: len(expected[policy])] == expected[policy]
    assert updates_of(tmp_path) == [("a", 1, "discarded" if policy == "fail" else "counted")]


async def test_training_ends_early_when_no_metric_gets_better_and_the_best_model_is_kept(tmp_path):
    """Model 1 is the best; models 2 and 3 are no better, so with patience 2 round 4 is the last of training."""
    sections = {"early_stopping": {"patience": 2}, "store": {"keep_checkpoints": 1}}
    accuracies = {1: 0.5, 2: 0.9, 3: 0.8, 4: 0.7}
    async with serving(tmp_path, tiny_model("sst2"), num_rounds=10, sections=sections) as server:
        async with watching(server, a="sst2") as clients:
            for round_, accuracy in accuracies.items():
                header, data = await clients["a"].get_slice(round=round_)
                measured = {"received_metrics": {"accuracy": accuracy}, "num_eval_examples": 10}
                await clients["a"].push(clients["a"].update(header, full_of(data, round_), **measured))
                event = await clients["a"].until(OPENED, round_ + 1)
            assert (event.purpose, event.round) == (pb.ROUND_PURPOSE_EVALUATE, 5)
            header, _ = await clients["a"].get_slice()
            await clients["a"].push(clients["a"].update(header, {}, kind=pb.UPDATE_KIND_METRICS, components=[]))
            await clients["a"].until(FINISHED)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").glob("*.safetensors"))
    assert kept == ["round-0001.safetensors", "round-0004.safetensors"]
