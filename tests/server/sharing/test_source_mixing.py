"""Mixed updates of tasks with layers of their own, against plain numpy: what is tried, taken, given back and saved."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from fedmtl_core.errors import ConfigError
from fedmtl_core.tasks.paired import PairedLoss
from fedmtl_core.wire.layout import Component
from fedmtl_server.aggregation.aggregator import ClientUpdate
from fedmtl_server.aggregation_setup import AggregationRules, make_pipeline
from fedmtl_server.sharing.last_round import LastRound
from fedmtl_server.sharing.mixing_setup import kin_of
from fedmtl_server.sharing.source_mixing import SourceMixing
from tests.server.sharing.mixing import BETTER, WORSE, Rounds, close_to, config_of, mean_of, random_deltas
from tests.support import specs

AB = ("sst2", "qqp")  # one text and two labels, two texts and two labels: not of one type
KIN = ("qqp", "mrpc")
ABC = ("sst2", "qqp", "stsb")
PARTS = {
    "embeddings": ["encoder.embedding.weight"],
    "0": ["encoder.layer.0.weight", "encoder.layer.0.bias"],
    "1": ["encoder.layer.1.weight", "encoder.layer.1.bias"],
    "rest": ["encoder.last_norm.weight", "encoder.last_norm.bias"],
}
TRIED = {part: names for part, names in PARTS.items() if part != "embeddings"}


def plus(parameters, *deltas):
    return {name: value + sum(one.get(name, 0.0) for one in deltas) for name, value in parameters.items()}


def minus(one, other):
    return {name: one[name] - other[name] for name in one}


def of_parts(deltas, parts):
    names = {name for mine in parts.values() for name in mine}
    return {name: value for name, value in deltas.items() if name in names}


# The mean of several tasks' deltas.


def mean(*vectors):
    """The mean of vectors as the stage computes it, of one part."""
    tasks = [f"t{number}" for number in range(len(vectors))]
    names = ["w"]
    deltas = {
        task: Component.pack(f"delta:{task}", {"w": torch.tensor(one, dtype=torch.float32)})
        for task, one in zip(tasks, vectors, strict=True)
    }
    last = LastRound.of(1, deltas, {"part": names})
    shift = last.shift({"part": names}, "t0", ("t0",), tuple(tasks))
    return (deltas["t0"].views()["w"] + shift["w"]).tolist()


def test_deltas_at_right_angles_keep_their_length():
    assert mean([3.0, 0.0], [0.0, 3.0]) == pytest.approx([3 / 2**0.5, 3 / 2**0.5])
    assert mean([6.0, 0, 0], [0, 3.0, 0], [0, 0, 3.0]) == pytest.approx(
        [4 * 6 / 54**0.5, 4 * 3 / 54**0.5, 4 * 3 / 54**0.5]
    )


def test_equal_deltas_are_their_mean():
    assert mean([1.0, 2.0], [1.0, 2.0], [1.0, 2.0]) == pytest.approx([1.0, 2.0])


def test_opposed_deltas_are_not_blown_up():
    assert mean([1.0, 0.0], [-1.0, 0.0]) == [0.0, 0.0]
    # Nearly opposed: the plain mean (0.005, 0.05) would need a factor of 20.
    assert mean([1.0, 0.1], [-0.99, 0.0]) == pytest.approx([0.005 * 2**0.5, 0.05 * 2**0.5], rel=1e-4)


def test_deltas_of_0_and_alone_are_as_they_are():
    assert mean([0.0, 0.0], [0.0, 0.0]) == [0.0, 0.0]
    assert mean([4.0, 0.0], [0.0, 0.0]) == pytest.approx([2.0, 0.0])  # the mean of the lengths 4 and 0


def test_each_part_has_its_own_factor_whatever_the_deltas_are():
    run = Rounds(config_of(ABC))
    deltas = random_deltas(run.model, ABC, seed=3)
    components = {
        task: Component.pack(f"delta:{task}", {name: torch.as_tensor(one).float() for name, one in mine.items()})
        for task, mine in deltas.items()
    }
    last = LastRound.of(1, components, PARTS)
    for sources in (ABC, ("sst2", "stsb"), ("qqp",), ("qqp", "stsb")):
        shift = last.shift(PARTS, "sst2", ("sst2",), sources)
        expected = minus(mean_of(deltas, sources, PARTS), deltas["sst2"])
        close_to({name: one.numpy() for name, one in shift.items()}, expected)
    assert last.shift(PARTS, "sst2", ABC, tuple(reversed(ABC))) == {}


# Rounds.


def test_at_first_each_task_takes_its_own_updates_and_nothing_is_offered():
    run = Rounds(config_of(AB))
    assert run.offer() == {}
    before = {task: run.parameters(task) for task in AB}
    deltas = random_deltas(run.model, AB, seed=1)
    aggregate = run.hold(1, deltas)
    assert (aggregate.chosen, aggregate.adjusted) == ({}, {})
    for task in AB:
        close_to(run.parameters(task), plus(before[task], deltas[task]))


def test_a_candidate_is_the_model_with_another_last_update_in_all_but_the_embeddings():
    run = Rounds(config_of(ABC))
    before = {task: run.parameters(task) for task in ABC}
    deltas = random_deltas(run.model, ABC, seed=1)
    run.hold(1, deltas)
    offered = run.offer()
    assert {task: sorted(variants) for task, variants in offered.items()} == {
        task: sorted(f"with.{other}" for other in ABC if other != task) for task in ABC
    }
    for task in ABC:
        for name, tensors in offered[task].items():
            mixed = mean_of(deltas, (task, name.removeprefix("with.")), PARTS)
            expected = of_parts(plus(before[task], mixed), TRIED)
            close_to(tensors, expected)


def test_the_control_is_the_model_with_the_last_update_as_short_as_its_share_in_a_mean():
    run = Rounds(config_of(ABC))
    before = {task: run.parameters(task) for task in ABC}
    rounds = [random_deltas(run.model, ABC, seed=seed) for seed in (1, 2)]
    run.hold(1, rounds[0])
    run.offer()
    for task in ABC:
        shorter = {name: value / np.sqrt(2) for name, value in rounds[0][task].items()}
        close_to(run.controls[task], of_parts(plus(before[task], shorter), TRIED))
    run.hold(2, rounds[1], {("sst2", "with.qqp"): BETTER})
    now = run.parameters("sst2")
    run.offer()
    change = {name: (np.sqrt(2 / 3) - 1) * value for name, value in mean_of(rounds[1], AB, PARTS).items()}
    close_to(run.controls["sst2"], of_parts(plus(now, change), TRIED))


def test_a_candidate_that_is_no_better_than_the_control_changes_nothing():
    run = Rounds(config_of(AB))
    run.hold(1, random_deltas(run.model, AB, seed=1))
    says = {("sst2", "with.qqp"): BETTER, ("sst2", "shorter"): BETTER, ("qqp", "shorter"): BETTER}
    assert run.hold(2, random_deltas(run.model, AB, seed=2), says).chosen == {}
    assert run.stage.sources == {"sst2": ("sst2",), "qqp": ("qqp",)}


def test_an_accepted_candidate_replaces_the_last_update_too_and_counts_for_all_parts_from_then_on():
    run = Rounds(config_of(ABC))
    start = {task: run.parameters(task) for task in ABC}
    rounds = [random_deltas(run.model, ABC, seed=seed) for seed in range(4)]
    run.hold(1, rounds[0])
    aggregate = run.hold(2, rounds[1], {("sst2", "with.qqp"): BETTER, ("qqp", "with.sst2"): WORSE})
    assert {task: one.name for task, one in aggregate.chosen.items()} == {"sst2": "with.qqp"}
    assert run.stage.sources == {"sst2": ("sst2", "qqp"), "qqp": ("qqp",), "stsb": ("stsb",)}
    first = of_parts(mean_of(rounds[0], AB, PARTS), TRIED) | of_parts(rounds[0]["sst2"], {"e": PARTS["embeddings"]})
    expected = plus(start["sst2"], first, mean_of(rounds[1], AB, PARTS))
    close_to(run.parameters("sst2"), expected)
    close_to(run.parameters("qqp"), plus(start["qqp"], rounds[0]["qqp"], rounds[1]["qqp"]))

    aggregate = run.hold(3, rounds[2])  # nobody says anything: the sources stay
    assert (list(aggregate.chosen), list(aggregate.adjusted)) == ([], ["sst2"])
    expected = plus(expected, mean_of(rounds[2], AB, PARTS))
    close_to(run.parameters("sst2"), expected)

    aggregate = run.hold(4, rounds[3], {("sst2", "own"): BETTER})
    assert aggregate.chosen["sst2"].name == "own"
    back = of_parts(minus(rounds[2]["sst2"], mean_of(rounds[2], AB, PARTS)), TRIED)
    close_to(run.parameters("sst2"), plus(expected, back, rounds[3]["sst2"]))


def test_a_task_tries_its_kin_first_whatever_the_cosines_are_and_takes_nothing_before():
    tasks = (*KIN, "sst2")
    run = Rounds(config_of(tasks, {"trials": 1}))
    deltas = random_deltas(run.model, tasks, seed=1)
    deltas["sst2"] = {name: 2 * one for name, one in deltas["qqp"].items()}  # as similar as can be
    aggregate = run.hold(1, deltas)
    assert (aggregate.chosen, aggregate.adjusted) == ({}, {})
    assert {task: list(one) for task, one in run.offer().items()} == {
        "qqp": ["with.mrpc"],
        "mrpc": ["with.qqp"],
        "sst2": ["with.qqp"],
    }


def test_of_several_kin_the_most_similar_one_is_tried_first():
    tasks = ("qqp", "mrpc", "rte")
    run = Rounds(config_of(tasks, {"trials": 1}))
    deltas = random_deltas(run.model, tasks, seed=1)
    deltas["rte"] = {name: 2 * one for name, one in deltas["qqp"].items()}
    run.hold(1, deltas)
    offered = run.offer()
    assert (list(offered["qqp"]), list(offered["rte"])) == (["with.rte"], ["with.qqp"])


def test_kin_are_tasks_of_one_type_with_as_many_texts_and_labels():
    assert kin_of(specs("qqp", "sst2", "mrpc", "stsb", "cola")) == {
        "qqp": ["mrpc"],
        "sst2": ["cola"],
        "mrpc": ["qqp"],
        "stsb": [],
        "cola": ["sst2"],
    }


def test_an_auxiliary_task_follows_those_that_take_its_updates_and_is_offered_nothing():
    config = config_of(ABC, auxiliary={"stsb": True})
    run = Rounds(config)
    start = run.parameters("stsb")
    rounds = [random_deltas(run.model, ABC, seed=seed) for seed in range(3)]
    run.hold(1, rounds[0])
    assert sorted(run.offer()) == ["qqp", "sst2"]
    run.hold(2, rounds[1], {("sst2", "with.stsb"): BETTER})
    assert run.stage.sources == {"sst2": ("sst2", "stsb"), "qqp": ("qqp",), "stsb": ("sst2", "stsb")}
    pair = ("sst2", "stsb")
    close_to(run.parameters("stsb"), plus(start, rounds[0]["stsb"], mean_of(rounds[1], pair, PARTS)))
    run.hold(3, rounds[2], {("sst2", "own"): BETTER})
    assert run.stage.sources["stsb"] == ("stsb",)


def test_a_task_whose_only_kin_is_auxiliary_tries_it():
    run = Rounds(config_of(KIN, auxiliary={"mrpc": {"weight": 0.5}}))
    run.hold(1, random_deltas(run.model, KIN, seed=1))
    assert {task: list(one) for task, one in run.offer().items()} == {"qqp": ["with.mrpc"]}
    run.hold(2, random_deltas(run.model, KIN, seed=2), {("qqp", "with.mrpc"): BETTER})
    assert run.stage.sources == {"qqp": KIN, "mrpc": KIN}


def test_one_task_alone_is_trained_as_ever():
    run = Rounds(config_of(("sst2",)))
    start = run.parameters("sst2")
    first, second = (random_deltas(run.model, ("sst2",), seed=seed) for seed in (1, 2))
    run.hold(1, first)
    run.hold(2, second)
    assert run.offer() == {}
    close_to(run.parameters("sst2"), plus(start, first["sst2"], second["sst2"]))


def test_a_task_without_an_update_is_no_candidate_and_keeps_its_model():
    run = Rounds(config_of(ABC))
    rounds = [random_deltas(run.model, ABC, seed=seed) for seed in range(3)]
    run.hold(1, rounds[0])
    before = run.parameters("stsb")
    run.hold(2, {task: rounds[1][task] for task in AB}, {("sst2", "with.stsb"): BETTER})
    close_to(run.parameters("stsb"), before, atol=0)
    assert run.stage.sources["sst2"] == ("sst2", "stsb")
    assert {task: sorted(one) for task, one in run.offer().items()} == {"sst2": ["with.qqp"], "qqp": ["with.sst2"]}


def test_a_source_without_an_update_in_a_round_leaves_the_tasks_own_and_stays_a_source():
    run = Rounds(config_of(ABC))
    rounds = [random_deltas(run.model, ABC, seed=seed) for seed in range(4)]
    run.hold(1, rounds[0])
    run.hold(2, rounds[1], {("sst2", "with.qqp"): BETTER})
    expected = run.parameters("sst2")
    run.hold(3, {task: rounds[2][task] for task in ("sst2", "stsb")}, {("sst2", "own"): WORSE})
    assert run.stage.sources["sst2"] == AB
    expected = plus(expected, rounds[2]["sst2"])
    close_to(run.parameters("sst2"), expected)
    assert list(run.offer()["sst2"]) == ["with.stsb"]  # its own updates make the same model
    run.hold(4, rounds[3])
    expected = plus(expected, mean_of(rounds[3], AB, PARTS))
    close_to(run.parameters("sst2"), expected)


# What clients say.


@pytest.mark.parametrize(
    ("said", "waits"),
    [
        (None, True),
        (PairedLoss(1000, 1.0, 0.0, 0.0), True),
        (PairedLoss(1000, 0.5, -0.5, None), False),
        (PairedLoss(1, 0.5, -0.5, 0.0), False),
    ],
    ids=["diverged", "equal", "no standard error", "one row"],
)
def test_what_is_no_comparison_or_no_improvement_decides_nothing(said, waits):
    run = Rounds(config_of(AB))
    run.hold(1, random_deltas(run.model, AB, seed=1))
    aggregate = run.hold(2, random_deltas(run.model, AB, seed=2), {("sst2", "with.qqp"): said})
    assert (aggregate.chosen, run.stage.sources["sst2"]) == ({}, ("sst2",))
    assert ("sst2" not in run.offer()) == waits


def test_the_number_of_trials_is_limited_and_the_errors_are_divided_among_them():
    config = config_of(ABC, {"trials": 2, "error_rate": 0.1}, training={"num_rounds": 5})
    run = Rounds(config)
    run.hold(1, random_deltas(run.model, ABC, seed=1))
    assert {len(variants) for variants in run.offer().values()} == {2}
    # 2 trials of 3 tasks in 5 rounds: z for a tail of 0.1 / 30 is 2.713
    for z, is_accepted in ((2.70, False), (2.73, True)):
        again = run.restarted(config)
        name = next(iter(again.offer()["sst2"]))
        rows, error = 10**6, 0.01
        said = PairedLoss(rows, 1 - z * error, -z * error, error**2 * rows * (rows - 1))
        again.hold(2, random_deltas(run.model, ABC, seed=2), {("sst2", name): said})
        assert (again.stage.sources["sst2"] != ("sst2",)) == is_accepted


# The end of the run.


def test_the_last_update_follows_what_the_evaluation_of_the_final_model_says():
    tasks = (*KIN, "sst2")
    run = Rounds(config_of(tasks))
    first, second = (random_deltas(run.model, tasks, seed=seed) for seed in (1, 2))
    run.hold(1, first)
    run.hold(2, second, {("qqp", "with.mrpc"): BETTER, ("mrpc", "with.qqp"): BETTER})
    assert run.stage.sources == {"qqp": KIN, "mrpc": KIN, "sst2": ("sst2",)}
    before = {task: run.parameters(task) for task in tasks}
    aggregate = run.conclude(3, {("qqp", "own"): WORSE, ("mrpc", "own"): BETTER, ("sst2", "with.qqp"): BETTER})
    assert {task: one.name for task, one in aggregate.chosen.items()} == {"mrpc": "own", "sst2": "with.qqp"}
    close_to(run.parameters("qqp"), before["qqp"], atol=0)
    back = of_parts(minus(second["mrpc"], mean_of(second, KIN, PARTS)), TRIED)
    close_to(run.parameters("mrpc"), plus(before["mrpc"], back))
    more = of_parts(minus(mean_of(second, ("qqp", "sst2"), PARTS), second["sst2"]), TRIED)
    close_to(run.parameters("sst2"), plus(before["sst2"], more))


def test_without_a_better_candidate_the_final_model_is_the_evaluated_one():
    run = Rounds(config_of(AB))
    run.hold(1, random_deltas(run.model, AB, seed=1))
    before = run.parameters("sst2")
    assert run.conclude(2, {("sst2", "with.qqp"): WORSE}).chosen == {}
    close_to(run.parameters("sst2"), before, atol=0)


# What else a run may be.


def test_only_the_named_parts_are_the_tasks_own_and_mixed():
    run = Rounds(config_of(AB, {"layers": [1]}))
    assert run.model.sharing.members("shared") == AB
    start = {task: run.parameters(task) for task in AB}
    deltas = random_deltas(run.model, AB, seed=1)
    run.hold(1, deltas)
    layer = {"1": PARTS["1"]}
    average = {name: (deltas["sst2"][name] + deltas["qqp"][name]) / 2 for name in deltas["sst2"]}
    after = {task: plus(start[task], average | of_parts(deltas[task], layer)) for task in AB}
    for task in AB:
        close_to(run.parameters(task), after[task])
    offered = run.offer()["sst2"]["with.qqp"]
    close_to(offered, of_parts(plus(start["sst2"], mean_of(deltas, AB, PARTS)), layer))
    second = random_deltas(run.model, AB, seed=2)
    run.hold(2, second, {("sst2", "with.qqp"): BETTER})
    both = {name: (second["sst2"][name] + second["qqp"][name]) / 2 for name in second["sst2"]}
    expected = plus(
        start["sst2"],
        average | of_parts(mean_of(deltas, AB, PARTS), layer),
        both | of_parts(mean_of(second, AB, PARTS), layer),
    )
    close_to(run.parameters("sst2"), expected)


def test_embeddings_alone_are_tried_if_nothing_else_is_mixed():
    run = Rounds(config_of(AB, {"layers": ["embeddings"]}))
    run.hold(1, random_deltas(run.model, AB, seed=1))
    assert list(run.offer()["qqp"]["with.sst2"]) == PARTS["embeddings"]


@pytest.mark.parametrize(
    ("sharing", "mixed", "own"),
    [
        ({"layers": {"0": "shared", "embeddings": "task"}}, {"1", "rest"}, {"1", "rest", "embeddings"}),
        ({"norms": "shared"}, {"embeddings", "0", "1"}, {"embeddings", "0", "1"}),
        ({"norms": "task"}, {"embeddings", "0", "1"}, set(PARTS)),
        ({"head": "local"}, set(PARTS), set(PARTS)),
        ({"layers": {"1": "local"}, "head": "local"}, {"embeddings", "0", "rest"}, {"embeddings", "0", "rest"}),
        ({"groups": {"pairs": ["sst2", "qqp"]}, "layers": {"0-1": "pairs"}}, {"embeddings", "rest"}, None),
    ],
    ids=["layers", "norms shared", "norms of tasks", "local heads", "local layers", "groups"],
)
def test_other_settings_of_the_sharing_hold(sharing, mixed, own):
    run = Rounds(config_of(ABC, sharing=sharing))
    names = {name for part in mixed for name in PARTS[part]}
    if own is not None:
        of_task = {name for name in run.model.sharing.tensors("task:sst2") if name.startswith("encoder.")}
        assert of_task == {name for part in own for name in PARTS[part]}
    start = run.parameters("sst2")
    rounds = [random_deltas(run.model, ABC, seed=seed) for seed in (1, 2)]
    run.hold(1, rounds[0])
    assert set(run.offer()["sst2"]["with.qqp"]) == names - set(PARTS["embeddings"])
    run.hold(2, rounds[1], {("sst2", "with.qqp"): BETTER})
    mine = {part: PARTS[part] for part in mixed}
    tried = {part: PARTS[part] for part in mixed - {"embeddings"}}
    expected = plus(
        start,
        of_parts(mean_of(rounds[0], AB, mine), tried),
        of_parts(rounds[0]["sst2"], {"e": PARTS["embeddings"]}),
        mean_of(rounds[1], AB, mine),
    )
    got = run.parameters("sst2")
    close_to({name: got[name] for name in names}, {name: expected[name] for name in names})


@pytest.mark.parametrize(
    "sharing",
    [
        {"layers": {"embeddings": "task", "0-1": "shared", "rest": "task"}},
        {"adaptive": {"policy": "validated", "layers": []}},
        {"adaptive": {"policy": "validated", "layers": ["rest"]}, "norms": "task"},
    ],
    ids=["all fixed", "none named", "only norms"],
)
def test_a_run_with_nothing_to_mix_is_refused(sharing):
    with pytest.raises(ConfigError, match=r"sharing\.adaptive\.policy: `validated` needs a part of the encoder"):
        Rounds(config_of(AB, sharing=sharing))


def test_a_layer_that_the_encoder_lacks_is_named():
    with pytest.raises(ConfigError, match=r"sharing\.adaptive\.layers: the encoder has no 7; it has"):
        Rounds(config_of(AB, {"layers": ["1", "7"]}))


class Mixed(nn.Module):
    """Parameters of several dtypes and shapes, without layers or embeddings; four numbers wide."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)

        def parameter(*shape, dtype=torch.float32):
            return nn.Parameter(torch.randn(shape, generator=generator).to(dtype))

        self.scale = parameter()
        self.empty = parameter(0, 3)
        self.halves = parameter(5, dtype=torch.float16)
        self.brain = parameter(3, 7, dtype=torch.bfloat16)
        self.doubles = parameter(2, dtype=torch.float64)


