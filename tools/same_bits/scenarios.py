"""The scenarios for comparing two revisions.

Each option of training, sharing, rounds, wire and aggregation is in at least one scenario, together with others where
possible. All scenarios train the built-in toy encoder on built-in rows. Their results depend only on the configuration.
A round opens when all clients have joined, and waits for all of them. If the order of updates matters, a script
defines it.
"""

from __future__ import annotations

from collections.abc import Mapping

from tools.same_bits.scenario import Scenario, Settings

ONE_EACH = {"a": "sst2", "b": "qqp", "c": "stsb"}
WITH_A_TWIN = {"a": "sst2", "b": "twin", "c": "qqp", "d": "sst2"}
TWO_OF_SST2 = {"a": "sst2", "b": "sst2", "c": "qqp", "d": "stsb"}


_ASYNCHRONOUS: Settings = {
    "training.num_rounds": 3,
    "rounds.mode": "async",
    "rounds.buffer_size": 2,
    "server_optimizer.name": "fedavgm",
}
_SCAFFOLD: Settings = {
    "training.num_rounds": 3,
    "training.control_variates": True,
    "training.optimizer": "sgd",
    "training.learning_rate": 0.05,
}
_REFUSING: Settings = {
    "training.num_rounds": 3,
    "robustness.norms": {"action": "refuse", "bound": 2.0, "median_factor": 3.0},
    "rounds.rejoin_grace_s": 2,  # a refused client ends; the round waits this long for it, and longer for its upload
    "rounds.transfer_timeout_s": 8,
}
_REMEMBERING: Settings = {
    "training.num_rounds": 4,
    "aggregation.task_weighting": "gradnorm",
    "robustness.norms": {"action": "clip", "median_factor": 1.1},
    "server_optimizer.name": "fedadam",
    "sharing.adaptive": {
        "policy": "cosine",
        "split_below": 0.9,
        "merge_above": 0.95,
        "patience": 2,
        "max_parameters": 3.0,
    },
    "wire.upload": "topk",
}
"""State between rounds: the server's weights, norms, moments and cosines, and the clients' compression errors."""
_TWIN: Settings = {
    "type": "classification",
    "text_columns": ["sentence"],
    "label_column": "label",
    "labels": ["negative", "positive"],
    "data.builtin": "sst2",
}
"""A task of the type of sst2, so that each of the two tries the other's updates first."""
_TWO_STAGES: Settings = {
    "training.num_rounds": 4,
    "sharing.groups": {"pairs": ["qqp", "stsb"]},
    "sharing.schedule": [
        {"after_round": 1, "layers": {"0-1": "task"}, "restart_schedule": True, "learning_rate": 5e-4},
        {"after_round": 2, "layers": {"1": "group", "pooler": "group"}, "num_rounds": 2},
    ],
    "server_optimizer.name": "fedadam",
    "wire.upload": "int8",
}
_VALIDATED: Settings = {
    "training.num_rounds": 4,
    "sharing.adaptive": {"policy": "validated", "error_rate": 0.4, "min_gain": 0.0},
    "sharing.layers": {"pooler": "shared"},
    **{f"tasks.twin.{key}": value for key, value in _TWIN.items()},
    "server_optimizer.name": "fedadam",
    "wire.upload": "int8",
}
_IN_TURN: Settings = {
    "training.num_rounds": 4,
    "model.adapters": {"aggregation": "alternate", "rank": 4},
    "robustness.norms": {"action": "clip", "median_factor": 1.1},
    "sharing.layers": {"1": "task"},
    "server_optimizer.name": "fedavgm",
    "wire.upload": "topk",
}
"""Each factor has state of its own between its rounds: norms, moments, compression errors and held versions."""
_STACKED: Settings = {
    "training.num_rounds": 3,
    "model.adapters": {"aggregation": "stack", "rank": 4},
    "aggregation.task_weighting": "gradnorm",
    "wire.upload": "int8",
}
_OF_ADAPTERS = ("model.adapters.aggregation",)
_MORE_ROWS: Mapping[str, Settings] = {"b": {"tasks.sst2.train_samples": 320}}

