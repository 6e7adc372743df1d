"""What tasks share, decided by how alike their updates are: hand-computed cosines, whole runs, and runs taken up."""

from __future__ import annotations

import asyncio
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from fedmtl.v1 import federation_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from typer.testing import CliRunner

from fedmtl_client.data import EncodedRows, load_task_data
from fedmtl_client.trainer import Trainer
from fedmtl_core.config import AdaptiveConfig, Config, DataConfig, validated
from fedmtl_core.errors import AggregationError, ConfigError, StoreError
from fedmtl_core.model.modeling import TOY_MODEL, load_tokenizer
from fedmtl_core.model.sharing import ModelShape, SharingRules, make_table
from fedmtl_core.tasks.glue import PRESETS
from fedmtl_core.wire.layout import Component
from fedmtl_server.aggregation.delta_products import inner_products_of
from fedmtl_server.aggregation.rearranging import rearranged
from fedmtl_server.commands.app import app
from fedmtl_server.model import MTLServerModel
from fedmtl_server.monitoring.tracking import round_point
from fedmtl_server.saved_runs import load_model, open_run
from fedmtl_server.sharing.policies import (
    Cosine,
    Decided,
    PartStats,
    SharingRound,
    checked,
    make_policy,
)
from tests import federations
from tests.server.sharing.test_shared_layers import Layered
from tests.support import eventually, model_bytes, reports_of, serving, specs, watching

ABC = ("a", "b", "c")
TOGETHER = (("a", "b", "c"),)


def facts(cosines, blocks=TOGETHER, part="0", size=10, tasks=ABC):
    """Deltas of norm 2 with these cosines; a pair that isn't named has 1."""
    products = np.full((len(tasks), len(tasks)), 4.0)
    for pair, cosine in cosines.items():
        i, j = (tasks.index(task) for task in pair)
        products[i, j] = products[j, i] = 4 * cosine
    return PartStats(part, size, blocks, products)


def settings(**given):
    return AdaptiveConfig(**({"split_below": 0.0, "merge_above": 0.5, "patience": 1, "smoothing": 0.0} | given))


def decide(policy, *parts, room=1000, state=None, round_=1, tasks=ABC):
    one = SharingRound(round_, tasks, parts, room, state or {})
    return checked(policy.decide(one), one)


# The policy.


def test_tasks_that_disagree_part_into_clusters_that_agree():
    decided = decide(Cosine(settings()), facts({"ac": -0.5, "bc": -0.25}))
    assert decided.blocks == {"0": (("a", "b"), ("c",))}
    assert decided.state["cosines"]["0"] == {"a b": 1.0, "a c": -0.5, "b c": -0.25}


def test_a_task_between_two_that_disagree_stays_with_the_one_it_is_more_like():
    """b agrees with both; a and c don't with one another, so that not all three can stay together."""
    decided = decide(Cosine(settings()), facts({"ab": 0.25, "bc": 0.75, "ac": -0.5}))
    assert decided.blocks == {"0": (("a",), ("b", "c"))}


def test_between_the_two_thresholds_nothing_moves():
    policy = Cosine(settings())
    assert decide(policy, facts({"ab": 0.25, "ac": 0.25, "bc": 0.25})).blocks == {}
    assert decide(policy, facts({"ab": 0.25, "ac": 0.25, "bc": 0.25}, (("a",), ("b",), ("c",)))).blocks == {}


def test_tasks_that_agree_again_come_together():
    apart = (("a",), ("b",), ("c",))
    decided = decide(Cosine(settings()), facts({"ac": 0.25, "bc": 0.25, "ab": 0.75}, apart))
    assert decided.blocks == {"0": (("a", "b"), ("c",))}


