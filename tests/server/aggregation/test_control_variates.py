"""The server's control variates: hand-computed numbers, how they travel, and that they are part of a commit."""

import grpc
import pytest
import torch
from fedmtl.v1 import federation_pb2 as pb
from safetensors import safe_open
from structlog.testing import capture_logs

from fedmtl_core.config import Config
from fedmtl_core.errors import ConfigError
from fedmtl_core.wire.layout import Component
from fedmtl_server.aggregation.aggregator import ClientUpdate
from fedmtl_server.aggregation.stages.base import Ending
from fedmtl_server.aggregation.stages.control_variates import ControlVariates
from fedmtl_server.aggregation.values import RoundContext
from tests.server.playing import TASKS, model
from tests.support import TinyEncoder, WireClient, model_bytes, reports_of, serving, tiny_model, watching

SECTIONS = {"training": {"num_rounds": 5, "control_variates": True, "optimizer": "sgd"}}
RATES = {"a": 0.25, "b": 2.0}
EXAMPLES = {"a": 2, "b": 6}


def numbers(scope, *values):
    return Component.pack(scope, {f"{scope}.w": torch.tensor(values)})


def update(client_id, task, num_examples, learning_rate_sum, components, control_round=0, kind="delta"):
    said = ClientUpdate(
        *(client_id, task, num_examples, {one.scope: one for one in components}, kind),
        extras={"control_variates": {"learning_rate_sum": learning_rate_sum, "control_round": control_round}},
    )
    return said.screened(1)


def value(variates, scope="shared"):
    return variates.broadcast().components[f"control:{scope}"].views()[f"control/{scope}.w"].tolist()


def facts(variates):
    return variates.state().metadata


def held_round(variates, round_, *updates, base=None, committed=None):
    """A round of updates: why the variates begin anew, if they do."""
    variates.begin(RoundContext(round_, base or {}))
    for one in updates:
        assert variates.screen(one) is one
    ended = variates.end(Ending(round_, committed or {scope for one in updates for scope in one.components}))
    return ended.notice.reason if ended.notice else ""


def test_the_variate_is_the_mean_of_the_known_clients_weighted_by_their_examples():
    variates = ControlVariates([numbers("shared", 0.0).layout])
    assert held_round(variates, 1, update("a", "x", 2, 0.5, [numbers("shared", -2.0)])) == ""
    assert value(variates) == [4.0]  # 0 - 0 + 2 / 0.5
    assert held_round(variates, 2, update("b", "x", 6, 1.0, [numbers("shared", 3.0)])) == ""
    # b's is 0 - 4 - 3 / 1 = -7, a's still 4
    assert value(variates) == [(2 * 4 + 6 * -7) / 8]
    assert held_round(variates, 3, update("a", "x", 2, 0.5, [numbers("shared", 1.0)], 1)) == ""
    # a's is 4 + 4.25 - 1 / 0.5 = 6.25
    assert value(variates) == [(2 * 6.25 + 6 * -7) / 8]


def test_parameters_say_the_same_as_the_delta():
    variates = ControlVariates([numbers("shared", 0.0, 0.0).layout])
    base = {"shared": numbers("shared", 10.0, 1.0)}
    held_round(variates, 1, update("a", "x", 3, 0.5, [numbers("shared", 8.0, 2.0)], kind="parameters"), base=base)
    assert value(variates) == [4.0, -2.0]


def test_a_heads_variate_is_of_its_own_tasks_clients():
    scopes = ("shared", "task:x", "task:y")
    variates = ControlVariates([numbers(scope, 0.0).layout for scope in scopes])
    first = update("a", "x", 1, 1.0, [numbers("shared", -1.0), numbers("task:x", -10.0)])
    second = update("b", "y", 3, 1.0, [numbers("shared", -5.0), numbers("task:y", -50.0)])
    held_round(variates, 1, first, second)
    assert {scope: value(variates, scope) for scope in scopes} == {"shared": [4.0], "task:x": [10.0], "task:y": [50.0]}


def test_what_a_client_weighs_in_the_mean_is_what_it_said_first():
    variates = ControlVariates([numbers("shared", 0.0).layout])
    held_round(variates, 1, *(update(name, "x", 1, 1.0, [numbers("shared", -4.0)]) for name in "ab"))
    held_round(variates, 2, update("a", "x", 999, 1.0, [numbers("shared", 0.0)], 1))
    assert value(variates) == [(0.0 + 4.0) / 2]  # a's is 4 - 4 - 0