SCENARIOS = (
    Scenario("plain", {}, ONE_EACH),
    Scenario(
        "fedavgm-uniform-float16",
        {
            "training.update": "delta",
            "aggregation.task_weighting": "uniform",
            "server_optimizer.name": "fedavgm",
            "store.durability": "memory",
            "wire.upload": "float16",
            "wire.download": "float16",
        },
        ONE_EACH,
    ),
    Scenario(
        "fedadagrad-fixed-int8",
        {
            "aggregation.task_weighting": "fixed",
            "aggregation.task_weights": {"sst2": 1.0, "qqp": 2.0, "stsb": 0.5},
            "server_optimizer.name": "fedadagrad",
            "store.durability": "process",
            "wire.upload": "int8",
            "wire.download": "int8",
        },
        ONE_EACH,
    ),
    Scenario(
        "fedadam-temperature-topk-zstd",
        {
            "training.num_rounds": 3,
            "aggregation.task_weighting": "temperature",
            "server_optimizer.name": "fedadam",
            "wire.upload": "topk",
            "wire.download": "topk",
            "wire.compression": "zstd",
        },
        ONE_EACH,
    ),
    Scenario(
        "fedyogi-uncertainty-bfloat16",
        {
            "training.num_rounds": 3,
            "aggregation.task_weighting": "uncertainty",
            "server_optimizer.name": "fedyogi",
            "wire.upload": "bfloat16",
        },
        ONE_EACH,
        own={"b": {"wire.download": "bfloat16"}, "c": {"wire.upload": "float32"}},
    ),
    Scenario(
        "gradnorm-scaling-dirichlet",
        {
            "training.num_rounds": 3,
            "aggregation.task_weighting": "gradnorm",
            "aggregation.scaling": 2.0,
            "server.staging_memory_mb": 1,  # some updates are staged in files
        },
        TWO_OF_SST2,
        partition={"dirichlet": 0.5},
    ),
    Scenario(
        "pcgrad-clip-groups",
        {
            "aggregation.task_weighting": "pcgrad",
            "robustness.norms": {"action": "clip", "bound": 0.5},
            "sharing.groups": {"pairs": ["qqp", "stsb"]},
            "sharing.layers": {"1": "group"},
        },
        ONE_EACH,
    ),
    Scenario(
        "cagrad-fraction",
        {
            "training.num_rounds": 3,
            "aggregation.task_weighting": "cagrad",
            "rounds.cohort": "fraction",
            "rounds.cohort_fraction": 0.5,
            "tasks.sst2.min_clients": 1,
        },
        {"a": "sst2", "b": "sst2", "c": "sst2", "d": "qqp", "e": "stsb"},
    ),
    Scenario(
        "famo-several-tasks",
        {
            "training.num_rounds": 3,
            "aggregation.task_weighting": "famo",
            "rounds.task_selection": "loss",
            "tasks.sst2.min_clients": 2,  # these quorums need all four clients
            "tasks.qqp.min_clients": 1,
            "tasks.stsb.min_clients": 1,
        },
        {"a": ("sst2", "qqp"), "b": ("qqp", "stsb", "sst2"), "c": "stsb", "d": "sst2"},
    ),
    Scenario(
        "fedprox-fednova",
        {
            "training.proximal_mu": 0.1,
            "training.weight_decay": 0.1,
            "tasks.sst2.local_epochs": 3,
            "aggregation.normalization": "fednova",
        },
        TWO_OF_SST2,
    ),
    Scenario(
        "scaffold",
        _SCAFFOLD,
        TWO_OF_SST2,
    ),
    Scenario(
        "refuse",
        {**_REFUSING, "tasks.sst2.min_clients": 1},
        TWO_OF_SST2,
        own=_MORE_ROWS,
        failing=frozenset({"b"}),
    ),
    Scenario(
        "refuse-failed-round",
        {**_REFUSING, "rounds.on_missing_quorum": "fail", "rounds.quorum_timeout_s": 4},
        TWO_OF_SST2,
        own=_MORE_ROWS,
        failing=frozenset({"b"}),
    ),
    Scenario(
        "nested-groups-norms-head-epochs",
        {
            "model.pooling": "mean",
            "training.train_sampling_strategy": "group_by_length",
            "training.head_epochs": 1,
            "sharing.groups": {"pairs": ["qqp", "stsb"], "meaning": ["pairs", "sst2"]},
            "sharing.layers": {"embeddings": "meaning", "0": "group", "1": "task"},
            "sharing.norms": "task",
            "server_optimizer.name": "fedadam",
        },
        ONE_EACH,
    ),
    Scenario(
        "local-layers-and-heads",
        {
            "model.random_init": True,
            "sharing.layers": {"1": "local", "pooler": "local"},
            "sharing.head": "local",
            "wire.upload": "int8",
        },
        TWO_OF_SST2,
    ),
    Scenario(
        "adaptive",
        {
            "training.num_rounds": 5,
            "sharing.adaptive": {
                "policy": "cosine",
                "split_below": -0.03,
                "merge_above": -0.02,
                "patience": 1,
                "smoothing": 0.0,
                "max_parameters": 3.0,
            },
            "server_optimizer.name": "fedavgm",
        },
        ONE_EACH,
    ),
    Scenario(
        "auxiliary-masked-lm",
        {
            "tasks.texts.type": "masked_lm",
            "tasks.texts.text_columns": ["sentence"],
            "tasks.texts.data.builtin": "sst2",
            "tasks.texts.auxiliary": {"weight": 0.5, "decay": 0.9},
            "tasks.qqp.auxiliary": True,
            "aggregation.scaling": 2.0,
        },
        {"a": "texts", "b": "qqp", "c": "stsb", "d": "sst2"},
    ),
    Scenario(
        "early-stopping",
        {
            "training.num_rounds": 6,
            "early_stopping": {"patience": 1, "threshold": 0.5, "watch": ["sst2", "stsb"]},
            "client.selection": "random",
            "tasks.sst2.min_clients": 1,
            "tasks.qqp.min_clients": 0,
        },
        {"a": ("qqp", "sst2"), "b": "sst2", "c": "stsb"},
    ),
    Scenario(
        "over-selection",
        {
            "rounds.cohort": "over_select",
            "rounds.cohort_size": 1,
            "rounds.cohort_extra": 1,
            "tasks.sst2.min_clients": 1,
            "tasks.qqp.min_clients": 1,
        },
        {"a": "sst2", "b": "sst2", "c": "qqp", "d": "qqp", "e": "stsb"},
        script="a1? b1? c1? d1? a1 d1 e1 b2 c2 e2",
    ),
    Scenario(
        "asynchronous",
        _ASYNCHRONOUS,
        ONE_EACH,
        script="a1? b1? c1? a1 b1 a2? b2? c1 a2 a3? c3? b2 c3",
    ),
    Scenario(
        "asynchronous-killed",
        _ASYNCHRONOUS,
        ONE_EACH,
        script="a1? b1? c1? a1 b1 a2? b2? c1 kill a2 a3? c3? b2 c3",
        same_as="asynchronous",
    ),
    Scenario(
        "scaffold-killed",
        _SCAFFOLD,
        TWO_OF_SST2,
        script="c2? d2? a2 b2 kill c2 d2",
        same_as="scaffold",
    ),
    Scenario("remembering", _REMEMBERING, TWO_OF_SST2, own=_MORE_ROWS),
    Scenario(
        "remembering-killed",
        _REMEMBERING,
        TWO_OF_SST2,
        own=_MORE_ROWS,
        script="c2? a2 b2 kill c2 a3? b3? c3? kill a3 b3 c3",
        same_as="remembering",
    ),
    Scenario(
        "client-shares",
        {"robustness.max_client_share": 0.5, "tasks.qqp.max_examples": 32},
        TWO_OF_SST2,
        own=_MORE_ROWS,
        needs=("robustness.max_client_share", "tasks.NAME.max_examples"),
    ),
    Scenario("schedule", _TWO_STAGES, TWO_OF_SST2, needs=("sharing.schedule[].layers",)),
    Scenario(
        "schedule-killed",
        _TWO_STAGES,
        TWO_OF_SST2,
        script="a1? b1? c1? a1 b1 kill c1 d1 c2? d2? a2 b2 kill c2 d2",
        same_as="schedule",
        needs=("sharing.schedule[].layers",),
    ),
    Scenario("validated", _VALIDATED, WITH_A_TWIN, needs=("sharing.adaptive.trials",)),
    Scenario(
        "validated-killed",
        _VALIDATED,
        WITH_A_TWIN,
        script="b1? c1? d1? b1 kill c1 d1 c2? b2 d2 kill c2 b3? d3? c3 kill b3 d3",
        same_as="validated",
        needs=("sharing.adaptive.trials",),
    ),
    Scenario(
        "adapters-scaffold",
        {**_SCAFFOLD, "model.adapters": {"rank": 4}, "sharing.adapters.b": "task"},
        TWO_OF_SST2,
        needs=_OF_ADAPTERS,
    ),
    Scenario(
        "adapters-average-validated",
        {
            **_VALIDATED,
            "sharing.layers": {"0": "shared"},
            "model.adapters": {"aggregation": "average", "kind": "dora", "rank": 4},
        },
        WITH_A_TWIN,
        needs=_OF_ADAPTERS,
    ),
    Scenario(
        "adapters-svd-ranks",
        {
            "training.num_rounds": 3,
            "model.adapters": {"aggregation": "svd", "kind": "rslora", "rank": 4, "ranks": {"b": 2, "c": 8}},
            "aggregation.task_weighting": "temperature",
            "client.fetch_base": True,
            "wire.download": "topk",
        },
        TWO_OF_SST2,
        needs=_OF_ADAPTERS,
    ),
    Scenario("adapters-in-turn", _IN_TURN, TWO_OF_SST2, needs=_OF_ADAPTERS),
    Scenario(
        "adapters-in-turn-killed",
        _IN_TURN,
        TWO_OF_SST2,
        script="c2? a2 b2 kill c2 a3? b3? c3? kill a3 b3 c3",
        same_as="adapters-in-turn",
        needs=_OF_ADAPTERS,
    ),
    Scenario("adapters-stacked", _STACKED, TWO_OF_SST2, needs=_OF_ADAPTERS),
    Scenario(
        "adapters-stacked-killed",
        _STACKED,
        TWO_OF_SST2,
        script="c2? a2 b2 kill c2 a3? b3? c3? kill a3 b3 c3",
        same_as="adapters-stacked",
        needs=_OF_ADAPTERS,
    ),
)
