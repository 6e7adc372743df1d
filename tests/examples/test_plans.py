"""What the example clients do about plans that go beyond one shared encoder: SCAFFOLD, local parameters, shared layers.

Runs of the real server over gRPC, beside a client that is written out here; what is committed is compared with numbers
that PyTorch comes to.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from fedmtl.v1 import federation_pb2 as pb
from torch import Tensor

from fedmtl_core.model.sharing import SharingRules
from fedmtl_server.model import MTLServerModel
from fedmtl_server.server import Server
from fedmtl_server.sharing.policies import Decided, SharingPolicy
from tests.examples.languages import Language, training
from tests.examples.scripted import CODE, CONTROLS, DATA, TASK, ScriptedServer, plan_with, scripted
from tests.server.sharing.test_shared_layers import Layered
from tests.support import TinyEncoder, WireClient, model_bytes, reports_of, serving, specs, tiny_model, watching

NUM_ROWS, NUM_STEPS = 8, 5
"""Of the examples' training."""
OTHERS_EXAMPLES = 3
OWN_SHARE = NUM_ROWS / (NUM_ROWS + OTHERS_EXAMPLES)
"""What an example weighs beside the other client."""
OWN_RATE = 0.25
"""Of the examples' steps, where the plan's optimiser isn't theirs."""
OWN_WIDTH = 16
"""Of a head that the slice doesn't have."""
RATE = 0.3
SGD = {"optimizer": "sgd", "learning_rate": RATE}

Numbers = Mapping[str, Tensor]
"""float32 or float64 `(num_elements,)`, by scope."""


def numbers_in(data: Mapping[str, bytes]) -> dict[str, Tensor]:
    return {scope: torch.frombuffer(bytearray(part), dtype=torch.float32).double() for scope, part in data.items()}


def others_delta(round_: int, scope: str, size: int) -> Tensor:
    """What the other client moves a component by."""
    return torch.linspace(-0.2, 0.3, size) * round_ + 0.01 * len(scope)


