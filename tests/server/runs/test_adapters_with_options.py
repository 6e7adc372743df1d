"""Adapters together with every other option of a run: it works, or the configuration refuses it by both keys."""

from copy import deepcopy

import pytest
import torch

from fedmtl_core.config import Config
from fedmtl_core.errors import ConfigError
from fedmtl_server import Server
from fedmtl_server.saved_runs import load_model, open_run
from tests.federations import run
from tests.support import reports_of

AGGREGATIONS = ("freeze_a", "alternate", "average", "svd", "stack")
TASKS = ("sst2", "qqp", "stsb")
FACTOR_BYTES = 18_432  # of one factor of rank 4 in the toy encoder's twelve layers, in float32
BOTH, ONE = 2 * FACTOR_BYTES, FACTOR_BYTES

REFUSED = {
    "scaling": ("stack",),
    "preserve": ("stack",),
    "server_optimizer": ("svd", "stack"),
    "control_variates": ("alternate", "svd", "stack"),
    "layers_local": ("stack",),
    "layers_task": ("stack",),
    "b_task": ("svd", "stack"),
    "a_task": ("freeze_a", "svd", "stack"),
    "both_task": ("freeze_a", "stack"),
    "b_local": ("svd", "stack"),
    "schedule": ("alternate", "svd", "stack"),
    "cosine": ("alternate", "svd", "stack"),
    "auto": ("alternate", "svd", "stack"),
    "auto_a_shared": ("freeze_a", "alternate", "svd", "stack"),
    "asynchronous": ("alternate", "svd", "stack"),
    "auxiliary_with_own_layers": ("stack",),
    "rule": ("alternate", "svd", "stack"),
}
"""By option, the aggregations that can't be combined with it."""

OPTIONS = {
    "none": {},
    "int8_updates": {"wire": {"upload": "int8"}},
    "topk_updates": {"wire": {"upload": "topk"}},
    "float16_slices": {"wire": {"download": "float16"}},
    "int8_slices": {"wire": {"download": "int8"}},
    "topk_slices": {"wire": {"download": "topk"}},
    "compression": {"wire": {"compression": "zstd"}},
    "delta": {"training": {"update": "delta"}},
    "clipped_norms": {"robustness": {"norms": {"action": "clip", "bound": 0.05}}},
    "refused_norms": {"robustness": {"norms": {"action": "refuse", "bound": 1e6}}},
    "client_shares": {"robustness": {"max_client_share": 0.5}},
    "uniform_tasks": {"aggregation": {"task_weighting": "uniform"}},
    "pcgrad": {"aggregation": {"task_weighting": "pcgrad"}},
    "scaling": {"aggregation": {"scaling": 1.7}},
    "preserve": {"aggregation": {"scaling": "preserve"}},
    "fednova": {"aggregation": {"normalization": "fednova"}},
    "server_optimizer": {"server_optimizer": {"name": "fedadam"}},
    "fedprox": {"training": {"proximal_mu": 0.1}},
    "control_variates": {"training": {"optimizer": "sgd", "control_variates": True, "learning_rate": 0.1}},
    "head_epochs": {"training": {"head_epochs": 1}},
    "local_head": {"sharing": {"head": "local"}},
    "layers_local": {"sharing": {"layers": {"1": "local"}}},
    "layers_task": {"sharing": {"layers": {"1": "task"}}},
    "b_task": {"sharing": {"adapters": {"b": "task"}}},
    "a_task": {"sharing": {"adapters": {"a": "task"}}},
    "both_task": {"sharing": {"adapters": {"a": "task", "b": "task"}}},
    "b_local": {"sharing": {"adapters": {"b": "local"}}},
    "schedule": {"sharing": {"schedule": [{"after_round": 1, "layers": {"0-1": "task"}}]}},
    "cosine": {"sharing": {"adaptive": {"policy": "cosine"}}},
    "auto": {"sharing": {"mode": "auto"}},
    "auto_a_shared": {"sharing": {"mode": "auto", "adapters": {"a": "shared"}}},
    "asynchronous": {"rounds": {"mode": "async", "buffer_size": 2}},
    "auxiliary": {"tasks": {"stsb": {"auxiliary": {"weight": 0.5, "decay": 0.9}}}},
    "auxiliary_with_own_layers": {
        "tasks": {"stsb": {"auxiliary": {"weight": 0.0}}},
        "sharing": {"layers": {"1": "task"}},
        "rounds": {"await_clients_s": 20},  # threads share one generator: no client may train while another one loads
    },
    "rule": {"aggregation": {"rule": "examples.own_aggregation.median:Median"}},
    "early_stopping": {"early_stopping": {"patience": 3}},
    "fetched_base": {"client": {"fetch_base": True}, "wire": {"download": "topk", "compression": "zstd"}},
}