def test_only_what_is_said_often_enough_in_a_row_is_done():
    policy, state = Cosine(settings(patience=3)), {}
    seen = []
    against, between = {"ac": -0.5, "bc": -0.5}, {"ac": 0.25, "bc": 0.25}
    for round_, cosines in enumerate([against, against, between, against, against, against]):
        decided = decide(policy, facts(cosines), state=state, round_=round_)
        seen.append(decided.blocks)
        state = decided.state
    assert seen == [{}, {}, {}, {}, {}, {"0": (("a", "b"), ("c",))}]


def test_cosines_are_smoothed_over_the_rounds_in_which_both_took_part():
    policy = Cosine(settings(smoothing=0.75))
    state = decide(policy, facts({"ab": 0.8})).state
    absent = facts({"ab": 0.0})
    absent.products[1] = absent.products[:, 1] = 0.0  # b sent nothing
    state = decide(policy, absent, state=state).state
    assert state["cosines"]["0"]["a b"] == pytest.approx(0.8)
    state = decide(policy, facts({"ab": -0.4}), state=state).state
    assert state["cosines"]["0"]["a b"] == pytest.approx(0.75 * 0.8 + 0.25 * -0.4)


def test_pairs_that_were_never_there_together_neither_part_nor_come_together():
    alone = facts({})
    alone.products[1:] = alone.products[:, 1:] = 0.0
    assert decide(Cosine(settings()), alone).blocks == {}
    alone = facts({}, (("a",), ("b",), ("c",)))
    alone.products[1:] = alone.products[:, 1:] = 0.0
    assert decide(Cosine(settings()), alone).blocks == {}


def test_products_that_are_no_numbers_are_no_evidence():
    huge = facts({"ac": -0.5, "bc": -0.5})
    huge.products[2, 2] = math.inf
    huge.products[0, 1] = huge.products[1, 0] = math.nan
    decided = decide(Cosine(settings()), huge)
    assert decided.blocks == {}
    assert decided.state["cosines"]["0"].keys() == {"a c", "b c"}


def test_the_layers_that_disagree_most_part_first_as_long_as_there_is_room():
    mild = facts({"ac": -0.1, "bc": -0.1}, part="0", size=10)
    strong = facts({"ac": -0.9, "bc": -0.9}, part="1", size=10)
    policy = Cosine(settings())
    assert list(decide(policy, mild, strong, room=19).blocks) == ["1"]
    assert set(decide(policy, mild, strong, room=20).blocks) == {"0", "1"}
    assert decide(policy, mild, strong, room=9).blocks == {}


def test_what_comes_together_makes_room_for_what_parts():
    parting = facts({"ac": -0.9, "bc": -0.9}, part="0", size=10)
    joining = facts({}, (("a", "b"), ("c",)), part="1", size=10)
    decided = decide(Cosine(settings()), parting, joining, room=0)
    assert decided.blocks == {"0": (("a", "b"), ("c",)), "1": TOGETHER}


def test_what_lacks_room_is_done_as_soon_as_there_is_some():
    policy = Cosine(settings(patience=2))
    state = {}
    for _ in range(3):
        decided = decide(policy, facts({"ac": -0.5, "bc": -0.5}), room=5, state=state)
        assert decided.blocks == {}
        state = decided.state
    assert decide(policy, facts({"ac": -0.5, "bc": -0.5}), room=10, state=state).blocks == {"0": (("a", "b"), ("c",))}


@given(
    st.lists(st.floats(-1, 1), min_size=6, max_size=6),
    st.sampled_from(
        [((0, 1, 2, 3),), ((0,), (1,), (2,), (3,)), ((0, 2), (1, 3)), ((0, 1, 3), (2,))],
    ),
)
def test_whatever_the_cosines_every_task_is_in_one_block_and_what_was_decided_stays(values, numbers):
    tasks = ("a", "b", "c", "d")
    pairs = ["ab", "ac", "ad", "bc", "bd", "cd"]
    blocks = tuple(tuple(tasks[number] for number in block) for block in numbers)
    policy, cosines = Cosine(settings()), dict(zip(pairs, values, strict=True))
    now = decide(policy, facts(cosines, blocks, tasks=tasks), tasks=tasks).blocks.get("0", blocks)
    assert sorted(task for block in now for task in block) == list(tasks)
    for block in now:
        for pair in pairs:
            if set(pair) <= set(block):  # nobody is left together who disagrees
                assert cosines[pair] >= 0 or abs(cosines[pair]) < 1e-12
    again = decide(policy, facts(cosines, now, tasks=tasks), tasks=tasks)
    assert again.blocks == {}