def test_parameters_of_any_dtype_are_mixed_with_their_own_precision():
    run = Rounds(config_of(AB), Mixed())
    names = {"rest": list(run.parameters("sst2"))}
    start = run.parameters("sst2")
    deltas = random_deltas(run.model, AB, seed=1)
    run.hold(1, deltas)
    exact = {task: minus(run.parameters(task), start) for task in AB}  # as the dtypes rounded them
    offered = run.offer()["sst2"]["with.qqp"]
    expected = plus(start, mean_of(exact, AB, names))
    for name, bits in {"scale": 22, "halves": 9, "brain": 6, "doubles": 28}.items():
        got, wanted = offered[f"encoder.{name}"], expected[f"encoder.{name}"]
        np.testing.assert_allclose(got, wanted, rtol=2.0**-bits, atol=2.0**-bits)
    run.hold(2, random_deltas(run.model, AB, seed=2), {("sst2", "with.qqp"): BETTER})
    again = run.restarted(config_of(AB), Mixed())
    assert all(
        torch.equal(one.buffer, again.stage.state().components[scope].buffer)
        for scope, one in run.stage.state().components.items()
    )


def test_the_servers_optimizer_steps_first_and_its_step_is_what_is_mixed():
    sections = {"server_optimizer": {"name": "fedavgm", "learning_rate": 0.5, "beta_1": 0.9}}
    config = config_of(AB, **sections)
    run = Rounds(config)
    start = run.parameters("sst2")
    rounds = [random_deltas(run.model, AB, seed=seed) for seed in (1, 2)]
    run.hold(1, rounds[0])
    run.hold(2, rounds[1], {("sst2", "with.qqp"): BETTER})
    first = {task: {name: 0.5 * one for name, one in rounds[0][task].items()} for task in AB}
    second = {
        task: {name: 0.5 * (0.9 * rounds[0][task][name] + one) for name, one in rounds[1][task].items()} for task in AB
    }
    expected = plus(
        start,
        of_parts(mean_of(first, AB, PARTS), TRIED),
        of_parts(first["sst2"], {"e": PARTS["embeddings"]}),
        mean_of(second, AB, PARTS),
    )
    close_to(run.parameters("sst2"), expected)