def values(aggregation: str, option: str) -> dict[str, object]:
    """Without dropout: the clients' threads share PyTorch's generator, from which another client's base is drawn."""
    config: dict[str, object] = {
        "model": {
            "server_model": "builtin:toy",
            "head_dropout": 0,
            "adapters": {"aggregation": aggregation, "rank": 4},
        },
        "training": {"num_rounds": 3, "local_epochs": 1, "learning_rate": 0.01, "max_length": 32},
        "rounds": {"rejoin_grace_s": 0.5},
        "server": {"port": 0},
        "tasks": {task: {"train_samples": 64, "val_samples": 32, "data": {"builtin": task}} for task in TASKS},
        "clients": [{"client_id": task, "task": task} for task in TASKS],
    }
    for section, keys in deepcopy(OPTIONS[option]).items():
        for key, value in keys.items():
            inner = config.setdefault(section, {})
            inner[key] = {**inner[key], **value} if isinstance(inner.get(key), dict) else value
    return config


def cases(*, often: bool):
    """Each option with the aggregation that differs most from a plain average, or with all others."""
    for option in OPTIONS:
        accepted = [one for one in AGGREGATIONS if one not in REFUSED.get(option, ())]
        first = next(one for one in ("alternate", "stack", "average", "freeze_a") if one in accepted)
        yield from ((option, one) for one in accepted if (one == first) == often)


def require_runs(option, aggregation, tmp_path):
    config = Config.model_validate(values(aggregation, option))
    _, done = run(config, tmp_path / "run")
    is_async = option == "asynchronous"
    for client in done:
        assert is_async or option == "auxiliary" or list(client.rounds)[:3] == [1, 2, 3]
    saved = open_run(tmp_path / "run")
    first, end = (load_model(saved, round_) for round_ in (saved.rounds()[0], saved.rounds()[-1]))
    for scope, component in end.components.items():
        component.require_finite()
        if first.sharing.scopes == end.sharing.scopes:
            assert not torch.equal(component.buffer, first.components[scope].buffer), f"{scope} was trained"
    assert first.base["frozen"].digest() == end.base["frozen"].digest()
    assert ("merged" in end.base) == (aggregation == "stack")
    if "wire" not in OPTIONS[option] and not is_async and "sharing" not in OPTIONS[option]:
        (sst2,) = (client for client in done if client.client_id == "sst2")
        heads = 4 * (2 * 64 + 2)
        assert {work.bytes_sent for work in sst2.rounds.values() if work.purpose == "train"} == {
            (ONE if aggregation in ("freeze_a", "alternate") else BOTH) + heads
        }


@pytest.mark.parametrize(("option", "aggregation"), list(cases(often=True)))
def test_an_option_works_with_adapters(option, aggregation, tmp_path):
    require_runs(option, aggregation, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize(("option", "aggregation"), list(cases(often=False)))
def test_an_option_works_with_every_aggregation_that_takes_it(option, aggregation, tmp_path):
    require_runs(option, aggregation, tmp_path)


KEYS = {
    "scaling": ("aggregation.scaling",),
    "preserve": ("aggregation.scaling",),
    "server_optimizer": ("server_optimizer.name",),
    "control_variates": ("training.control_variates",),
    "layers_local": ("sharing.layers.1",),
    "layers_task": ("sharing.layers.1",),
    "auxiliary_with_own_layers": ("sharing.layers.1",),
    "rule": ("aggregation.rule",),
    "schedule": ("sharing.schedule",),
    "cosine": ("sharing.adaptive.policy",),
    "auto": ("sharing: plain",),
    "auto_a_shared": ("sharing: plain", "sharing.adapters"),
    "asynchronous": ("rounds.mode",),
}


@pytest.mark.parametrize(
    ("option", "aggregation"), [(option, one) for option, refused in REFUSED.items() for one in refused]
)
def test_what_cannot_go_together_is_refused_by_both_keys(option, aggregation):
    with pytest.raises(ValueError, match="adapters") as error:
        Config.model_validate(values(aggregation, option))
    assert any(key in str(error.value) for key in KEYS.get(option, ("sharing.adapters",)))
    assert "aggregation" in str(error.value)


@pytest.mark.parametrize("adapters", [{"a": "local"}, {"b": "local"}])
def test_factors_in_turn_are_refused_if_a_round_would_leave_a_client_nothing_to_send(adapters, tmp_path):
    config = values("alternate", "local_head")
    config["sharing"] |= {"adapters": adapters}
    with pytest.raises(ConfigError, match=r"alternate.*nothing to send.*sharing\.head: local"):
        Server(Config.model_validate(config), tmp_path / "run")


@pytest.mark.parametrize(("rule", "has_figure"), [("mean", True), ("examples.own_aggregation.median:Median", False)])
def test_only_averages_are_compared_with_the_average_product(rule, has_figure, tmp_path):
    config = values("average", "none") | {"aggregation": {"rule": rule}}
    run(Config.model_validate(config), tmp_path / "run")
    trained = [one for one in reports_of(tmp_path / "run") if one.purpose == "train"]
    assert [bool(one.inexactness) for one in trained] == [has_figure] * 3
