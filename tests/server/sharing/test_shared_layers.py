"""Layers that groups of tasks share, over real gRPC: averages against plain numpy, and what stays as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fedmtl.v1 import federation_pb2 as pb
from safetensors.numpy import load_file
from torch import nn

from fedmtl_core.errors import ConfigError, UserError
from fedmtl_core.model.sharing import SharingRules
from fedmtl_server.model import MTLServerModel
from tests.support import eventually, model_bytes, serving, specs, watching

OPENED, COMMITTED = pb.ROUND_EVENT_KIND_OPENED, pb.ROUND_EVENT_KIND_COMMITTED

GROUPS = {"pairs": ["qqp", "stsb"]}
RULES = SharingRules(groups=GROUPS, layers={"1": "group", "rest": "task"})


class Layered(nn.Module):
    """Embeddings, two layers and a norm behind them; four numbers wide."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(2, 4)
        self.layer = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.last_norm = nn.LayerNorm(4)


def layered_model(*tasks, rules=RULES):
    torch.manual_seed(0)
    return MTLServerModel(Layered(), specs(*tasks), hidden_size=4, sharing=rules)


def as_floats(data):
    return {scope: np.frombuffer(one, dtype="<f4") for scope, one in data.items()}


def test_a_summary_counts_what_there_is():
    summary = layered_model("sst2", "qqp", "stsb").summary()
    assert summary.scope_parameters == {
        "shared": 8 + 20,  # embeddings and layer 0
        "group:pairs": 20,  # layer 1
        "task:sst2": 20 + 8 + 10,  # layer 1, norm, head
        "task:qqp": 8 + 10,
        "task:stsb": 8 + 5,
    }
    assert summary.shared_parameters == 28
    assert summary.head_parameters == {"sst2": 10, "qqp": 10, "stsb": 5}
    assert summary.total_parameters == 28 + 20 + 38 + 18 + 13


def test_a_tasks_module_is_made_of_its_own_layers_and_lives_in_the_components():
    model = layered_model("sst2", "qqp", "stsb")
    model.components["group:pairs"].buffer.view(torch.float32).fill_(3.0)
    qqp, sst2 = model.module_for("qqp"), model.module_for("sst2")
    assert qqp.tasks == ("qqp",)
    assert qqp.encoder.layer[1].weight.eq(3.0).all()
    assert not sst2.encoder.layer[1].weight.eq(3.0).any()
    with torch.no_grad():
        sst2.encoder.layer[0].weight.fill_(5.0)  # shared by all
    assert qqp.encoder.layer[0].weight.eq(5.0).all()
    assert model.get_model_slice_for_task("stsb")["encoder.layer.0.weight"].eq(5.0).all()
    with pytest.raises(UserError, match="the tasks do not share one encoder"):
        _ = model.module


def test_a_task_is_not_added_where_nothing_says_what_it_would_share():
    model = layered_model("sst2", "qqp", "stsb")
    before = model_bytes(model)
    with pytest.raises(ConfigError, match="sharing: the layers that task 'cola' shares are not defined"):
        model.add_task(specs("cola")[0])
    assert model_bytes(model) == before


def test_a_model_of_which_clients_keep_parts_is_refused_in_words():
    model = layered_model("sst2", rules=SharingRules(head="local"))
    with pytest.raises(
        UserError, match=r"the clients of sst2 keep heads\.sst2\.weight, heads\.sst2\.bias for themselves"
    ):
        model.module_for("sst2")


def test_a_head_is_set_and_got_without_the_layers_that_its_task_has_besides():
    model = layered_model("sst2", "qqp", "stsb")
    before = model.get_model_slice_for_task("sst2")
    head = {name: torch.ones_like(tensor) for name, tensor in model.get_task_head_parameters("sst2").items()}
    assert head.keys() == {"heads.sst2.weight", "heads.sst2.bias"}
    model.set_task_head_parameters("sst2", head)
    after = model.get_model_slice_for_task("sst2")
    assert all(torch.equal(after[name], head.get(name, before[name])) for name in before)