def test_a_rule_in_place_of_the_mean_and_clipped_updates_are_mixed_as_they_count():
    bound = {"robustness": {"norms": {"action": "clip", "bound": 1.0}}}
    run = Rounds(config_of(AB, **bound))
    start = {task: run.parameters(task) for task in AB}
    deltas = random_deltas(run.model, AB, seed=1)
    run.hold(1, deltas)
    counted = {task: minus(run.parameters(task), start[task]) for task in AB}
    length = np.sqrt(sum((one**2).sum() for one in counted["sst2"].values()))
    assert length == pytest.approx(1.0, abs=1e-5)
    expected = of_parts(plus(start["sst2"], mean_of(counted, AB, PARTS)), TRIED)
    close_to(run.offer()["sst2"]["with.qqp"], expected)


# Numbers that are too large.


def huge(run, task, value):
    deltas = random_deltas(run.model, ABC, seed=1)
    for name in PARTS["1"]:
        deltas[task][name] = np.full_like(deltas[task][name], value)
    return deltas


def test_a_discarded_component_takes_no_part_in_the_mixing():
    run = Rounds(config_of((*KIN, "sst2")))
    before = run.parameters("mrpc")
    deltas = random_deltas(run.model, (*KIN, "sst2"), seed=1)
    for name in PARTS["1"]:
        deltas["mrpc"][name] = np.full_like(deltas["mrpc"][name], np.nan)
    aggregate = run.hold(1, deltas)
    assert [one.scope for one in aggregate.discarded] == ["task:mrpc"]
    assert list(run.stage.sources.values()) == [("qqp",), ("mrpc",), ("sst2",)]
    close_to(run.parameters("mrpc"), before, atol=0)
    assert sorted(run.offer()) == ["qqp", "sst2"]