# Its numbers.


def test_inner_products_are_those_of_numpy_wherever_the_deltas_begin():
    generator = np.random.default_rng(0)
    begins, ends = generator.standard_normal((2, 3, 2, 700_000)).astype(np.float32)
    ends[1] = begins[1]  # one that doesn't move
    moves = [[(torch.from_numpy(begins[k, v]), torch.from_numpy(ends[k, v])) for v in range(2)] for k in range(3)]
    deltas = (ends - begins).reshape(3, -1).astype(np.float64)
    np.testing.assert_allclose(inner_products_of(moves), deltas @ deltas.T, rtol=1e-5, atol=1e-3)


def test_what_parts_is_copied_and_what_comes_together_is_the_mean_by_examples():
    shape = ModelShape({"w": "0", "v": "1"}, {task: [f"heads.{task}.b"] for task in ABC})
    plain = make_table(ABC, shape, SharingRules())
    apart = make_table(ABC, shape, SharingRules(), {"0": (("a",), ("b",), ("c",))})
    pairs = make_table(ABC, shape, SharingRules(), {"0": (("a",), ("b", "c"))})
    one = {
        "shared": Component.pack("shared", {"w": torch.tensor([1.0, 2.0]), "v": torch.tensor([3.0])}),
        **{
            f"task:{t}": Component.pack(f"task:{t}", {f"heads.{t}.b": torch.tensor([float(n)])})
            for n, t in enumerate(ABC, 4)
        },
    }
    parted = rearranged(one, plain, apart, {})
    assert list(parted) == ["shared", "task:a", "task:b", "task:c"]
    assert parted["shared"].views().keys() == {"v"}
    assert {name: view.tolist() for name, view in parted["task:b"].views().items()} == {"w": [1, 2], "heads.b.b": [5]}

    for number, task in enumerate(ABC):
        parted[f"task:{task}"].views()["w"].fill_(10.0 * number)
    joined = rearranged(parted, apart, pairs, {"a": 7, "b": 1, "c": 3})
    assert joined["group:b+c"].views()["w"].tolist() == [17.5, 17.5]  # (1 * 10 + 3 * 20) / 4
    assert joined["task:a"] is parted["task:a"]
    assert joined["shared"] is parted["shared"]
    nobody = rearranged(parted, apart, pairs, {"a": 7})
    assert nobody["group:b+c"].views()["w"].tolist() == [15.0, 15.0]
    whole = rearranged(joined, pairs, plain, {"a": 4, "b": 1, "c": 3})
    assert whole["shared"].views()["w"].tolist() == [8.75, 8.75]  # (4 * 0 + 4 * 17.5) / 8


