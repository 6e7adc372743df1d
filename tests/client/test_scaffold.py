"""SCAFFOLD, both sides of it together, on quadratics whose optimum is known; and a client's side alone."""

import dataclasses
from pathlib import Path

import pytest
import torch

from examples.own_trainer.layerwise import LayerwiseTrainer
from fedmtl_client.scaffold import ControlVariates
from fedmtl_client.trainer import Trainer
from fedmtl_core.errors import ConfigError
from fedmtl_core.wire.controls import control_layout
from fedmtl_core.wire.encoded import EncodedComponent
from fedmtl_core.wire.layout import Component
from fedmtl_server.aggregation.aggregator import ClientUpdate, MTLAggregator
from fedmtl_server.aggregation.stages import control_variates as server_side
from fedmtl_server.aggregation.stages.base import Ending
from fedmtl_server.aggregation.values import RoundContext
from tests.client.test_trainer import CPU, PLAN, setting
from tests.federations import loaded, run
from tests.quadratics import PLAN as GRADIENT_DESCENT
from tests.quadratics import Point, Quadratic, QuadraticTrainer, Steps, optimum
from tests.support import reports_of

QUADRATICS = {
    "a": Quadratic([1.0, 2.0], [4.0, -1.0]),
    "b": Quadratic([3.0, 0.5], [-2.0, 3.0]),
    "c": Quadratic([0.5, 1.0], [1.0, 9.0]),
}
EXAMPLES = {"a": 1, "b": 4, "c": 5}
LOCAL_STEPS = {"a": 12, "b": 10, "c": 8}
RATE = 0.05
LOCAL_PLAN = dataclasses.replace(GRADIENT_DESCENT, learning_rate=RATE)


def packed(w):
    return Component.pack("shared", {"encoder.w": torch.as_tensor(w, dtype=torch.float32)})


def number(w, name="control/encoder.w"):
    """A variate of the component above."""
    component = Component(control_layout(packed(w).layout))
    component.views()[name].copy_(torch.tensor(w))
    return component


class Federation:
    """Rounds of clients whose losses are quadratics, without a wire."""

    def __init__(self, names="abc"):
        self.w = [0.0, 0.0]
        self.round = 0
        self.server = server_side.ControlVariates([packed(self.w).layout])
        self.clients = {name: ControlVariates() for name in names}

    def hold_round(self, names, *, corrected=True):
        self.round += 1
        base, updates = packed(self.w), []
        self.server.begin(RoundContext(self.round, {"shared": base}))
        for name in names:
            client, model = self.clients[name], Point(self.w)
            client.begin(
                {"shared": self.server.broadcast().components["control:shared"]}, self.server.broadcast().since
            )
            result = QuadraticTrainer(
                QUADRATICS[name], dataclasses.replace(GRADIENT_DESCENT, learning_rate=RATE)
            ).train(
                model,
                Steps(LOCAL_STEPS[name]),
                self.round,
                seed=0,
                correct=client.correction(model) if corrected else None,
            )
            delta = packed(model.w)
            delta.subtract(base)
            client_round = client.round
            client.trained(self.round, [EncodedComponent.exact(delta)], result.learning_rate_sum)
            client.counted()
            update = ClientUpdate(
                *(name, "sst2", EXAMPLES[name], {"shared": delta}, "delta"),
                extras={
                    "control_variates": {
                        "learning_rate_sum": result.learning_rate_sum,
                        "control_round": client_round,
                    }
                },
            )
            self.server.screen(update.screened(self.round))
            updates.append(update)
        assert self.server.end(Ending(self.round, {"shared"})).notice is None
        self.w = MTLAggregator().aggregate_mtl_updates(updates, {"shared": base})["shared"]["encoder.w"].tolist()

    def mean_of_the_clients(self):
        """Of those that ever took part, weighted by their examples."""
        own = {name: client._own["shared"] for name, client in self.clients.items() if client._own}
        total = sum(EXAMPLES[name] for name in own)
        return [
            sum(EXAMPLES[name] / total * one.views()["control/encoder.w"][i].item() for name, one in own.items())
            for i in range(2)
        ]


