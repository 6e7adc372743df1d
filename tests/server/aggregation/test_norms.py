"""How far updates move the model: measured against float64 and by hand, bounded, clipped and refused."""

import math
import sys
from statistics import median_low
from unittest import mock

import grpc
import numpy as np
import pytest
import torch
from fedmtl.v1 import federation_pb2 as pb
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from fedmtl_core.config import NormsConfig
from fedmtl_core.errors import LayoutMismatchError, NormExceededError
from fedmtl_core.wire.encodings import decode, encode, largest_magnitude
from fedmtl_core.wire.layout import DTYPES, Component
from fedmtl_server.aggregation import norms
from fedmtl_server.aggregation.norms import are_ordinary, norm_of, update_norms
from fedmtl_server.aggregation.pipeline import Pipeline
from fedmtl_server.aggregation.stages.norms import NO_NORMS, NormScreening, require_within
from fedmtl_server.aggregation.values import Contribution, RoundContext, RoundRecord
from fedmtl_server.model import MTLServerModel
from fedmtl_server.rounds.report import ComponentReport, RoundReport, counted_norms
from tests.server.aggregation.updates import changed, round_of, update_of
from tests.support import (
    TinyEncoder,
    WireClient,
    eventually,
    full_of,
    model_bytes,
    serving,
    specs,
    tiny_model,
    watching,
)

CODE = grpc.StatusCode
COMMITTED, OPENED = pb.ROUND_EVENT_KIND_COMMITTED, pb.ROUND_EVENT_KIND_OPENED
CLIP = NormsConfig(action="clip", bound=5.0, model_factor=None)


def component_of(*tensors, scope="shared"):
    return Component.pack(scope, {f"t{i}": tensor for i, tensor in enumerate(tensors)})


def exact(values):
    """The norm in Python's own arithmetic."""
    return math.hypot(*(float(value) for value in values))


def test_a_norm_by_hand():
    assert norm_of(component_of(torch.tensor([3.0, -4.0]))) == 5.0
    assert norm_of(component_of(torch.tensor([13.0, 6.0])), component_of(torch.tensor([10.0, 10.0]))) == 5.0
    assert norm_of(component_of(torch.zeros(7))) == 0.0
    assert norm_of(component_of(torch.zeros(0, 3))) == 0.0


def test_a_norm_is_over_the_tensors_of_every_dtype():
    component = component_of(*(torch.full((k + 1,), 2.0, dtype=dtype) for k, dtype in enumerate(DTYPES)))
    assert norm_of(component) == pytest.approx(math.sqrt(4 * (1 + 2 + 3 + 4)), rel=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_norm_of_what_is_not_a_number_is_none_and_within_no_bound(dtype):
    nan, ones = torch.tensor([math.nan, 1.0], dtype=dtype), torch.ones(2, dtype=dtype)
    for norm in (
        norm_of(component_of(nan)),
        norm_of(component_of(nan), component_of(ones)),
        norm_of(component_of(ones), component_of(nan)),
    ):
        assert math.isnan(norm)
        with pytest.raises(NormExceededError, match="nan"):
            require_within({"shared": norm}, {"shared": 1e300})


def test_padding_has_no_norm():
    component = component_of(torch.ones(1).half(), torch.ones(1))
    component.buffer[2:4] = 255
    assert norm_of(component) == math.sqrt(2)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=30),
    st.booleans(),
    st.sampled_from([1, 2, 7, 2**17]),
)
def test_a_norm_is_that_in_float64_for_any_blocks(dtype, drawn, with_base, block):
    values = torch.tensor(drawn, dtype=torch.float64).to(dtype)
    base = values.flip(0).clone() if with_base else None
    with mock.patch.object(norms, "_BLOCK", block):
        got = norm_of(component_of(values), component_of(base) if with_base else None)
    delta = values.double().numpy() - (base.double().numpy() if with_base else 0.0)
    assert got == pytest.approx(exact(delta), rel=1e-5)


@pytest.mark.parametrize("size", [1e-45, 1e-30, 1e-18, 1e15, 1e25, 3e38])
def test_no_size_of_float32_overflows_or_is_lost(size):
    values = torch.full((10_000,), size)
    number = float(values[0])
    assert norm_of(component_of(values)) == pytest.approx(100 * number, rel=1e-6)
    assert norm_of(component_of(values), component_of(-values)) == pytest.approx(200 * number, rel=1e-6)