def test_an_update_without_learning_rates_is_passed_over():
    variates = ControlVariates([numbers("shared", 0.0).layout])
    assert held_round(variates, 1, update("a", "x", 1, 0.0, [numbers("shared", -4.0)])) == ""
    assert (value(variates), facts(variates)) == ([0.0], {"since": 1, "known": {}})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"control_round": 0}, "client 'a' has a variate from round 0, expected one from round 1"),
        ({"task": "y"}, "client 'a' had the task 'x' before, and now has 'y'"),
        ({"learning_rate_sum": 1e-39}, "control/shared.w has 1 of 1 values NaN or infinite"),
    ],
)
def test_variates_that_are_no_longer_the_mean_begin_anew(changes, reason):
    variates = ControlVariates([numbers("shared", 0.0).layout])
    held_round(variates, 1, update("a", "x", 1, 1.0, [numbers("shared", -4.0)]))
    said = {"task": "x", "learning_rate_sum": 1.0, "control_round": 1, **changes}
    later = update("a", num_examples=1, components=[numbers("shared", -4.0)], **said)
    assert reason in held_round(variates, 2, later)
    assert (value(variates), variates.broadcast().since, facts(variates)["known"]) == ([0.0], 3, {})


def test_a_component_that_was_discarded_has_all_begin_anew():
    variates = ControlVariates([numbers("shared", 0.0).layout])
    told = held_round(variates, 1, update("a", "x", 1, 1.0, [numbers("shared", -4.0)]), committed={"task:x"})
    assert told == "the round's 'shared' was discarded"
    assert variates.broadcast().since == 2


def test_a_round_that_came_to_nothing_leaves_no_trace():
    variates = ControlVariates([numbers("shared", 0.0).layout])
    variates.begin(RoundContext(1))
    variates.screen(update("a", "x", 1, 1.0, [numbers("shared", -4.0)]))
    held_round(variates, 2, update("b", "x", 1, 1.0, [numbers("shared", -2.0)]))
    assert (value(variates), list(facts(variates)["known"])) == ([2.0], ["b"])


# Over gRPC.