def test_with_many_unequal_local_steps_rounds_end_at_the_optimum_where_the_plain_average_ends_elsewhere():
    best = optimum(list(QUADRATICS.values()), [n / 10 for n in EXAMPLES.values()])
    # Without correction τ steps from w lead to b + (1 - rate a)^τ (w - b), so that the rounds end where
    # Σ p (1 - (1 - rate a)^τ) (b - w) = 0.
    plain = []
    for i in range(2):
        pulls = {
            name: EXAMPLES[name] * (1 - (1 - RATE * q.curvature[i]) ** LOCAL_STEPS[name])
            for name, q in QUADRATICS.items()
        }
        plain.append(sum(pulls[name] * q.minimum[i] for name, q in QUADRATICS.items()) / sum(pulls.values()))
    ends = {}
    for corrected in (True, False):
        federation = Federation()
        for _ in range(60):
            federation.hold_round("abc", corrected=corrected)
        ends[corrected] = federation.w
    assert ends[False] == pytest.approx(plain, abs=1e-3)
    assert ends[True] == pytest.approx(best, abs=1e-3)
    assert max(abs(x - y) for x, y in zip(plain, best, strict=True)) > 0.1


def test_rounds_of_some_of_the_clients_end_at_the_optimum_of_all_and_the_servers_variate_is_the_mean_of_theirs():
    federation = Federation()
    for names in ("a", "ab", "c", "b", "abc", "bc"):  # some come anew
        federation.hold_round(names)
        server = federation.server.broadcast().components["control:shared"].views()["control/encoder.w"].tolist()
        assert server == pytest.approx(federation.mean_of_the_clients(), abs=1e-4)
    best = optimum(list(QUADRATICS.values()), [n / 10 for n in EXAMPLES.values()])
    for _ in range(60):
        federation.hold_round("abc")
    assert federation.w == pytest.approx(best, abs=1e-3)


def test_a_client_that_has_lost_its_variate_is_noticed_and_all_begin_anew():
    federation = Federation()
    federation.hold_round("abc")
    federation.clients["b"] = ControlVariates()
    with pytest.raises(AssertionError, match="client 'b' has a variate from round 0, expected one from round 1"):
        federation.hold_round("abc")
    server = federation.server.broadcast().components["control:shared"]
    assert server.views()["control/encoder.w"].tolist() == [0.0, 0.0]
    best = optimum(list(QUADRATICS.values()), [n / 10 for n in EXAMPLES.values()])
    for _ in range(60):
        federation.hold_round("abc")
    assert federation.w == pytest.approx(best, abs=1e-3)
    assert federation.server.broadcast().since == 3


def test_the_correction_is_the_servers_variate_minus_the_clients_own():
    client, model = ControlVariates(), Point([1.0, 2.0])
    client.begin({"shared": number([0.5, -1.0])}, since=1)
    # c_i = 0 - c - Δ / s = (-0.5, 1) - (3, -2) / 0.5
    client.trained(1, [EncodedComponent.exact(packed([3.0, -2.0]))], 0.5)
    client.counted()
    client.begin({"shared": number([2.0, 2.0])}, since=1)
    correct = client.correction(model)
    model.encoder.w.grad = torch.tensor([10.0, 20.0])
    correct()
    assert model.encoder.w.grad.tolist() == pytest.approx([10 + 2 - -6.5, 20 + 2 - 5])
    model.encoder.w.grad = None  # the loss doesn't see it
    correct()
    assert model.encoder.w.grad.tolist() == pytest.approx([8.5, -3.0])


def test_an_update_that_does_not_count_leaves_the_clients_variate_as_it_was():
    client = ControlVariates()
    client.begin({"shared": number([0.0, 0.0])}, since=1)
    client.trained(1, [EncodedComponent.exact(packed([3.0, -2.0]))], 0.5)
    client.begin({"shared": number([1.0, 1.0])}, since=1)
    assert client.round == 0
    model = Point([0.0, 0.0])
    client.correction(model)()
    assert model.encoder.w.grad.tolist() == [1.0, 1.0]
    client.trained(2, [EncodedComponent.exact(packed([3.0, -2.0]))], 0.0)  # of such steps nothing can be told
    client.counted()
    assert client.round == 0