@pytest.mark.parametrize("weighting", ["examples", "uniform"])
async def test_each_layer_is_averaged_over_the_clients_of_the_tasks_that_share_it(tmp_path, weighting):
    model = layered_model("sst2", "qqp", "stsb")
    start = as_floats(model_bytes(model))
    examples = {"a": 1, "b": 2, "c": 5}
    sections = {"aggregation": {"task_weighting": weighting}}
    pushed: dict[str, dict[str, np.ndarray]] = {}
    async with serving(tmp_path, model, sections=sections) as server:
        async with watching(server, a="sst2", b="qqp", c="stsb") as watchers:
            clients = list(watchers.values())
            await clients[0].until(OPENED)
            for number, client in enumerate(clients):
                header, data = await client.get_slice()
                scopes = [component.scope for component in header.components]
                assert scopes == [s for s in model.components if s in scopes]  # from the outside in
                generator = np.random.default_rng(number)
                trained = {
                    scope: (values + generator.standard_normal(values.shape)).astype("<f4")
                    for scope, values in as_floats(data).items()
                }
                pushed[client.client_id] = trained
                update = client.update(
                    header, {s: v.tobytes() for s, v in trained.items()}, num_examples=examples[client.client_id]
                )
                await client.push(update)
            event = await clients[0].until(COMMITTED)
            after = as_floats(model_bytes(model))
            status = await server_status(clients[0])

    share = {"examples": lambda of: {one: examples[one] / sum(examples[o] for o in of) for one in of}}
    share["uniform"] = lambda of: {one: 1 / len(of) for one in of}
    for scope, members in {
        "shared": "abc",
        "group:pairs": "bc",
        "task:sst2": "a",
        "task:qqp": "b",
        "task:stsb": "c",
    }.items():
        weights = share[weighting](members)
        expected = sum(weights[one] * pushed[one][scope].astype(np.float64) for one in members)
        np.testing.assert_allclose(after[scope], expected, rtol=1e-5, atol=1e-6)
        assert not np.allclose(after[scope], start[scope])
    counted = {c.scope: {p.client_id: p.weight for p in c.contributions} for c in event.report.components}
    assert list(counted) == list(model.components)
    assert counted["group:pairs"] == pytest.approx(share[weighting]("bc"))
    assert dict(status.model.scope_parameters) == model.summary().scope_parameters


async def server_status(client) -> pb.GetStatusResponse:
    return await client.stub.GetStatus(pb.GetStatusRequest())


async def test_groups_that_nobody_reported_for_stay_as_they_were_to_the_last_bit(tmp_path):
    model = layered_model("sst2", "qqp", "stsb")
    before = model_bytes(model)
    async with serving(tmp_path, model, min_clients={"sst2": 1}) as server:
        async with watching(server, a="sst2") as watchers:
            client = watchers["a"]
            await client.until(OPENED)
            header, data = await client.get_slice()
            await client.push(client.update(header, {s: (v + 1).tobytes() for s, v in as_floats(data).items()}))
            event = await client.until(COMMITTED)
            after = model_bytes(model)
    assert {scope for scope in before if before[scope] != after[scope]} == {"shared", "task:sst2"}
    assert list(event.report.unchanged_tasks) == ["qqp", "stsb"]


async def test_a_checkpoint_has_every_groups_layers_under_a_name_of_its_own(tmp_path):
    model = layered_model("sst2", "qqp", "stsb")
    async with serving(tmp_path, model):
        pass
    tensors = load_file(tmp_path / "checkpoints" / "round-0000.safetensors")
    assert {name for name in tensors if name.endswith("layer.1.bias")} == {
        "group:pairs/encoder.layer.1.bias",
        "task:sst2/encoder.layer.1.bias",
    }
    assert {"encoder.layer.0.weight", "heads.qqp.bias"} <= tensors.keys()
    values = model.get_model_slice_for_task("stsb")["encoder.layer.1.bias"]
    assert tensors["group:pairs/encoder.layer.1.bias"].tolist() == values.tolist()


async def test_a_run_with_groups_is_taken_up_with_the_same_model_and_not_with_other_groups(tmp_path):
    sections = {"sharing": {"groups": GROUPS, "layers": {"1": "group", "rest": "task"}}}
    model, again = layered_model("sst2", "qqp", "stsb"), layered_model("sst2", "qqp", "stsb")
    async with serving(tmp_path, model, min_clients={"qqp": 1}, num_rounds=2, sections=sections) as server:
        async with watching(server, b="qqp") as watchers:
            client = watchers["b"]
            await client.until(OPENED)
            header, data = await client.get_slice()
            await client.push(client.update(header, {s: (v + 1).tobytes() for s, v in as_floats(data).items()}))
            await client.until(COMMITTED)
            held = model_bytes(model)
    async with serving(tmp_path, again, min_clients={"qqp": 1}, num_rounds=2, sections=sections) as server:
        await eventually(lambda: server.federation.published.round == 2)
        assert model_bytes(again) == held
    with pytest.raises(ConfigError, match=r"sharing\.layers\.1: the run has 'group', got 'task'"):
        async with serving(
            tmp_path,
            again,
            num_rounds=2,
            min_clients={"qqp": 1},
            sections={"sharing": {"groups": GROUPS, "layers": {"1": "task", "rest": "task"}}},
        ):
            pass