async def push(client, round_, **fields):
    """An update that depends on client and round alone. Returns the slice that it got."""
    header, data = await client.get_slice(round=round_)
    mine = {scope: part for scope, part in data.items() if not scope.startswith("control:")}
    sent = {scope: delta(client.client_id, round_, scope, len(part) // 4) for scope, part in mine.items()}
    slice_ = pb.SliceHeader(run_id=header.run_id, round=header.round)
    slice_.components.extend(one for one in header.components if one.scope in mine)
    header_fields = {
        "kind": pb.UPDATE_KIND_DELTA,
        "num_examples": EXAMPLES[client.client_id],
        "learning_rate_sum": RATES[client.client_id],
        "control_round": round_ - 1,
    } | fields
    await client.push(client.update(slice_, {s: one.numpy().tobytes() for s, one in sent.items()}, **header_fields))
    return header, data


def delta(client_id, round_, scope, count):
    generator = torch.Generator().manual_seed(1000 * round_ + 10 * ord(client_id) + len(scope))
    return 0.1 * torch.randn(count, generator=generator)


async def play(server, rounds):
    """Hold rounds; what a client of each task gets then."""
    async with watching(server, **TASKS) as clients:
        for round_ in rounds:
            for client in clients.values():
                await push(client, round_)
            for client in clients.values():
                await client.until(pb.ROUND_EVENT_KIND_OPENED, round_ + 1)
        slices = [await client.get_slice(round=rounds[-1] + 1) for client in clients.values()]
    return {scope: part for _, data in slices for scope, part in data.items()}


async def test_a_slice_has_the_servers_variates_as_the_formula_has_them(tmp_path):
    async with serving(tmp_path, model(), sections=SECTIONS) as server:
        got = await play(server, (1, 2))
        layout = server.federation.model.components["shared"].layout
        async with WireClient(server, "a", "sst2") as client:
            header, _ = await client.get_slice()
            everything, whole = await client.get_slice(task="", all_tasks=True)
    assert [one.scope for one in header.components] == ["shared", "task:sst2", "control:shared", "control:task:sst2"]
    assert (header.control_since, everything.control_since) == (1, 0)
    assert list(whole) == ["shared", "task:sst2", "task:qqp"]
    control = next(one for one in header.components if one.scope == "control:shared")
    assert [one.name for one in control.tensors] == [f"control/{one.name}" for one in layout.tensors]
    # All were there in both rounds: c is the mean of -Δ / s of the second.
    count = layout.num_elements
    parts = {name: delta(name, 2, "shared", count) / -RATES[name] for name in TASKS}
    expected = (2 * parts["a"] + 6 * parts["b"]) / 8
    assert torch.allclose(torch.frombuffer(bytearray(got["control:shared"]), dtype=torch.float32), expected, atol=1e-6)
    head = torch.frombuffer(bytearray(got["control:task:qqp"]), dtype=torch.float32)
    assert torch.allclose(head, delta("b", 2, "task:qqp", len(head)) / -RATES["b"], atol=1e-6)


async def test_a_run_taken_up_after_every_round_and_within_one_has_the_same_bits(tmp_path):
    async with serving(tmp_path / "whole", model(), sections=SECTIONS) as server:
        expected = await play(server, (1, 2, 3))
        final = model_bytes(server.federation.model)
    for round_ in (1, 2):
        async with serving(tmp_path / "parts", model(seed=round_ - 1), sections=SECTIONS) as server:
            await play(server, (round_,))
    async with serving(tmp_path / "parts", model(seed=4), sections=SECTIONS) as server:
        async with watching(server, **TASKS) as clients:
            await push(clients["b"], 3)
    async with serving(tmp_path / "parts", model(seed=5), sections=SECTIONS) as server:
        async with watching(server, **TASKS) as clients:
            await push(clients["a"], 3)
            await clients["a"].until(pb.ROUND_EVENT_KIND_OPENED, 4)
            slices = [await client.get_slice(round=4) for client in clients.values()]
        assert model_bytes(server.federation.model) == final
    assert {scope: part for _, data in slices for scope, part in data.items()} == expected
    assert [one.stages for one in reports_of(tmp_path / "parts")] == [
        one.stages for one in reports_of(tmp_path / "whole")
    ]


async def test_variates_and_a_server_optimiser_are_remembered_together(tmp_path):
    sections = SECTIONS | {"server_optimizer": {"name": "fedadam"}}
    async with serving(tmp_path / "whole", model(), sections=sections) as server:
        expected = await play(server, (1, 2, 3))
    for round_ in (1, 2, 3):
        async with serving(tmp_path / "parts", model(seed=round_ - 1), sections=sections) as server:
            got = await play(server, (round_,))
    assert got == expected
    with safe_open(tmp_path / "parts" / "checkpoints" / "round-0003.state.safetensors", "pt") as file:
        assert {"momentum/encoder.dense.weight", "control/encoder.dense.weight"} <= set(file.keys())


async def test_a_server_that_went_back_to_an_older_checkpoint_begins_its_variates_anew(tmp_path):
    async with serving(tmp_path, model(), sections=SECTIONS) as server:
        await play(server, (1, 2))
    path = tmp_path / "checkpoints" / "round-0002.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with capture_logs() as logs:
        async with serving(tmp_path, model(), sections=SECTIONS) as server, watching(server, **TASKS) as clients:
            for client in clients.values():
                await push(client, 2, control_round=2, update_id=f"{client.client_id}-again")  # of the lost round
            await clients["a"].until(pb.ROUND_EVENT_KIND_OPENED, 3)
            header, data = await clients["a"].get_slice(round=3)
    assert header.control_since == 3
    assert not any(data["control:shared"] + data["control:task:sst2"])
    (told,) = [line for line in logs if line["event"] == "control_variates.restarted"]
    assert told["reason"] == "client 'a' has a variate from round 2, expected one from round 1"


async def test_restarted_variates_are_0_also_on_the_server_that_resumes_the_run(tmp_path):
    async with serving(tmp_path, model(), sections=SECTIONS) as server:
        await play(server, (1,))
        async with watching(server, **TASKS) as clients:
            await push(clients["a"], 2, control_round=0)
            await push(clients["b"], 2)
            await clients["a"].until(pb.ROUND_EVENT_KIND_OPENED, 3)
    async with serving(tmp_path, model(), sections=SECTIONS) as server, WireClient(server, "a", "sst2") as client:
        header, data = await client.get_slice()
    assert header.control_since == 3
    assert not any(data["control:shared"])
    assert any(data["shared"])


async def test_variates_come_exact_whatever_the_model_comes_in_and_are_not_sent_to_who_has_them(tmp_path):
    large = tiny_model("sst2", "qqp", encoder=TinyEncoder(width=4))
    async with serving(tmp_path, large, sections=SECTIONS) as server:
        await play(server, (1,))
        async with WireClient(server, "a", "sst2") as client:
            header, _ = await client.get_slice(encoding=pb.ENCODING_FLOAT16)
            by_scope = {one.scope: one for one in header.components}
            assert by_scope["shared"].encoding == pb.ENCODING_FLOAT16
            control = by_scope["control:shared"]
            assert control.encoding == pb.ENCODING_FLOAT32
            held = pb.HeldComponent(
                scope="control:shared",
                digest=control.digest,
                num_bytes=control.num_bytes,
                encoding=pb.ENCODING_FLOAT32,
            )
            again, data = await client.get_slice(held=[held])
    assert data["control:shared"] == b""
    assert {one.scope: one.start_offset for one in again.components}["control:shared"] == control.num_bytes


async def test_the_final_evaluation_has_no_variates_and_neither_has_a_run_without_them(tmp_path):
    sections = {"training": SECTIONS["training"] | {"num_rounds": 1}}
    async with serving(tmp_path / "with", model(), sections=sections) as server:
        async with watching(server, **TASKS) as clients:
            for client in clients.values():
                await push(client, 1)
            await clients["a"].until(pb.ROUND_EVENT_KIND_OPENED, 2)
            _, data = await clients["a"].get_slice(round=2)
        assert list(data) == ["shared", "task:sst2"]
    async with serving(tmp_path / "without", model()) as server, WireClient(server, "a", "sst2") as client:
        header, data = await client.get_slice()
        assert (list(data), header.control_since) == (["shared", "task:sst2"], 0)


@pytest.mark.parametrize("rates", [-1.0, 1e-31, 1e31, float("nan"), float("inf")])
async def test_a_sum_of_learning_rates_that_is_none_is_refused_by_name(rates, tmp_path):
    async with serving(tmp_path, model(), min_clients={"sst2": 1}, sections=SECTIONS) as server:
        async with WireClient(server, "a", "sst2") as client:
            await client.watch()
            with pytest.raises(grpc.aio.AioRpcError, match="learning_rate_sum: expected 0, or 1e-30 to 1e") as caught:
                await push(client, 1, learning_rate_sum=rates)
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"training": {"optimizer": "adamw"}}, "needs `training.optimizer: sgd`, got 'adamw'"),
        ({"rounds": {"mode": "async"}}, "needs `rounds.mode: sync`, got 'async'"),
        ({"aggregation": {"task_weighting": "uniform"}}, "needs `aggregation.task_weighting: examples`, got 'uniform'"),
        (
            {"robustness": {"norms": {"action": "clip", "bound": 1}}},
            "needs another `robustness.norms.action` than `clip`",
        ),
        ({"aggregation": {"scaling": 2}}, r"needs `aggregation.scaling: 1.0`, got 2.0"),
        ({"aggregation": {"scaling": "preserve"}}, r"needs `aggregation.scaling: 1.0`, got 'preserve'"),
        ({"training": {"head_epochs": 1}}, "needs `training.head_epochs: 0`, got 1"),
        ({"sharing": {"adaptive": {"policy": "cosine"}}}, "needs `sharing.adaptive.policy: None`, got 'cosine'"),
        (
            {"tasks": {"sst2": {}, "qqp": {"auxiliary": {"weight": 0.5}}}},
            "needs `tasks.qqp.auxiliary` to have a weight and a decay of 1",
        ),
        (
            {"tasks": {"sst2": {}, "qqp": {}}, "clients": [{"client_id": "a", "tasks": ["sst2", "qqp"]}]},
            "needs clients of one task each, got several for 'a'",
        ),
    ],
)
def test_what_control_variates_do_not_go_with_is_refused_in_words(sections, told):
    training = {"control_variates": True, "optimizer": "sgd"} | sections.get("training", {})
    values = sections | {"training": training}
    with pytest.raises(ValueError, match=r"training\.control_variates: ") as caught:
        Config.model_validate(values)
    assert told in str(caught.value)


