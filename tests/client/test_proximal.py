"""FedProx, against the fixed points that the paper's objective has on quadratics."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from fedmtl_client.proximal import ProximalTerm
from fedmtl_server.aggregation.aggregator import ClientUpdate, MTLAggregator
from fedmtl_server.storage.history import History
from fedmtl_server.storage.paths import HISTORY_FILE
from tests.federations import loaded, run
from tests.quadratics import PLAN, Point, Quadratic, QuadraticTrainer, Steps, optimum

FIRST, SECOND = Quadratic([1.0, 4.0], [2.0, -1.0]), Quadratic([3.0, 2.0], [-2.0, 3.0])


def held(mu, **plan):
    return dataclasses.replace(PLAN, proximal_mu=mu, **plan)


@pytest.mark.parametrize("mu", [0.0, 0.5, 4.0])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_client_ends_where_its_loss_and_the_distance_to_the_received_model_balance(mu, optimizer):
    model = Point([1.0, 1.0])
    # AdamW's steps only end with its learning rate, which falls to 0 in a run of one round.
    plan = held(mu, optimizer=optimizer, **({} if optimizer == "sgd" else {"num_rounds": 1, "learning_rate": 0.05}))
    QuadraticTrainer(FIRST, plan).train(model, Steps(1000), 1, seed=0)
    # a (w - b) + mu (w - 1) = 0
    assert model.w == pytest.approx([(1 * 2 + mu) / (1 + mu), (4 * -1 + mu) / (4 + mu)], abs=2e-3)


def test_rounds_end_at_the_fixed_point_of_proximal_steps_which_nears_the_optimum_as_mu_grows():
    shares = (0.25, 0.75)
    best, distances = optimum([FIRST, SECOND], shares), []
    for mu in (0.0, 1.0, 8.0):
        w = [0.0, 0.0]
        for round_ in range(1, 46):
            updates = []
            for name, quadratic, num_examples in (("a", FIRST, 1), ("b", SECOND, 3)):
                model = Point(w)
                QuadraticTrainer(quadratic, held(mu, learning_rate=0.15)).train(model, Steps(80), round_, seed=0)
                updates.append(ClientUpdate.from_parameters(name, "sst2", num_examples, {"encoder.w": model.encoder.w}))
            w = MTLAggregator().aggregate_mtl_updates(updates)["shared"]["encoder.w"].tolist()
        # w = Σ p (a b + mu w) / (a + mu), so Σ (p a / (a + mu)) (b - w) = 0
        expected = []
        for i in range(2):
            first, second = (
                p * q.curvature[i] / (q.curvature[i] + mu) for p, q in zip(shares, (FIRST, SECOND), strict=True)
            )
            expected.append((first * FIRST.minimum[i] + second * SECOND.minimum[i]) / (first + second))
        assert w == pytest.approx(expected, abs=1e-4)
        distances.append(math.dist(w, best))
    assert distances[2] < 0.5 * distances[1] < 0.5 * distances[0]


def test_the_terms_gradient_is_the_one_of_autograd_and_clipping_sees_both():
    plain, proximal = Point([3.0, -2.0]), Point([3.0, -2.0])
    term = ProximalTerm(proximal.parameters(), 0.7)
    received = torch.tensor([3.0, -2.0])
    for model in (plain, proximal):
        with torch.no_grad():
            model.encoder.w.add_(torch.tensor([0.5, -1.5]))
    (FIRST.loss(plain.encoder.w) + 0.7 / 2 * (plain.encoder.w - received).square().sum()).backward()
    FIRST.loss(proximal.encoder.w).backward()
    term.add_gradient()
    assert proximal.encoder.w.grad.tolist() == pytest.approx(plain.encoder.w.grad.tolist())

    model = Point([0.0, 0.0])
    QuadraticTrainer(FIRST, held(5.0, max_grad_norm=0.1)).train(model, Steps(30), 1, seed=0)
    # Clipped together, the direction of a step is that of the whole objective's gradient, here the negative of it.
    assert model.encoder.w.grad.norm().item() == pytest.approx(0.1, rel=1e-3)


def test_a_parameter_that_the_loss_does_not_see_stays():
    model = Point([1.0])
    unused = torch.nn.Parameter(torch.ones(2))
    term = ProximalTerm([*model.parameters(), unused], 1.0)
    model.encoder.w.grad = torch.zeros(1)
    term.add_gradient()
    assert unused.grad is None


def test_over_grpc_the_servers_mu_holds_the_clients_updates_to_the_received_model(tmp_path):
    moved = {}
    for mu in (0, 10):
        config = loaded(
            Path(__file__).parents[2] / "configs" / "demo.yaml",
            *("training.num_rounds=1", "training.local_epochs=4", "training.learning_rate=2e-3"),
            *(
                "tasks={sst2: {train_samples: 64, val_samples: 20, data: {builtin: sst2}}}",
                f"training.proximal_mu={mu}",
            ),
            "clients=[{client_id: a, task: sst2}]",
        )
        run(config, tmp_path / str(mu))
        history = History.open(tmp_path / str(mu) / HISTORY_FILE, create=False)
        report = history.rounds(history.runs()[0].run_id)[1].report
        history.close()
        moved[mu] = report["components"][0]["contributions"][0]["norm"]
    assert 0 < moved[10] < 0.7 * moved[0]