# Settings.


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"adaptive": {"policy": "cosin"}}, "did you mean 'cosine'?"),
        ({"adaptive": {"split_below": 0.5, "merge_above": 0.5}}, "`merge_above` must be above `split_below`"),
        (
            {"adaptive": {"policy": "cosine", "layers": [7]}, "layers": {"6-8": "task"}},
            "layer 7 is in `layers`, and sta",
        ),
        ({"adaptive": {"policy": "cosine", "layers": ["x"]}}, "expected a layer's number, a range"),
        (
            {"adaptive": {"max_parameters": 0.5}},
            "sharing.adaptive.max_parameters: input should be greater than or equal",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused_in_words(sections, expected):
    with pytest.raises(ConfigError, match=re.escape(expected)):
        validated({"tasks": {"sst2": {}, "qqp": {}}, "sharing": sections}, "the file")


def test_asynchronous_rounds_are_refused():
    sections = {"tasks": {"sst2": {}}, "sharing": {"adaptive": {"policy": "cosine"}}, "rounds": {"mode": "async"}}
    with pytest.raises(ConfigError, match=r"sharing\.adaptive: needs `rounds\.mode: sync`, got 'async': layers can't"):
        validated(sections, "the file")


@pytest.mark.parametrize(
    ("decided", "expected"),
    [
        (Decided({"5": TOGETHER}), "the policy moves '5'; only 0 may move"),
        (Decided({"0": (("a", "b"),)}), "0: expected each of the tasks a, b, c in one block"),
        (Decided({"0": (("a", "b", "c"), ())}), "expected each of the tasks a, b, c in one block"),
        (Decided({}, {"x": float("nan")}), "expected blocks of tasks and a JSON state"),
    ],
)
def test_a_policy_of_ones_own_that_answers_nonsense_is_told_so(decided, expected):
    with pytest.raises(AggregationError, match=re.escape(expected)):
        checked(decided, SharingRound(1, ABC, [facts({})], 0))


def test_the_policy_that_the_documentation_shows_can_be_had(tmp_path, monkeypatch):
    text = (Path(__file__).parents[3] / "docs" / "sharing.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "my_sharing.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (section,) = (block for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if "my_sharing:" in block)
    section = yaml.safe_load(section)["sharing"]["adaptive"]
    policy = make_policy(AdaptiveConfig.model_validate(section))
    assert policy is not None
    seen = [decide(policy, facts({}), round_=round_).blocks for round_ in (4, 5, 6)]
    assert seen == [{}, {"0": (("a",), ("b",), ("c",))}, {}]


def test_a_policy_of_ones_own_has_its_options(tmp_path, monkeypatch):
    (tmp_path / "apart_from.py").write_text(
        "from fedmtl_server.sharing.policies import Decided, SharingPolicy\n"
        "class Apart(SharingPolicy):\n"
        "    def decide(self, round_):\n"
        "        due = round_.round == self.settings.options['round']\n"
        "        return Decided({one.part: [[t] for t in round_.tasks] for one in round_.parts} if due else {})\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for due in (2, 3):
        policy = make_policy(AdaptiveConfig(policy="apart_from:Apart", options={"round": due}))
        assert policy is not None
        seen = [bool(decide(policy, facts({}), round_=round_).blocks) for round_ in (1, 2, 3)]
        assert seen == [round_ == due for round_ in (1, 2, 3)]


# Whole runs. A client moves each layer by a direction that is its task's, so that cosines are certain.

CLIENTS = {"x": "sst2", "y": "qqp", "z": "stsb"}
EXAMPLES = {"x": 1, "y": 2, "z": 3}
ADAPTIVE = {"policy": "cosine", "patience": 1, "smoothing": 0.0, "max_parameters": 2.0}


def layered_model(seed=0):
    torch.manual_seed(seed)
    return MTLServerModel(Layered(), specs("sst2", "qqp", "stsb"), hidden_size=4)


def direction(client_id, name, round_):
    """In layer 1, z moves against x and y in rounds 1 and 2, and with them afterwards; elsewhere all agree."""
    if client_id == "z" and ".layer.1." in name and round_ <= 2:
        return -1.0
    return 1.0


def trained(header, data, client_id, round_):
    pushed = {}
    for component in header.components:
        values = np.frombuffer(data[component.scope], "<f4").copy()
        for spec in component.tensors:
            first, size = spec.offset // 4, int(np.prod(spec.shape))
            step = np.linspace(0.5, 1.5, size, dtype=np.float32) * (1 + 0.1 * round_)
            values[first : first + size] += np.float32(direction(client_id, spec.name, round_)) * step
        pushed[component.scope] = values.tobytes()
    return pushed


async def push(client, round_):
    header, data = await client.get_slice(round=round_)
    await client.push(
        client.update(header, trained(header, data, client.client_id, round_), num_examples=EXAMPLES[client.client_id])
    )


async def play(server, rounds):
    async with watching(server, **CLIENTS) as clients:
        for round_ in rounds:
            for client in clients.values():
                await push(client, round_)
            await clients["x"].until(pb.ROUND_EVENT_KIND_OPENED, round_ + 1)
    return model_bytes(server.federation.model)


def sections(**more):
    return {"sharing": {"adaptive": ADAPTIVE}, **more}


async def test_a_layer_on_which_tasks_disagree_parts_and_comes_together_again(tmp_path):
    model = layered_model()
    before = {name: tensor.numpy() for name, tensor in model.get_shared_parameters().items()}
    async with serving(tmp_path, model, num_rounds=4, sections=sections()) as server:
        await play(server, [1])
        assert model.sharing.scopes == ("shared", "group:sst2+qqp", "task:sst2", "task:qqp", "task:stsb")
        slices = {task: model.get_model_slice_for_task(task) for task in ("sst2", "qqp", "stsb")}
        name = "encoder.layer.1.weight"
        step = np.linspace(0.5, 1.5, 16, dtype=np.float32).reshape(4, 4) * 1.1
        average = before[name] + step * (1 + 2 - 3) / 6  # by examples, z against x and y
        for task in slices:  # the round's average is what each begins with
            np.testing.assert_allclose(slices[task][name], average, atol=1e-6)
        await play(server, [2])
        step = np.linspace(0.5, 1.5, 16, dtype=np.float32).reshape(4, 4) * 1.2
        after = {task: model.get_model_slice_for_task(task)[name].numpy() for task in slices}
        np.testing.assert_allclose(after["qqp"], average + step, atol=1e-6)  # each group its own way
        np.testing.assert_allclose(after["stsb"], average - step, atol=1e-6)
        await play(server, [3])  # they agree: the mean of 3 examples' and 3 examples'
        step3 = np.linspace(0.5, 1.5, 16, dtype=np.float32).reshape(4, 4) * 1.3
        np.testing.assert_allclose(model.get_shared_parameters()[name], average + step3, atol=1e-5)
        assert model.sharing.is_one_model
    reports = reports_of(tmp_path)
    assert [dict(one.moved) for one in reports] == [
        {"1": [["sst2", "qqp", "stsb"]]},
        {},
        {"1": [["sst2", "qqp"], ["stsb"]]},
    ]
    assert [dict(one.sharing) for one in reports] == [
        {"1": [["sst2", "qqp"], ["stsb"]]},
        {"1": [["sst2", "qqp"], ["stsb"]]},
        {"1": [["sst2", "qqp", "stsb"]]},
    ]
    assert [round_point(one).metrics["blocks/1"] for one in reports] == [2, 2, 1]
    assert reports[0].stages["sharing"]["policy"]["cosines"]["1"]["qqp stsb"] == pytest.approx(-1)
    assert reports[0].stages["sharing"]["policy"]["cosines"]["0"]["qqp stsb"] == pytest.approx(1)


@pytest.mark.parametrize("optimizer", ["fedavg", "fedavgm", "fedadam"])
async def test_a_run_that_is_killed_across_a_move_goes_on_to_the_same_bits(tmp_path, optimizer):
    """After each round, and in the middle of it."""
    more = {"server_optimizer": {"name": optimizer}, "robustness": {"norms": {"action": "clip", "median_factor": 2}}}
    given = {"sections": sections(**more), "num_rounds": 5, "min_clients": 1}
    async with serving(tmp_path / "whole", layered_model(), **given) as server:
        expected = await play(server, (1, 2, 3, 4))
    for round_ in (1, 2, 3, 4):
        async with serving(tmp_path / "parts", layered_model(seed=round_ - 1), **given) as server:
            async with watching(server, **CLIENTS) as clients:
                await push(clients["y"], round_)
        async with serving(tmp_path / "parts", layered_model(seed=9), **given) as server:
            assert [one.client_id for one in server.federation.status().clients if one.reported] == ["y"]
            async with watching(server, **CLIENTS) as clients:
                await push(clients["x"], round_)
                await push(clients["z"], round_)
                await clients["x"].until(pb.ROUND_EVENT_KIND_OPENED, round_ + 1)
            got = model_bytes(server.federation.model)
    assert got == expected
    whole, parts = (reports_of(tmp_path / folder) for folder in ("whole", "parts"))
    assert [one.stages["sharing"] for one in whole] == [one.stages["sharing"] for one in parts]
    assert any(one.moved for one in whole)


async def test_a_server_that_ends_in_the_middle_of_a_moves_commit_makes_it_again(tmp_path, monkeypatch):
    """The checkpoint with the layers moved is on disk, the history knows nothing of it: it is of no account."""
    given = {"sections": sections(server_optimizer={"name": "fedavgm"}), "num_rounds": 3, "min_clients": 1}
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
    checkpoint = tmp_path / "parts" / "checkpoints" / "round-0001.safetensors"
    assert "group:sst2+qqp/encoder.layer.1.weight" in load_file(checkpoint)
    async with serving(tmp_path / "parts", layered_model(seed=3), **given) as server:
        await eventually(lambda: server.federation.published.round == 2)
        assert model_bytes(server.federation.model) == expected
        assert server.federation.model.sharing.scopes[1] == "group:sst2+qqp"


async def test_runs_show_and_the_status_say_what_has_moved(tmp_path):
    async with serving(tmp_path, layered_model(), num_rounds=3, sections=sections()) as server:
        await play(server, [1])
        async with watching(server, **CLIENTS) as clients:
            status = await clients["x"].stub.GetStatus(pb.GetStatusRequest())
    assert dict(status.model.scope_parameters) == {
        "shared": 8 + 20 + 8,
        "group:sst2+qqp": 20,
        "task:sst2": 10,
        "task:qqp": 10,
        "task:stsb": 20 + 5,
    }
    shown = CliRunner().invoke(app, ["runs", "show", str(tmp_path), "--round", "1"])
    assert shown.exit_code == 0, shown.output
    assert "1: sst2+qqp+stsb to sst2+qqp | stsb" in shown.output


async def test_the_checkpoint_of_a_round_says_who_shares_what_then(tmp_path, monkeypatch):
    async with serving(tmp_path, layered_model(), num_rounds=4, sections=sections()) as server:
        expected = await play(server, [1])
    names = load_file(tmp_path / "checkpoints" / "round-0001.safetensors").keys()
    assert "group:sst2+qqp/encoder.layer.1.weight" in names
    monkeypatch.setattr(MTLServerModel, "from_config", lambda *_, **__: layered_model(seed=5))
    assert model_bytes(load_model(open_run(tmp_path), 1)) == expected
    (tmp_path / "history.sqlite").unlink()
    assert model_bytes(load_model(open_run(tmp_path), 1)) == expected


async def test_layers_that_the_configuration_names_never_move_nor_those_that_are_not_to(tmp_path):
    given = sections()
    given["sharing"] = {"adaptive": ADAPTIVE | {"layers": [0, "embeddings"]}}
    async with serving(tmp_path, layered_model(), num_rounds=3, sections=given) as server:
        await play(server, [1, 2])
        assert server.federation.model.sharing.is_one_model


async def test_the_server_keeps_no_more_parameters_than_it_may(tmp_path):
    given = {"sharing": {"adaptive": ADAPTIVE | {"max_parameters": 1.2}}}  # layer 1 has 20 of 56
    async with serving(tmp_path, layered_model(), num_rounds=3, sections=given) as server:
        await play(server, [1, 2])
        assert server.federation.model.sharing.is_one_model


async def test_a_client_that_holds_differences_gets_what_has_moved_exact(tmp_path):
    """And what hasn't isn't sent again."""
    async with serving(tmp_path, layered_model(), num_rounds=3, sections=sections()) as server:
        async with watching(server, **CLIENTS) as clients:
            header, _ = await clients["x"].get_slice(round=1, encoding=pb.ENCODING_INT8)
            held = [pb.HeldComponent(scope=c.scope, digest=c.digest, num_bytes=c.num_bytes) for c in header.components]
            for client in clients.values():
                await push(client, 1)
            await clients["x"].until(pb.ROUND_EVENT_KIND_OPENED, 2)
            header, data = await clients["x"].get_slice(round=2, encoding=pb.ENCODING_INT8, held=held)
            model = server.federation.model
    moved = {component.scope: component for component in header.components}
    assert moved["shared"].encoding == pb.ENCODING_FLOAT32  # its table of contents has changed
    assert moved["shared"].base_digest == b""
    assert moved["task:sst2"].encoding == pb.ENCODING_INT8
    assert data["group:sst2+qqp"] == model.components["group:sst2+qqp"].buffer.numpy().tobytes()


# With FedMTL's own clients, whose models go along.

TO_AND_FRO = """
from fedmtl_server.sharing.policies import Decided, SharingPolicy

class ToAndFro(SharingPolicy):
    def decide(self, round_):
        apart, together = [["sst2"], ["qqp"]], [["sst2", "qqp"]]
        blocks = {1: {"1": apart, "pooler": apart}, 2: {"0": apart}, 3: {"1": together}}
        return Decided(blocks.get(round_.round, {}))
"""


@pytest.mark.parametrize("encoding", ["float32", "int8"])
def test_clients_follow_every_move(tmp_path, monkeypatch, encoding):
    (tmp_path / "to_and_fro.py").write_text(TO_AND_FRO)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    config = Config.model_validate(
        {
            "model": {"server_model": TOY_MODEL, "head_dropout": 0},
            "training": {"num_rounds": 4, "local_epochs": 1, "learning_rate": 1e-3, "max_length": 32},
            "server": {"port": 0},
            "rounds": {"rejoin_grace_s": 0.5},
            "wire": {"upload": encoding, "download": encoding},
            "sharing": {"adaptive": {"policy": "to_and_fro:ToAndFro"}},
            "tasks": {
                task: {"data": {"builtin": task}, "train_samples": 32, "val_samples": 20} for task in ("sst2", "qqp")
            },
            "clients": [{"client_id": "a", "task": "sst2"}, {"client_id": "b", "task": "qqp"}],
        }
    )
    _, clients = federations.run(config, tmp_path / "run")
    reports = reports_of(tmp_path / "run")
    assert [set(one.moved) for one in reports] == [{"1", "pooler"}, {"0"}, {"1"}, set(), set()]
    model = load_model(open_run(tmp_path / "run"), 4)
    assert model.sharing.scopes_for("qqp") == ("shared", "task:qqp")
    assert {name.split(".")[1] for name in model.sharing.tensors("task:qqp")} == {"encoder", "pooler", "qqp"}
    tokenizer = load_tokenizer(TOY_MODEL)
    for client in clients:  # what each measures in the end is the model that the server has for its task
        (task,) = client.tasks
        spec = PRESETS[task]
        rows = load_task_data(spec, DataConfig(builtin=task)).validation.head(20)
        trainer = Trainer(spec, config.plan(task), torch.device("cpu"))
        measured = trainer.evaluate(model.module_for(task), EncodedRows(rows, spec, tokenizer, 32))
        tolerance = 1e-5 if encoding == "float32" else 0.05  # what the last difference left out
        assert client.rounds[5].received_metrics["loss"] == pytest.approx(measured["loss"], rel=tolerance)