@pytest.mark.parametrize("size", [5e-324, 1e-200, 1e160, 1e300])
def test_no_size_of_float64_overflows_or_is_lost(size):
    values = torch.full((4,), size, dtype=torch.float64)
    assert norm_of(component_of(values)) == pytest.approx(2 * size, rel=1e-12)


def test_what_is_beyond_the_largest_number_is_the_largest_number():
    values = torch.full((9,), sys.float_info.max, dtype=torch.float64)
    assert norm_of(component_of(values), component_of(-values)) == sys.float_info.max


def test_a_norm_is_the_same_to_the_last_bit_whatever_the_threads_and_the_place_in_memory():
    values = torch.randn(1_000_003, generator=torch.Generator().manual_seed(0))
    base = torch.randn(1_000_003, generator=torch.Generator().manual_seed(1))
    threads, found = torch.get_num_threads(), set()
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            for shift in range(4):
                memory = torch.zeros(values.nbytes + 64, dtype=torch.uint8)[4 * shift :][: values.nbytes]
                moved = Component(component_of(values).layout, memory)
                moved.copy_from({"t0": values})
                found |= {norm_of(moved, component_of(base))}
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 1
    assert found.pop() == pytest.approx(np.linalg.norm((values - base).double().numpy()), rel=1e-7)


def test_a_norm_of_another_layout_is_refused():
    with pytest.raises(LayoutMismatchError, match=r"expected float32 \[2\], got float32 \[3\]"):
        norm_of(component_of(torch.ones(2)), component_of(torch.ones(3)))


@pytest.mark.parametrize("place", [0, 4_000_000, 8_999_999])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_none_makes_the_norm_extraordinary_wherever_it_is(value, place):
    values = torch.ones(9_000_000)
    assert are_ordinary({"shared": norm_of(component_of(values), component_of(torch.zeros(9_000_000)))})
    values[place] = value
    for base in (None, component_of(torch.full((9_000_000,), 0.5))):
        assert not are_ordinary({"shared": norm_of(component_of(values), base)})


# The rule.


def bounds(section, scopes, *rounds):
    """What a rule comes to after rounds, by scope the norms that counted in each; the newest round last."""
    stage = NormScreening(section)
    for one in rounds:
        stage.record(RoundRecord(one))
    return stage.bounds(scopes)


def clip(**given):
    return NormsConfig(action="clip", model_factor=None, **given)


def test_a_rule_without_a_bound_has_none():
    for action in ("none", "report"):
        assert bounds(NormsConfig(action=action), ["shared"], {"shared": [1.0]}) == {}


def test_a_fixed_bound_holds_for_every_component_from_the_first_round_on():
    assert bounds(CLIP, ["shared", "task:sst2"]) == {"shared": 5.0, "task:sst2": 5.0}


def test_a_bound_by_the_median_holds_for_components_that_have_a_history():
    rule = clip(median_factor=3.0)
    assert bounds(rule, ["shared", "task:sst2"]) == {}
    assert bounds(rule, ["shared", "task:sst2"], {"shared": [1.0, 9.0, 2.0]}) == {"shared": 6.0}


def test_half_of_the_norms_however_large_do_not_raise_the_median():
    assert bounds(clip(median_factor=2.0), ["shared"], {"shared": [1e9, 1.0]}) == {"shared": 2.0}


def test_of_both_bounds_the_smaller_one_holds():
    rule = clip(bound=5.0, median_factor=2.0)
    assert bounds(rule, ["shared"]) == {"shared": 5.0}
    assert bounds(rule, ["shared"], {"shared": [1.0]}) == {"shared": 2.0}
    assert bounds(rule, ["shared"], {"shared": [100.0]}) == {"shared": 5.0}


def test_the_window_is_the_last_rounds_that_changed_the_component():
    rule = clip(median_factor=2.0, window=2)
    rounds = ({"shared": [0.1]}, {"shared": [3.0]}, {"shared": [], "task:sst2": [1.0]}, {"shared": [4.0]})
    assert bounds(rule, ["shared", "task:sst2"], *rounds) == {"shared": 6.0, "task:sst2": 2.0}