@pytest.mark.parametrize(("since", "expected"), [(3, 3), (4, 0)])
def test_a_clients_variate_from_before_the_servers_began_is_void(since, expected):
    client = ControlVariates()
    client.begin({"shared": number([0.0, 0.0])}, since=1)
    client.trained(3, [EncodedComponent.exact(packed([3.0, -2.0]))], 0.5)
    client.counted()
    client.begin({"shared": number([0.0, 0.0])}, since=since)
    assert client.round == expected


def test_a_trainer_of_several_learning_rates_is_refused():
    spec, model, rows = setting()
    trainer = LayerwiseTrainer(spec, PLAN, CPU, decay=0.5)
    with pytest.raises(ConfigError, match=r"training\.control_variates: expected a trainer with one"):
        trainer.train(model, rows, 1, seed=1, correct=lambda: None)


def test_the_result_has_the_sum_of_the_steps_learning_rates():
    spec, model, rows = setting(rows=64)  # 2 batches x 2 epochs x 4 rounds
    plan = dataclasses.replace(PLAN, optimizer="sgd", warmup_ratio=0.25)
    trainer = Trainer(spec, plan, CPU)
    sums = [trainer.train(model, rows, round_, seed=1).learning_rate_sum for round_ in (1, 2)]
    # over 16 steps 0, 1/4, 1/2, 3/4, then 12/12, 11/12, ... of the peak
    assert sums == pytest.approx([1e-3 * 1.5, 1e-3 * (12 + 11 + 10 + 9) / 12])


@pytest.mark.parametrize("wire", [{}, {"upload": "int8", "download": "float16"}])
def test_over_grpc_clients_and_server_keep_the_same_variates_from_round_to_round(wire, tmp_path):
    rows = "{train_samples: 64, val_samples: 10, data: {builtin: %s}}"
    config = loaded(
        Path(__file__).parents[2] / "configs" / "demo.yaml",
        *("training.num_rounds=3", "training.local_epochs=2", "training.learning_rate=0.05", "training.warmup_ratio=0"),
        *("training.optimizer=sgd", "training.control_variates=true"),
        *(f"wire.{key}={value}" for key, value in wire.items()),
        f"tasks={{sst2: {rows % 'sst2'}, qqp: {rows % 'qqp'}}}",
        "clients=[{client_id: a, task: sst2, shard: 1/2}, {client_id: b, task: sst2, shard: 2/2}, "
        "{client_id: c, task: qqp}]",
    )
    run(config, tmp_path)
    reports = reports_of(tmp_path)
    assert [one.stages["control_variates"]["since"] for one in reports] == [1, 1, 1, 1]  # nobody's was lost
    known = {name: (one["task"], one["round"]) for name, one in reports[-1].stages["control_variates"]["known"].items()}
    assert known == {"a": ("sst2", 3), "b": ("sst2", 3), "c": ("qqp", 3)}


class OldLoop(Trainer):
    def train(self, model, rows, round_, *, seed, on_step, should_stop):
        raise AssertionError("it isn't asked to train")


def test_a_trainer_whose_loop_cannot_be_corrected_is_refused_in_words(tmp_path):
    rows = "{train_samples: 64, val_samples: 10, data: {builtin: sst2}}"
    config = loaded(
        Path(__file__).parents[2] / "configs" / "demo.yaml",
        *("training.num_rounds=1", "training.optimizer=sgd", "training.control_variates=true"),
        f"training.trainer={OldLoop.__module__}:OldLoop",
        f"tasks={{sst2: {rows}}}",
        "clients=[{client_id: a, task: sst2}]",
    )
    with pytest.raises(
        ConfigError, match=r"control_variates: expected a trainer whose `train` has a parameter `correct`, got Old"
    ):
        run(config, tmp_path)