async def test_a_run_is_not_taken_up_without_its_variates(tmp_path):
    async with serving(tmp_path, model(), sections=SECTIONS) as server:
        await play(server, (1,))
    with pytest.raises(ConfigError, match=r"training\.control_variates: the run has True, got False"):
        async with serving(tmp_path, model(), sections={"training": {"num_rounds": 5, "optimizer": "sgd"}}):
            pass


def test_a_groups_variate_is_the_mean_over_its_own_tasks_clients():
    """Deltas of -1 and -3 at rates that sum up to 1, of 1 and 3 examples: (1 · 1 + 3 · 3) / 4; sst2's isn't in it."""
    layouts = [numbers(scope, 0.0).layout for scope in ("shared", "group:pairs")]
    variates = ControlVariates(layouts, {"shared": ("sst2", "qqp", "stsb"), "group:pairs": ("qqp", "stsb")})
    updates = [
        update("a", "qqp", 1, 1.0, [numbers("shared", -1.0), numbers("group:pairs", -1.0)]),
        update("b", "stsb", 3, 1.0, [numbers("shared", -3.0), numbers("group:pairs", -3.0)]),
        update("c", "sst2", 4, 1.0, [numbers("shared", -8.0)]),
    ]
    assert held_round(variates, 1, *updates) == ""
    assert value(variates, "group:pairs") == [2.5]
    assert value(variates) == [5.25]  # (1 + 9 + 32) / 8