def test_norms_of_zero_are_left_out():
    assert bounds(clip(median_factor=2.0), ["shared"], {"shared": [0.0, 0.0, 7.0]}) == {"shared": 14.0}
    assert bounds(clip(median_factor=2.0), ["shared"], {"shared": [0.0]}) == {}


def test_a_bound_is_that_of_the_rounds_before_until_the_next_one_begins():
    stage = NormScreening(NormsConfig(action="refuse", bound=5.0, median_factor=2.0))
    stage.begin(RoundContext(base=BASE))
    stage.record(RoundRecord({"shared": [1.0]}))
    assert stage.refusal_bounds["shared"] == 5.0
    stage.begin(RoundContext(base=BASE))
    assert stage.refusal_bounds["shared"] == 2.0


def test_components_that_were_regrouped_have_no_history():
    stage = NormScreening(clip(median_factor=2.0))
    stage.record(RoundRecord({"shared": [1.0]}))
    stage.record(RoundRecord({"shared": [1.0]}, is_regrouped=True))
    assert stage.bounds(["shared"]) == {}


def report_of(round_, *parts, scope="shared"):
    return RoundReport(round_, "train", 0, 1.0, [ComponentReport(scope, 1, list(parts))], [], [], [], 0, 0, 0, [])


def test_the_history_is_what_counted_and_comes_back_from_the_stored_reports():
    first = report_of(1, Contribution("a", "sst2", 1, 0.5, 0, 3.0), Contribution("b", "sst2", 1, 0.5, 0, 80.0, 6.0))
    second = report_of(2, Contribution("a", "sst2", 1, 1.0, 0, 2.0), Contribution("c", "sst2", 1, 1.0))
    reports = [RoundReport.from_dict(one.to_dict()) for one in (first, second)]
    assert reports == [first, second]
    assert [counted_norms(one) for one in reports] == [{"shared": [3.0, 6.0]}, {"shared": [2.0]}]


def test_a_report_of_an_older_server_has_no_norms():
    stored = report_of(1, Contribution("a", "sst2", 1, 1.0)).to_dict()
    for part in stored["components"][0]["contributions"]:
        del part["norm"], part["clipped_to"]
    assert counted_norms(RoundReport.from_dict(stored)) == {"shared": []}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.1, 1e6), min_size=1, max_size=40), st.floats(1.1, 5))
def test_who_is_alone_with_ever_larger_updates_raises_the_bound_by_no_more_than_the_factor(sent, factor):
    rule, counted, bound = clip(median_factor=factor), [], None
    for norm in sent:
        counted.append(norm if bound is None else min(norm, bound))
        before, bound = bound, bounds(rule, ["shared"], *({"shared": [one]} for one in counted))["shared"]
        assert bound == factor * median_low(counted[-5:])
        assert before is None or bound <= factor * max(before, sent[0])


def test_what_is_within_is_let_through_and_what_is_beyond_is_named():
    require_within({"shared": 5.0, "task:sst2": 1e9}, {"shared": 5.0})
    with pytest.raises(NormExceededError, match=r"shared: .* an L2 norm of 5\.00001, at most 5 is allowed"):
        require_within({"shared": 5.00001}, {"shared": 5.0})


# In the average.


def update(client_id, n, encoder, kind="delta", head=(0.0,)):
    parameters = {"encoder.w": torch.tensor(encoder), "heads.sst2.weight": torch.tensor(list(head))}
    return update_of(client_id, "sst2", n, parameters, kind)


BASE = update("", 1, [10.0, 20.0]).components


def fold(section, *updates, base=BASE, **options):
    return round_of(Pipeline([NormScreening(section)]), *updates, base=base, **options)


@pytest.mark.parametrize("may_keep", [False, True])
@pytest.mark.parametrize(("kind", "sent"), [("delta", [30.0, 40.0]), ("parameters", [40.0, 60.0])])
def test_what_is_beyond_the_bound_is_scaled_down_to_it(kind, sent, may_keep):
    result = fold(CLIP, update("a", 1, sent, kind), may_keep=may_keep)
    assert result.components["shared"].views()["encoder.w"].tolist() == [13.0, 24.0]  # 5 along (30, 40)
    (part,) = result.contributions["shared"]
    assert (part.norm, part.clipped_to, part.counted_norm, part.weight) == (50.0, 5.0, 5.0, 1.0)


