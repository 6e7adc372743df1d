"""What one of several clients may be of a component, whatever it says: by hand, against sums in plain arithmetic, and
over gRPC."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from fedmtl.v1 import federation_pb2 as pb
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmtl_core.config import AggregationConfig, AuxiliaryConfig
from fedmtl_core.wire.updates import Update
from fedmtl_server.aggregation.aggregator import MTLAggregator
from fedmtl_server.aggregation.stages.client_shares import ClientShares
from fedmtl_server.aggregation.task_weighting.shares import Examples, Uniform
from fedmtl_server.aggregation.values import RoundContext
from fedmtl_server.storage.history import History
from fedmtl_server.storage.paths import HISTORY_FILE
from tests.server.aggregation.updates import averaged as average
from tests.server.aggregation.updates import update_of
from tests.support import TinyEncoder, WireClient, eventually, full_of, model_bytes, serving, tiny_model, watching

LIE = 2**53
COMMITTED, OPENED = pb.ROUND_EVENT_KIND_COMMITTED, pb.ROUND_EVENT_KIND_OPENED


def update(client_id, task, num_examples, value, kind="parameters", **facts):
    parameters = {"encoder.w": torch.tensor([float(value)]), f"heads.{task}.w": torch.tensor([float(value)])}
    return update_of(client_id, task, num_examples, parameters, kind, **facts)


def averaged(*updates, max_share=0.99, base=None, **rules):
    result = average(*updates, base=base, aggregator=MTLAggregator(max_client_share=max_share, **rules))
    return {"encoder": result["shared"]["encoder.w"].item()} | {
        task: head[f"heads.{task}.w"].item() for task, head in result["task_heads"].items()
    }


def test_a_client_that_says_2_to_the_53_is_99_of_100_by_hand():
    got = averaged(update("a", "sst2", LIE, 1.0), update("b", "sst2", 10, 0.0), update("c", "sst2", 30, 0.0))
    assert got == pytest.approx({"encoder": 0.99, "sst2": 0.99})
    alone = averaged(update("a", "sst2", LIE, 1.0), update("b", "sst2", 10, 0.0), max_share=None)
    assert alone == {"encoder": 1.0, "sst2": 1.0}


def test_each_component_has_its_own_others_and_one_that_is_alone_is_not_cut():
    """In the encoder b and c are the others, in sst2's head b is, and qqp's c has its own head to itself."""
    got = averaged(update("a", "sst2", LIE, 1.0), update("b", "sst2", 10, 0.0), update("c", "qqp", LIE // 2, 0.5))
    assert got["sst2"] == pytest.approx(0.99)
    assert got["qqp"] == 0.5
    assert got["encoder"] == pytest.approx(2 / 3 + 1 / 6)  # neither is more than 0.99
    assert averaged(update("a", "sst2", LIE, 1.0)) == {"encoder": 1.0, "sst2": 1.0}


def test_what_the_limit_is_on_with_steps_task_weights_auxiliary_weights_and_staleness():
    """Examples, in each component: what an update is multiplied with besides comes on top."""
    base = dict(update("", "sst2", 1, 0.0).components)
    base |= update("", "qqp", 1, 0.0).components
    lie, honest = (
        update("a", "sst2", LIE, 1.0, extras={"normalization": {"num_steps": 4}}),
        update("b", "qqp", 1, 0.0, extras={"normalization": {"num_steps": 1}}),
    )
    # FedNova: p = (0.99, 0.01), steps (4, 1): the mean of deltas by step, times the effective number of them.
    expected = (0.99 * 4 + 0.01) * (0.99 * 1.0 / 4)
    assert averaged(lie, honest, base=base, normalization="fednova")["encoder"] == pytest.approx(expected)
    settings_ = AggregationConfig()
    for weighting, share in ((Examples(settings_), 0.99), (Uniform(settings_), 0.5)):
        assert averaged(lie, honest, base=base, weighting=weighting)["encoder"] == pytest.approx(share)
    # An example of sst2 counts for a tenth: 990 of its examples are 99 of qqp's.
    auxiliary = {"sst2": AuxiliaryConfig(weight=0.1, decay=1.0)}
    assert averaged(lie, honest, base=base, auxiliary=auxiliary)["encoder"] == pytest.approx(0.99)
    stale = update("a", "sst2", LIE, 1.0, kind="delta", discount=0.5)
    fresh = update("b", "qqp", 1, 0.0, kind="delta")
    assert averaged(stale, fresh, base=base)["encoder"] == pytest.approx(0.99 * 0.5)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(1, 10**6) | st.integers(1, LIE), min_size=1, max_size=6),
    st.sampled_from([0.5, 0.75, 0.9, 0.99]),
    st.randoms(use_true_random=False),
)
def test_nobody_is_more_than_the_share_and_arrival_order_is_of_no_account(claims, share, random):
    """Against plain fractions; and what is settled while updates come is what it is at the close."""
    names = [f"c{number}" for number in range(len(claims))]
    arrival = names[:]
    random.shuffle(arrival)
    shares = ClientShares(share)
    shares.begin(RoundContext(contributors=dict.fromkeys(names, ("shared",))))
    settled = {}
    for name in arrival:
        said = Update(name, "sst2", 1, name, "parameters", num_examples=claims[names.index(name)])
        shares.count(said, ("shared",))
        for one in arrival[: arrival.index(name) + 1]:
            if shares.is_settled(one):
                settled.setdefault(one, shares.counted(one))
            else:
                assert one not in settled
    shares.complete()
    exact = Fraction(share).limit_denominator(10**9)
    counted = []
    for name, claim in zip(names, claims, strict=True):
        others = sum(claims) - claim
        expected = min(Fraction(claim), exact / (1 - exact) * others) if others else Fraction(claim)
        got = shares.counted(name)
        assert got.get("shared", Fraction(claim)) == expected
        assert settled.get(name, got) == got
        counted.append(expected)
    if len(claims) > 1:
        assert max(counted) <= exact * sum(counted)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 1000), min_size=2, max_size=6))
def test_a_round_without_such_a_client_is_averaged_to_the_same_bits(claims):
    if max(claims) > 0.99 * sum(claims):
        return
    values = np.random.default_rng(sum(claims)).standard_normal(len(claims))
    updates = [
        update(f"c{n}", "sst2", claim, value) for n, (claim, value) in enumerate(zip(claims, values, strict=True))
    ]
    assert averaged(*updates) == averaged(*updates, max_share=None)


# Over the wire.


def model():
    return tiny_model("sst2", "qqp", encoder=TinyEncoder())


async def push(client, value, num_examples):
    header, data = await client.get_slice()
    return await client.push(client.update(header, full_of(data, value), num_examples=num_examples))


@pytest.mark.parametrize("order", ["abc", "cba", "bac", "cab"])
async def test_the_model_is_the_same_whoever_was_faster_and_the_report_says_what_counted(order, tmp_path):
    said = {"a": 10, "b": LIE, "c": 30}
    async with serving(tmp_path, model(), min_clients={"sst2": 2, "qqp": 1}) as server:
        async with watching(server, a="sst2", b="sst2", c="qqp") as clients:
            await clients["c"].until(OPENED)
            for name in order:
                await push(clients[name], ord(name) - ord("a"), said[name])
            report = (await clients["c"].until(COMMITTED)).report
            got = model_bytes(server.federation.model)
    encoder = next(one for one in report.components if one.scope == "shared")
    assert {one.client_id: one.num_examples for one in encoder.contributions} == said
    assert [one.client_id for one in encoder.contributions if one.HasField("counted_examples")] == ["b"]
    counted = {one.client_id: one.counted_examples for one in encoder.contributions}
    assert counted["b"] == pytest.approx(99 * (10 + 30))
    assert [one.weight for one in encoder.contributions] == pytest.approx([0.0025, 0.99, 0.0075])
    head = np.frombuffer(got["task:sst2"], "<f4")
    assert head == pytest.approx(np.full(len(head), 0.99))
    shared = np.frombuffer(got["shared"], "<f4")
    assert shared == pytest.approx(np.full(len(shared), 0.0025 * 0 + 0.99 * 1 + 0.0075 * 2))


async def test_an_update_is_averaged_as_soon_as_its_share_is_known_and_one_that_says_too_much_at_the_close(tmp_path):
    for name, said, waiting in (("honest", 10, set()), ("lie", LIE, {"a", "b"})):
        async with serving(tmp_path / name, model(), min_clients={"sst2": 2, "qqp": 1}) as server:
            async with watching(server, a="sst2", b="sst2", c="qqp") as clients:
                await clients["c"].until(OPENED)
                await push(clients["a"], 0.0, said)
                await push(clients["b"], 1.0, 10)
                updates = server.federation._driver.open_round.updates
                await eventually(lambda u=updates, w=waiting: not u.has_arrived and u._complete.keys() == w)
                await push(clients["c"], 2.0, 10)
                await clients["c"].until(COMMITTED)


async def test_a_task_s_limit_is_counted_as_such_and_what_was_said_is_told(tmp_path):
    """Also of an update that was acknowledged before the server was started again."""
    sections = {"tasks": {"sst2": {"max_examples": 30, "min_clients": 2}}}
    rules = {"sections": sections, "min_clients": 2}
    async with serving(tmp_path, tiny_model("sst2"), **rules) as server:
        async with watching(server, a="sst2", b="sst2") as clients:
            await clients["b"].until(OPENED)
            await push(clients["a"], 1.0, 1_000_000)
    async with serving(tmp_path, tiny_model("sst2"), **rules) as server:
        async with WireClient(server, "b", "sst2") as client:
            await client.watch()
            await push(client, 0.0, 10)
            report = (await client.until(COMMITTED)).report
            got = np.frombuffer(model_bytes(server.federation.model)["shared"], "<f4")
    assert got == pytest.approx(np.full(len(got), 0.75))
    a, b = report.components[0].contributions
    assert (a.num_examples, a.counted_examples, a.weight) == (1_000_000, 30, 0.75)
    assert not b.HasField("counted_examples")
    assert report.tasks[0].num_examples == 40
    history = History.open(tmp_path / HISTORY_FILE, create=False)
    assert [one.num_examples for one in history.updates(history.runs()[0].run_id)] == [1_000_000, 10]
    history.close()