async def push_others(client: WireClient, round_: int, **fields: object) -> Numbers:
    """The other client's update of a round; what it got."""
    header, data = await client.get_slice(round=round_)
    model = [component for component in header.components if not component.scope.startswith("control:")]
    deltas = {one.scope: others_delta(round_, one.scope, one.num_bytes // 4).numpy().tobytes() for one in model}
    slice_ = pb.SliceHeader(run_id=header.run_id, round=header.round, components=model)
    fields = {"kind": pb.UPDATE_KIND_DELTA, "num_examples": OTHERS_EXAMPLES, "num_steps": 1} | fields
    await client.push(client.update(slice_, deltas, **fields))
    return numbers_in(data)


def head_loss(head: Tensor) -> Tensor:
    """The loss of a head with two classes on the examples' rows.

    Args:
        head: float64 `(2 * width + 2,)`: its weight, then its bias.
    """
    weight, bias = head[:-2].reshape(2, -1), head[-2:]
    columns = torch.arange(1.0, weight.shape[1] + 1, dtype=torch.float64)
    rows = torch.cos(torch.arange(1.0, NUM_ROWS + 1, dtype=torch.float64)[:, None] * columns)
    rows = rows / rows.norm(dim=1, keepdim=True)
    return torch.nn.functional.cross_entropy(rows @ weight.T + bias, torch.arange(NUM_ROWS) % 2)


def trained_head(head: Tensor, rate: float, correction: Tensor | float = 0.0) -> Tensor:
    """The examples' training of a head, by autograd; a correction is added to the gradients."""
    for _ in range(NUM_STEPS):
        head = head.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(head_loss(head), head)
        head = head - rate * (gradient + correction)
    return head.detach()


def mean(own: Tensor, others: Tensor) -> Tensor:
    """By examples."""
    return OWN_SHARE * own + (1 - OWN_SHARE) * others


async def finish(server: Server, client: WireClient, num_rounds: int) -> None:
    """The other client's part in the final evaluation; then the run is over."""
    await client.until(pb.ROUND_EVENT_KIND_OPENED, num_rounds + 1)
    header, _ = await client.get_slice()
    metrics = {"kind": pb.UPDATE_KIND_METRICS, "components": [], "num_examples": 0}
    await client.push(client.update(header, {}, **metrics))
    async with asyncio.timeout(20):
        await server.run_task


async def test_control_variates_are_kept_and_applied_as_the_contract_says(language: Language, tmp_path: Path):
    """SCAFFOLD with a mean of two clients: each variate is of the last training, the server's is their mean."""
    num_rounds, others_rate_sum, rate_sum = 3, 0.8, NUM_STEPS * RATE
    sections = {"training": {"num_rounds": num_rounds, "control_variates": True, **SGD}}
    model = tiny_model("sst2")
    expected = numbers_in(model_bytes(model))
    server_variate = {scope: torch.zeros_like(one) for scope, one in expected.items()}
    own, others = dict(server_variate), dict(server_variate)
    async with (
        serving(tmp_path / "run", model, min_clients=2, sections=sections) as server,
        training(language, tmp_path / "log", server.address, "a", "sst2") as client,
        watching(server, b="sst2") as clients,
    ):
        for round_ in range(1, num_rounds + 1):
            await clients["b"].until(pb.ROUND_EVENT_KIND_OPENED, round_)
            got = await push_others(clients["b"], round_, learning_rate_sum=others_rate_sum, control_round=round_ - 1)
            for scope, value in expected.items():
                torch.testing.assert_close(got[scope], value, atol=1e-5, rtol=0)
                torch.testing.assert_close(got[f"control:{scope}"], server_variate[scope], atol=1e-5, rtol=0)
                correction = server_variate[scope] - own[scope]
                # The loss of the examples doesn't see the encoder, so that its steps are the correction's alone.
                trained = value - rate_sum * correction if scope == "shared" else trained_head(value, RATE, correction)
                moved = others_delta(round_, scope, len(value)).double()
                own[scope] = own[scope] - server_variate[scope] - (trained - value) / rate_sum
                others[scope] = others[scope] - server_variate[scope] - moved / others_rate_sum
                expected[scope] = mean(trained, value + moved)
            server_variate = {scope: mean(own[scope], others[scope]) for scope in expected}
        await finish(server, clients["b"], num_rounds)
        assert await client.ended() == 0, client.said
    for scope, value in numbers_in(model_bytes(model)).items():
        torch.testing.assert_close(value, expected[scope], atol=1e-5, rtol=0)
    reports = reports_of(tmp_path / "run")[:num_rounds]
    assert [one.stages["control_variates"]["since"] for one in reports] == [1] * num_rounds, (
        "nobody's variates were lost"
    )
    assert [one.stages["control_variates"]["known"]["a"]["round"] for one in reports] == [1, 2, 3]
    assert client.said.count(", accepted") == num_rounds + 1


async def test_a_head_that_clients_keep_for_themselves_is_trained_from_round_to_round_and_never_sent(
    language: Language, tmp_path: Path
):
    """FedPer, and with `head_epochs` FedRep: the examples train nothing but the head anyway."""
    rules = SharingRules(head="local")
    model = MTLServerModel(TinyEncoder(), specs("sst2"), hidden_size=4, sharing=rules)
    expected = numbers_in(model_bytes(model))
    assert list(expected) == ["shared"]
    sections = {"training": {"num_rounds": 2, "head_epochs": 1}}
    async with (
        serving(tmp_path / "run", model, min_clients=2, sections=sections) as server,
        training(language, tmp_path / "log", server.address, "a", "sst2") as client,
        watching(server, b="sst2") as clients,
    ):
        for round_ in (1, 2):
            await clients["b"].until(pb.ROUND_EVENT_KIND_OPENED, round_)
            await push_others(clients["b"], round_)
            moved = others_delta(round_, "shared", len(expected["shared"]))
            expected["shared"] = mean(expected["shared"], expected["shared"] + moved)
        await finish(server, clients["b"], 2)
        assert await client.ended() == 0, client.said
    committed = numbers_in(model_bytes(model))
    assert list(committed) == ["shared"]
    torch.testing.assert_close(committed["shared"], expected["shared"], atol=1e-5, rtol=0)
    heads = [torch.zeros(2 * OWN_WIDTH + 2, dtype=torch.float64)]
    for _ in (1, 2):
        heads.append(trained_head(heads[-1], OWN_RATE))
    first, second, third = (f"{head_loss(head):.4f}" for head in heads)
    assert first == f"{math.log(2):.4f}"
    losses = re.findall(r"round \d: slice .* loss ([\d.]+)(?: -> ([\d.]+))?.*, accepted", client.said)
    assert losses == [(first, second), (second, third), (third, "")], client.said


@pytest.mark.parametrize("head", ["task", "local"])
async def test_parameters_that_an_example_cannot_keep_stop_it_in_words(language: Language, tmp_path: Path, head: str):
    """FedBN's norms are in no component, and an encoder of its own is what the examples don't have."""
    rules = SharingRules(head=head, norms="local")
    model = MTLServerModel(Layered(), specs("sst2"), hidden_size=4, sharing=rules)
    async with (
        serving(tmp_path / "run", model) as server,
        training(language, tmp_path / "log", server.address, "a", "sst2") as client,
    ):
        assert await client.ended() == 1, client.said
        assert server.federation.published.round == 1, "nothing was sent"
    num_local = {"task": 2, "local": 4}[head]
    (error,) = (line for line in client.said.splitlines() if line.startswith("error"))
    keeps = r"error: each client is to keep encoder\.last_norm\.(weight|bias) for itself"
    among = f"one of {num_local} local parameters in the plan; this example can keep its head alone"
    assert re.fullmatch(f"{keeps}, {among}", error)


class ApartAtOnce(SharingPolicy):
    """Layer 1 is each task's own after the first round."""

    def decide(self, round_):
        return Decided({"1": [[task] for task in round_.tasks]})


ADAPTIVE = {"sharing": {"adaptive": {"policy": f"{__name__}:ApartAtOnce", "max_parameters": 4}}}
BY_GROUP = SharingRules(groups={"pairs": ["qqp", "mrpc"]}, layers={"1": "group", "rest": "task"})


@pytest.mark.parametrize(
    ("rules", "sections", "scopes"),
    [
        (BY_GROUP, {}, ["shared", "group:pairs", "task:qqp"]),
        (SharingRules(), ADAPTIVE, ["shared", "task:qqp"]),
    ],
    ids=["groups", "moving"],
)
async def test_whoever_shares_a_layer_it_goes_back_as_it_came_with_the_head_beside_it(
    language: Language, tmp_path: Path, rules, sections, scopes
):
    """In both cases the head's component has encoder parameters too; layers that move do so before the second round."""
    model = MTLServerModel(Layered(), specs("sst2", "qqp", "mrpc"), hidden_size=4, sharing=rules)
    async with (
        serving(tmp_path / "run", model, min_clients={"qqp": 1, "mrpc": 1}, num_rounds=2, sections=sections) as server,
        training(language, tmp_path / "log", server.address, "a", "qqp") as client,
        watching(server, b="mrpc") as clients,
    ):
        await clients["b"].until(pb.ROUND_EVENT_KIND_OPENED, 1)
        await push_others(clients["b"], 1)
        await clients["b"].until(pb.ROUND_EVENT_KIND_OPENED, 2)
        header, data = await clients["b"].get_slice(task="qqp")
        assert [component.scope for component in header.components] == scopes
        before = numbers_in(model_bytes(model))
        expected = numbers_in(data)
        head = header.components[-1]
        first = next(one.offset // 4 for one in head.tensors if one.name == "heads.qqp.weight")
        assert 0 < first < head.tensors[-1].offset // 4, "the head is behind encoder parameters"
        assert head.tensors[-1].name == "heads.qqp.bias"
        expected[head.scope][first:] = trained_head(expected[head.scope][first:], OWN_RATE)
        others = await push_others(clients["b"], 2)
        for scope, value in others.items():
            moved = value + others_delta(2, scope, len(value))
            expected[scope] = mean(expected[scope], moved) if scope in expected else moved
        await finish(server, clients["b"], 2)
        assert await client.ended() == 0, client.said
    committed = numbers_in(model_bytes(model))
    for scope, value in committed.items():
        torch.testing.assert_close(value, expected.get(scope, before[scope]), atol=1e-5, rtol=0)
    assert client.said.count(", accepted") == 3


# A server that keeps to a script.

HEAD = [f"heads.{TASK}.weight", f"heads.{TASK}.bias"]


async def test_what_a_head_of_ones_own_learnt_in_an_update_that_is_lost_is_lost_with_it(
    language: Language, tmp_path: Path
):
    script = ScriptedServer(plan=plan_with(local=HEAD), data={"shared": DATA["shared"]}, refusals=[CODE.ABORTED])
    async with scripted(script) as address, training(language, tmp_path / "log", address, "a", TASK) as client:
        assert await client.ended() == 0, client.said
    assert [header.base_round for header in script.headers] == [1, 2, 3]
    lost, counted, evaluated = script.headers
    for header in (lost, counted):
        assert header.received_metrics["loss"] == pytest.approx(math.log(2))
        assert header.trained_metrics["loss"] < 0.69
    assert evaluated.received_metrics["loss"] == pytest.approx(counted.trained_metrics["loss"])
    assert script.uploaded[2] == {"shared": DATA["shared"]}


@pytest.mark.parametrize(
    ("refusals", "since", "rounds"),
    [([], 1, [0, 1]), ([CODE.UNAVAILABLE], 1, [0, 0, 1]), ([CODE.ABORTED], 1, [0, 0]), ([], 2, [0, 0])],
    ids=["counted", "sent again", "lost", "void"],
)
async def test_control_variates_are_said_to_be_of_the_last_update_that_counted(
    language: Language, tmp_path: Path, refusals, since, rounds
):
    script = ScriptedServer(
        plan=plan_with(optimizer=pb.LOCAL_OPTIMIZER_SGD, learning_rate=RATE),
        data=DATA | CONTROLS,
        control_since={1: 1, 2: since},
        refusals=list(refusals),
    )
    async with scripted(script) as address, training(language, tmp_path / "log", address, "a", TASK) as client:
        assert await client.ended() == 0, client.said
    trained = [header for header in script.headers if header.components]
    assert [header.control_round for header in trained] == rounds
    for header in trained:
        assert header.kind == pb.UPDATE_KIND_DELTA
        assert header.learning_rate_sum == pytest.approx(NUM_STEPS * RATE)
        assert [component.scope for component in header.components] == list(DATA)


async def test_a_delta_is_sent_where_the_plan_would_like_one(language: Language, tmp_path: Path):
    script = ScriptedServer(plan=plan_with(update_kind=pb.UPDATE_KIND_DELTA))
    async with scripted(script) as address, training(language, tmp_path / "log", address, "a", TASK) as client:
        assert await client.ended() == 0, client.said
    head = numbers_in(DATA)[f"task:{TASK}"]
    sent = numbers_in(script.uploaded[1])
    assert script.headers[0].kind == pb.UPDATE_KIND_DELTA
    assert not sent["shared"].any()
    torch.testing.assert_close(sent[f"task:{TASK}"], trained_head(head, OWN_RATE) - head, atol=1e-6, rtol=0)


async def test_a_task_of_a_kind_that_an_example_does_not_know_stops_it_in_words(language: Language, tmp_path: Path):
    script = ScriptedServer(plan=plan_with(task_type=pb.TASK_TYPE_CUSTOM, task_kind="ordinal"))
    async with scripted(script) as address, training(language, tmp_path / "log", address, "a", TASK) as client:
        assert await client.ended() == 1, client.said
    assert script.headers == []
    expected = "error: the plan's task is of the kind TASK_TYPE_CUSTOM with 2 labels; this example knows classification"
    assert expected in client.said