def test_one_component_is_clipped_and_the_other_left_as_it_is():
    result = fold(CLIP, update("a", 1, [30.0, 40.0], head=[2.0]), update("b", 3, [1.0, 1.0], head=[4.0]))
    assert result.components["shared"].views()["encoder.w"].tolist() == [11.5, 21.75]  # (1*(3, 4) + 3*(1, 1)) / 4
    assert result.components["task:sst2"].views()["heads.sst2.weight"].tolist() == [3.5]
    assert [part.clipped_to for part in result.contributions["task:sst2"]] == [None, None]


def test_a_stale_delta_is_clipped_before_it_is_discounted():
    stale = changed(update("a", 1, [30.0, 40.0]), staleness=3, discount=0.5)
    result = fold(CLIP, stale)
    assert result.components["shared"].views()["encoder.w"].tolist() == [11.5, 22.0]
    assert result.contributions["shared"][0].norm == 50.0


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 1000), st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=2)),
        min_size=1,
        max_size=5,
    ),
    st.sampled_from(["delta", "parameters"]),
    st.booleans(),
)
def test_the_model_moves_by_the_mean_of_the_clipped_deltas(drawn, kind, may_keep):
    base = np.array([10.0, 20.0])
    updates, expected = [], np.zeros(2)
    for number, (n, delta) in enumerate(drawn):
        sent = [float(np.float32(10 + delta[0])), float(np.float32(20 + delta[1]))] if kind == "parameters" else delta
        moved = np.array(sent) - base if kind == "parameters" else np.array(sent)
        expected += n * moved * min(1.0, 5.0 / max(exact(moved), 1e-300))
        updates.append(update(f"c{number}", n, sent, kind))
    result = fold(CLIP, *updates, may_keep=may_keep)
    got = result.components["shared"].views()["encoder.w"].double().numpy()
    assert got == pytest.approx(base + expected / sum(n for n, _ in drawn), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("kind", ["delta", "parameters"])
def test_one_client_with_huge_numbers_moves_the_model_by_no_more_than_its_share_of_the_bound(kind):
    largest = float(torch.finfo(torch.float32).max)
    honest = [update(f"c{i}", 1, [0.0, 0.0] if kind == "delta" else [10.0, 20.0], kind) for i in range(4)]
    hostile = update("x", 1, [-largest, largest], kind)
    result = fold(CLIP, honest[0], hostile, *honest[1:])
    moved = result.components["shared"].views()["encoder.w"].double().numpy() - [10, 20]
    assert exact(moved) == pytest.approx(1.0, rel=1e-4)  # a fifth of 5


def test_what_nobody_clips_is_averaged_to_the_same_bits():
    updates = [update(f"c{i}", 3 + i, torch.randn(2).tolist()) for i in range(5)]
    plain, measured, clipped = (fold(rule, *updates) for rule in (NO_NORMS, NormsConfig(action="report"), CLIP))
    for one in (measured, clipped):
        for scope, component in plain.components.items():
            assert torch.equal(component.buffer, one.components[scope].buffer)
    assert plain.contributions["shared"][0].norm is None
    assert measured.contributions["shared"][0].norm == clipped.contributions["shared"][0].norm > 0


def test_parameters_of_what_the_model_has_not_got_have_no_norm():
    assert update_norms("parameters", update("a", 1, [1.0, 2.0]).components, {}) == {}


# Over the wire.


def with_norms(**settings_):
    return {"sections": {"robustness": {"norms": settings_}}}


def zero_model() -> MTLServerModel:
    model = MTLServerModel(TinyEncoder(), specs("sst2"), hidden_size=4)
    model.install({scope: Component(one.layout) for scope, one in model.components.items()})
    return model


async def test_norms_are_reported_to_those_who_watch_in_the_status_and_in_the_log(tmp_path):
    async with serving(tmp_path, zero_model(), min_clients=2) as server:
        async with watching(server, a="sst2", b="sst2") as clients:
            header, data = await clients["a"].get_slice()
            with capture_logs() as logs:
                for client_id, value in (("a", 1.0), ("b", 3.0)):
                    await clients[client_id].push(clients[client_id].update(header, full_of(data, value)))
                report = (await clients["a"].until(COMMITTED)).report
            encoder = next(one for one in report.components if one.scope == "shared")
            assert [part.norm for part in encoder.contributions] == pytest.approx([20**0.5, 3 * 20**0.5])
            assert not encoder.contributions[0].HasField("clipped_to")
            status = await clients["a"].stub.GetStatus(pb.GetStatusRequest())
            assert status.last_report == report
            line = next(one for one in logs if one["event"] == "component.averaged" and one["scope"] == "shared")
            assert line["norm_max"] == pytest.approx(3 * 20**0.5)


async def test_norms_are_not_measured_where_that_is_not_wanted(tmp_path):
    async with serving(tmp_path, zero_model(), **with_norms(action="none")) as server:
        async with watching(server, a="sst2") as clients:
            header, data = await clients["a"].get_slice()
            await clients["a"].push(clients["a"].update(header, full_of(data, 1.0)))
            report = (await clients["a"].until(COMMITTED)).report
    assert not any(part.HasField("norm") for one in report.components for part in one.contributions)


FORMS = {
    "parameters": ("parameters", "float32"),
    "parameters in float16": ("parameters", "float16"),
    "delta": ("delta", "float32"),
    "delta in bfloat16": ("delta", "bfloat16"),
    "delta in int8": ("delta", "int8"),
}


def in_form(client, header, data, value, form):
    """An update of the zero model with every number the same, in one of the encodings."""
    kind, encoding = FORMS[form]
    fields = {"kind": pb.UPDATE_KIND_DELTA if kind == "delta" else pb.UPDATE_KIND_PARAMETERS}
    encoded, components = {}, []
    for one in header.components:
        values = Component.pack("shared", {t.name: torch.full(tuple(t.shape), value) for t in one.tensors})
        encoded[one.scope] = encode(values, encoding).numpy().tobytes()
        components.append(
            pb.Component(
                scope=one.scope,
                tensors=one.tensors,
                num_bytes=one.num_bytes,
                encoding=pb.Encoding.Value(f"ENCODING_{encoding.upper()}"),
                encoded_bytes=len(encoded[one.scope]),
            )
        )
    return client.update(header, encoded, components=components, **fields)


@pytest.mark.parametrize("form", FORMS)
async def test_an_update_beyond_the_bound_is_refused_before_it_counts(form, tmp_path):
    model = zero_model()
    async with serving(tmp_path, model, **with_norms(action="refuse", bound=10.0)) as server:
        async with watching(server, a="sst2") as clients:
            header, data = await clients["a"].get_slice()
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await clients["a"].push(in_form(clients["a"], header, data, 4.0, form))  # 4 * sqrt(20) = 17.9
            assert refusal.value.code() is CODE.INVALID_ARGUMENT
            assert "shared: the update moves it by an L2 norm of 17.8" in refusal.value.details()
            assert "at most 10 is allowed" in refusal.value.details()
            assert server.federation.staging.used_bytes == 0
            status = await clients["a"].stub.GetStatus(pb.GetStatusRequest())
            assert not any(one.reported for one in status.clients)
            answer = await clients["a"].push(in_form(clients["a"], header, data, 2.0, form))
            assert answer.outcome == pb.OUTCOME_ACCEPTED
            report = (await clients["a"].until(COMMITTED)).report
            assert [(one.client_id, one.code) for one in report.refused] == [("a", "INVALID_ARGUMENT")]
            assert report.components[0].contributions[0].norm == pytest.approx(2 * 20**0.5, rel=1e-2)
    assert model.components["shared"].views()["encoder.dense.bias"].tolist() == pytest.approx([2.0] * 4, rel=1e-2)


@pytest.mark.parametrize("form", FORMS)
async def test_an_update_beyond_the_bound_is_clipped_to_it(form, tmp_path):
    model = zero_model()
    async with serving(tmp_path, model, **with_norms(action="clip", bound=20**0.5)) as server:
        async with watching(server, a="sst2") as clients:
            header, data = await clients["a"].get_slice()
            with capture_logs() as logs:
                await clients["a"].push(in_form(clients["a"], header, data, 4.0, form))
                report = (await clients["a"].until(COMMITTED)).report
    part = report.components[0].contributions[0]
    assert (part.norm, part.clipped_to) == pytest.approx((4 * 20**0.5, 20**0.5), rel=1e-2)
    assert model.components["shared"].views()["encoder.dense.bias"].tolist() == pytest.approx([1.0] * 4, rel=1e-5)
    assert [one["client_id"] for one in logs if one["event"] == "update.clipped"] == ["a", "a"][
        : len(report.components)
    ]


@pytest.mark.parametrize(
    ("kind", "encoding", "action"),
    [(kind, form, "report") for kind, form in FORMS.values() if form != "float16"]
    + [("delta", "topk", "report"), ("parameters", "float32", "clip"), ("delta", "int8", "refuse")],
)
async def test_one_absurd_update_is_refused_and_the_round_goes_on_with_the_others(kind, encoding, action, tmp_path):
    """1e30 is finite: counted, it would have made every client's next round NaN."""
    model = zero_model()
    rule = {"action": action} | ({} if action == "report" else {"bound": 1e29})
    async with serving(tmp_path, model, min_clients=2, transfer_timeout_s=1, **with_norms(**rule)) as server:
        async with watching(server, a="sst2", b="sst2") as clients:
            header, data = await clients["a"].get_slice()
            with mock.patch.dict(FORMS, {"absurd": (kind, encoding)}), pytest.raises(grpc.aio.AioRpcError) as refusal:
                await clients["a"].push(in_form(clients["a"], header, data, 1e30, "absurd"))
            assert refusal.value.code() is CODE.INVALID_ARGUMENT
            assert "shared: the update moves it by an L2 norm of " in refusal.value.details()
            assert server.federation.staging.used_bytes == 0
            if action == "report":  # 1e6 times 20 elements of 1, since the model's own norm is 0
                assert "at most 4.47214e+06 is allowed: robustness.norms.model_factor" in refusal.value.details()
            await clients["b"].push(in_form(clients["b"], header, data, 2.0, "parameters"))
            clients["a"].leave()
            report = (await clients["b"].until(COMMITTED)).report
    assert [(one.client_id, one.code) for one in report.refused] == [("a", "INVALID_ARGUMENT")]
    assert list(report.missing_clients) == ["a"]
    assert model.components["shared"].views()["encoder.dense.bias"].tolist() == [2.0] * 4


async def test_the_limit_follows_the_model_from_commit_to_commit_and_over_a_restart(tmp_path):
    """Twice the model's own: from 1, every number may become 3, then 9."""
    given_ = with_norms(model_factor=2.0)
    ones = MTLServerModel(TinyEncoder(), specs("sst2"), hidden_size=4)
    for component in ones.components.values():
        for view in component.views().values():
            view.fill_(1.0)

    async def push(client, value, round_):
        await eventually(lambda: server.federation.status().phase.value == "open")
        header, data = await client.get_slice(round=round_)
        await client.push(client.update(header, full_of(data, value)))
        await client.until(COMMITTED, round_)

    for rounds in ((1, 2), (3,)):
        async with serving(tmp_path, ones, num_rounds=4, **given_) as server:
            async with WireClient(server, "a", "sst2") as client:
                await client.watch()
                for round_ in rounds:
                    value = 3.0**round_
                    with pytest.raises(grpc.aio.AioRpcError, match=r"model_factor times the model's own"):
                        await push(client, value + 0.01, round_)
                    await push(client, value, round_)
    assert ones.components["shared"].views()["encoder.dense.bias"].tolist() == [27.0] * 4


@pytest.mark.parametrize("form", FORMS)
async def test_an_honest_update_is_neither_changed_nor_decoded_once_more_by_the_limit(form, tmp_path):
    models = []
    for number, factor in enumerate((None, 1e6)):
        models.append(zero_model())
        async with serving(tmp_path / str(number), models[-1], **with_norms(model_factor=factor)) as server:
            with mock.patch.object(server.federation.staging, "look", wraps=server.federation.staging.look) as look:
                async with watching(server, a="sst2") as clients:
                    header, data = await clients["a"].get_slice()
                    await clients["a"].push(in_form(clients["a"], header, data, 4.0, form))
                    await clients["a"].until(COMMITTED)
            assert look.call_count == (FORMS[form][1] == "float32")
    assert model_bytes(models[0]) == model_bytes(models[1])


async def test_without_a_limit_or_without_norms_anything_finite_counts(tmp_path):
    for number, rule in enumerate(({"model_factor": None}, {"action": "none"})):
        async with serving(tmp_path / str(number), zero_model(), **with_norms(**rule)) as server:
            async with watching(server, a="sst2") as clients:
                header, data = await clients["a"].get_slice()
                answer = await clients["a"].push(in_form(clients["a"], header, data, 1e30, "parameters"))
                assert answer.outcome == pb.OUTCOME_ACCEPTED


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-1e4, 1e4, width=16), min_size=1, max_size=40),
    st.sampled_from(["float32", "float16", "bfloat16", "int8", "topk"]),
)
def test_no_decoded_element_is_larger_than_what_is_told_of_the_encoded_ones(values, encoding):
    component = component_of(torch.tensor(values), torch.tensor(values[:1]).half())
    data = encode(component, encoding)
    decoded = decode(component.layout, encoding, data.clone())
    largest = max(float(run.abs().max()) for run in decoded.runs())
    assert largest <= largest_magnitude(component.layout, encoding, data) * (1 + 1e-6)