def test_a_mix_that_overflows_is_left_out_with_a_warning_and_the_task_keeps_its_own():
    run = Rounds(config_of(ABC))
    run.hold(1, random_deltas(run.model, ABC, seed=0))
    run.hold(2, random_deltas(run.model, ABC, seed=0), {("sst2", "with.qqp"): BETTER})
    third = random_deltas(run.model, ABC, seed=0)
    third["sst2"]["encoder.layer.1.bias"] = np.full(4, 3e38)
    run.hold(3, {"sst2": third["sst2"]})
    before = run.parameters("sst2")
    deltas = huge(run, "qqp", 3e38)  # half of it is too much for what the task has already
    aggregate = run.hold(4, deltas)
    assert [one.event for one in aggregate.notices] == ["sources.discarded"]
    assert aggregate.notices[0].reason.endswith("keeps its own update: sst2")
    assert aggregate.adjusted == {}
    got, expected = run.parameters("sst2"), plus(before, deltas["sst2"])
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-6, atol=1e-5)


def test_a_delta_beyond_float32_is_no_source():
    run = Rounds(config_of(ABC))
    deltas = huge(run, "qqp", 3e38)
    run.hold(1, deltas)
    deltas = huge(run, "qqp", -6e38)  # from 3e38 to -3e38: the difference of two finite numbers
    run.hold(2, deltas)
    assert np.isfinite(run.parameters("qqp")["encoder.layer.1.weight"]).all()
    assert {task: sorted(one) for task, one in run.offer().items()} == {"sst2": ["with.stsb"], "stsb": ["with.sst2"]}