async def held_rounds(server, client, values):
    """Rounds in which one client sends parameters that differ from the model's by a number; the encoder's parts."""
    parts = []
    for value in values:
        await eventually(lambda: server.federation.status().phase.value == "open")
        header, data = await client.get_slice()
        moved = {scope: (np.frombuffer(one, "<f4") + np.float32(value)).tobytes() for scope, one in data.items()}
        await client.push(client.update(header, moved))
        report = (await client.until(COMMITTED, header.round)).report
        parts.append(next(one for one in report.components if one.scope == "shared").contributions[0])
    return parts


async def test_a_bound_by_the_median_follows_the_run_and_is_the_same_after_a_restart(tmp_path):
    """1, then at most 2 * 1, 2 * 1, 2 * (lower median of 1, 2, 2)."""
    unit, given_ = 20**0.5, with_norms(action="clip", median_factor=2.0, window=3)
    async with serving(tmp_path, zero_model(), num_rounds=6, **given_) as server:
        async with WireClient(server, "a", "sst2") as client:
            await client.watch()
            parts = await held_rounds(server, client, [1.0, 9.0, 9.0])
    assert [part.clipped_to / unit for part in parts] == pytest.approx([0, 2, 2], rel=1e-5)
    async with serving(tmp_path, zero_model(), num_rounds=6, **given_) as server:
        async with WireClient(server, "a", "sst2") as client:
            await client.watch()
            parts = await held_rounds(server, client, [9.0, 9.0])
    assert [part.clipped_to / unit for part in parts] == pytest.approx([4, 4], rel=1e-5)


async def test_a_delta_of_an_asynchronous_round_is_judged_by_itself(tmp_path):
    """Whichever model it started from: no base has to be kept."""
    rounds = {"mode": "async", "buffer_size": 1}
    async with serving(
        tmp_path, tiny_model("sst2"), num_rounds=3, **rounds, **with_norms(action="refuse", bound=10.0)
    ) as server:
        async with watching(server, a="sst2", b="sst2") as clients:
            (header, data), b = await clients["a"].get_slice(), clients["b"]
            await clients["a"].push(in_form(clients["a"], header, data, 1.0, "delta"))
            await clients["a"].until(OPENED, 2)
            with pytest.raises(grpc.aio.AioRpcError, match=r"an L2 norm of 17\.8"):
                await b.push(in_form(b, header, data, 4.0, "delta"))
            await b.push(in_form(b, header, data, 2.0, "delta"))
            report = (await b.until(COMMITTED, 2)).report
    part = report.components[0].contributions[0]
    assert (part.client_id, part.staleness, part.norm) == ("b", 1, pytest.approx(2 * 20**0.5))