# Saved state.


def test_a_restart_after_any_round_goes_on_to_the_same_bits():
    config = config_of((*KIN, "stsb", "sst2"), {"trials": 4}, server_optimizer={"name": "fedadam"})
    says = {
        2: {("qqp", "with.mrpc"): BETTER, ("stsb", "with.qqp"): BETTER, ("mrpc", "with.qqp"): WORSE},
        3: {("stsb", "own"): WORSE, ("sst2", "with.qqp"): None, ("qqp", "own"): BETTER},
        4: {("sst2", "with.stsb"): BETTER, ("stsb", "own"): WORSE},
    }
    whole = Rounds(config)
    tasks = tuple(whole.model.tasks)
    rounds = {number: random_deltas(whole.model, tasks, seed=number) for number in range(1, 6)}
    parts = Rounds(config)
    for number, deltas in rounds.items():
        whole.hold(number, deltas, says.get(number, {}))
        parts = parts.restarted(config)
        parts.hold(number, deltas, says.get(number, {}))
        assert json.loads(json.dumps(parts.pipeline.metadata())) == whole.pipeline.metadata()
        offers = [one.offer() for one in (whole, parts)]
        for task, variants in offers[0].items():
            for name, tensors in variants.items():
                close_to(offers[1][task][name], tensors, atol=0)
        assert offers[0].keys() == offers[1].keys()
    assert whole.stage.sources["stsb"] == ("qqp", "stsb")
    assert whole.conclude(6, {("stsb", "own"): BETTER}).chosen
    parts = parts.restarted(config)
    parts.conclude(6, {("stsb", "own"): BETTER})
    for scope, component in whole.model.components.items():
        assert torch.equal(component.buffer, parts.model.components[scope].buffer)


def test_a_round_that_failed_leaves_no_trace():
    run, other = Rounds(config_of(AB)), Rounds(config_of(AB))
    rounds = [random_deltas(run.model, AB, seed=seed) for seed in (1, 2)]
    for one in (run, other):
        one.hold(1, rounds[0])
    run.offer()
    aggregation = run.pipeline.begin(run.model.components, 2)
    components = {scope: run.model.components[scope].clone() for scope in run.model.scopes_for("sst2")}
    lost = ClientUpdate("of-sst2", "sst2", 10, components).screened(2)
    run.pipeline.count(lost.update, lost.components)
    aggregation.add(lost)
    for one in (run, other):
        one.hold(3, rounds[1], {("sst2", "with.qqp"): BETTER})
    assert run.pipeline.metadata() == other.pipeline.metadata()
    close_to(run.parameters("sst2"), other.parameters("sst2"), atol=0)


def test_a_run_keeps_one_delta_of_the_tried_parts_for_each_task_and_no_more_memory_than_the_model():
    config = config_of(AB)
    run = Rounds(config)
    assert run.stage.growth == 1.0
    assert run.stage.state().components == {}
    run.hold(1, random_deltas(run.model, AB, seed=1))
    state = run.stage.state().components
    assert list(state) == ["delta:sst2", "delta:qqp"]
    assert {one.layout.num_elements for one in state.values()} == {20 + 20 + 8}
    layouts = run.model.layouts_for(None)
    assert run.pipeline.kept_bytes(layouts, run.model.sharing.members) == sum(one.num_bytes for one in layouts)


def test_another_policy_has_no_such_stage():
    config = config_of(AB, {"policy": "cosine"})
    run = Rounds(config_of(AB))
    assert make_pipeline(config, run.model, AggregationRules.of(config)).find(SourceMixing) is None
