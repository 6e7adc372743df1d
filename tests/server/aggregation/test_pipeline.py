"""The order of the stages, and what follows from what each says of itself: memory, state, and how updates are taken."""

import re
from pathlib import Path

import pytest
import torch

from fedmtl_core.config import AggregationConfig, AuxiliaryConfig, NormsConfig, ServerOptimizerConfig
from fedmtl_core.config.stages import STAGES, StageRule
from fedmtl_core.errors import AggregationError
from fedmtl_core.wire.layout import Component
from fedmtl_server.aggregation import pipeline as page
from fedmtl_server.aggregation.accumulators import Accumulator
from fedmtl_server.aggregation.optimizers import make_optimizer
from fedmtl_server.aggregation.pipeline import STEPS, Pipeline
from fedmtl_server.aggregation.stages.adapters import AdapterProducts
from fedmtl_server.aggregation.stages.auxiliary import AuxiliaryTasks
from fedmtl_server.aggregation.stages.base import Outcome, Stage
from fedmtl_server.aggregation.stages.client_shares import ClientShares
from fedmtl_server.aggregation.stages.control_variates import ControlVariates
from fedmtl_server.aggregation.stages.normalization import FedNova
from fedmtl_server.aggregation.stages.norms import NormScreening
from fedmtl_server.aggregation.stages.preserved_norm import PreservedNorm
from fedmtl_server.aggregation.stages.rule import RuleInsteadOfMean
from fedmtl_server.aggregation.stages.server_optimizer import OptimizerSteps
from fedmtl_server.aggregation.stages.task_weighting import TaskWeights
from fedmtl_server.aggregation.task_weighting.shares import Uniform
from fedmtl_server.sharing.layer_moves import LayerRegrouping
from fedmtl_server.sharing.source_mixing import SourceMixing
from tests.server.aggregation.updates import BlocksInMemory, begun, update_of

CLASSES = (
    ClientShares,
    NormScreening,
    FedNova,
    RuleInsteadOfMean,
    TaskWeights,
    AuxiliaryTasks,
    PreservedNorm,
    AdapterProducts,
    OptimizerSteps,
    SourceMixing,
    ControlVariates,
    LayerRegrouping,
)


def update(client_id, encoder, num_examples=1, task="sst2"):
    return update_of(client_id, task, num_examples, {"encoder.w": torch.tensor(encoder)})


BASE = {"shared": update("", [0.0, 0.0, 0.0]).components["shared"]}


def layouts(*scopes, width=4):
    return [Component.pack(scope, {f"{scope}.w": torch.zeros(width)}).layout for scope in scopes]


# The order.


def test_the_documentation_quotes_the_steps_and_the_stages_in_their_order():
    text = (Path(__file__).parents[3] / "docs" / "aggregation.md").read_text(encoding="utf-8")
    section = text.partition("## Order of the steps")[2].partition("\n## ")[0]
    assert tuple(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == STEPS
    quoted = re.findall(r"^\d+\. `(\w+)`: `([\w.: ]+)`$", section, re.MULTILINE)
    assert quoted == [(stage.name, stage.key) for stage in STAGES]


def test_the_page_names_the_steps_in_their_order():
    assert tuple(re.findall(r"^    (\w+)  +\S", page.__doc__, re.MULTILINE)) == STEPS


def test_there_is_a_class_for_each_stage_and_any_pipeline_has_them_in_their_order():
    assert tuple(one.rule for one in CLASSES) == STAGES
    given = [AuxiliaryTasks({}), FedNova(), NormScreening(NormsConfig()), ClientShares(0.9)]
    assert [one.name for one in Pipeline(given).stages] == ["client_shares", "norms", "normalization", "auxiliary"]


class Noting(Stage):
    """Notes what it is asked, and changes nothing."""

    def __init__(self, name, noted):
        self.rule, self._noted = StageRule(name, name), noted

    def screen(self, update):
        self._noted.append((self.name, "screen"))
        return update

    def weigh(self, scope, update, weight):
        self._noted.append((self.name, "accumulate"))
        return weight

    def combine(self, group, combination):
        self._noted.append((self.name, "combine"))
        return combination

    def release(self, base, combined):
        self._noted.append((self.name, "release"))

    def end(self, ending):
        self._noted.append((self.name, "end"))
        return Outcome()


def test_every_step_is_taken_by_all_stages_before_the_next_one_begins():
    noted = []
    aggregation = Pipeline([Noting("sharing", noted), Noting("norms", noted)]).begin(BASE)
    aggregation.add(update("a", [1.0, 2.0, 3.0]))
    aggregation.close()
    assert noted == [(stage, step) for step in STEPS for stage in ("norms", "sharing")]


# All updates at once.


class Median(Accumulator):
    """The median of parameters, element by element, two elements at a time."""

    reads_blocks = True

    def __init__(self, layout):
        super().__init__(layout)
        self._result = Component(layout)

    def add(self, component, weight, base=None, scale=1.0, *, is_delta=True, may_keep=False):
        return False

    def merge(self, other):
        raise NotImplementedError

    def close(self, blocks=None):
        for number, run in enumerate(self.runs):
            for start in range(0, len(run), 2):
                values = [
                    blocks.read(row, number, start, min(start + 2, len(run))) for row in range(len(blocks.updates))
                ]
                run[start : start + 2] = torch.stack(values).median(dim=0).values

    @property
    def runs(self):
        return self._result.runs()

    @property
    def buffer(self):
        return self._result.buffer

    def result(self):
        return self._result


class Medians(Stage):
    """Takes the median in place of the mean."""

    rule = StageRule("median", "median")

    def accumulator(self, layout):
        return Median(layout)


def test_an_accumulator_may_read_all_updates_block_by_block_when_the_round_closes():
    updates = [update("a", [1.0, 9.0, 5.0]), update("b", [2.0, 7.0, 5.5]), update("c", [1e9, 8.0, -1e9])]
    aggregation = begun(Pipeline([Medians()]), updates, BASE)
    assert [aggregation.add(one, may_keep=True) for one in updates] == [set()] * 3
    aggregate = aggregation.close(BlocksInMemory(updates))
    assert aggregate.components["shared"].views()["encoder.w"].tolist() == [2.0, 8.0, 5.0]


def test_nothing_of_an_update_is_kept_if_any_of_its_components_is_read_again():
    class OfHeads(Medians):
        def accumulator(self, layout):
            return Median(layout) if layout.scope == "task:sst2" else None

    tensors = {"encoder.w": torch.ones(3), "heads.sst2.w": torch.ones(2)}
    both, encoder = update_of("a", "sst2", 1, tensors), update("b", [1.0, 2.0, 3.0])
    aggregation = begun(Pipeline([OfHeads()]), [both, encoder], BASE)
    assert (aggregation.reads_again(both), aggregation.reads_again(encoder)) == (True, False)
    assert aggregation.add(both, may_keep=True) == set()
    aggregation = begun(Pipeline([OfHeads()]), [encoder], BASE)
    assert aggregation.add(encoder, may_keep=True) == {"shared"}


def test_each_of_several_accumulators_of_a_component_reads_the_updates_of_its_task():
    class ByTask(Medians):
        needs_task_means = True

    updates = [update("a", [1.0] * 3), update("b", [5.0] * 3, task="qqp"), update("c", [3.0] * 3, task="qqp")]
    aggregation = begun(Pipeline([ByTask()]), updates, BASE)
    for one in updates:
        aggregation.add(one)
    aggregate = aggregation.close(BlocksInMemory(updates))
    assert aggregate.components["shared"].views()["encoder.w"].tolist() == [4.0] * 3  # of 1, and the lower of 3 and 5


def test_updates_that_nobody_kept_cannot_be_read_again():
    updates = [update("a", [1.0, 9.0, 5.0])]
    aggregation = begun(Pipeline([Medians()]), updates, BASE)
    aggregation.add(updates[0])
    with pytest.raises(AggregationError, match="shared: its updates must be read again, but weren't kept"):
        aggregation.close()


# Memory.


def test_a_round_keeps_one_model_and_a_mean_for_each_task_where_tasks_are_weighted():
    model, members = layouts("shared", "task:a", "task:b"), {"shared": ("a", "b"), "task:a": ("a",), "task:b": ("b",)}
    one = sum(layout.num_bytes for layout in model)
    assert Pipeline([NormScreening(NormsConfig())]).kept_bytes(model, members.__getitem__) == one
    weighted = Pipeline([TaskWeights(Uniform(AggregationConfig()))])
    assert weighted.kept_bytes(model, members.__getitem__) == one + model[0].num_bytes


def test_what_is_broadcast_and_what_a_stage_lets_the_model_grow_to_is_kept_too():
    model = layouts("shared", "task:a")
    controls = ControlVariates(model)
    whole = sum(layout.num_bytes for layout in model)
    assert Pipeline([controls]).kept_bytes(model, lambda scope: ("a",)) == 2 * whole  # all of it is float32

    class Growing(Medians):
        growth = 2.5

    assert Pipeline([Growing()]).kept_bytes(model, lambda scope: ("a",)) == int(2.5 * whole)


# State.


def test_all_that_stages_remember_is_written_and_restored_in_one_loop():
    model = layouts("shared")
    optimizer = make_optimizer(ServerOptimizerConfig(name="fedavgm"))

    def made():
        return Pipeline([OptimizerSteps(optimizer, model), ControlVariates(model), FedNova()])

    run = made()
    run.restore({}, {}, model)
    run.stages[1].release(Component(model[0]), Component.pack("shared", {"shared.w": torch.ones(4)}))
    components, metadata = run.components(), run.metadata()
    assert list(components) == [layout.scope for layout in run.state_layouts(model, {})]
    assert list(components) == ["shared/momentum", "control:shared"]
    assert metadata == {"control_variates": {"since": 1, "known": {}}}
    again = made()
    again.restore(components, metadata, model)
    assert torch.equal(again.components()["shared/momentum"].buffer, components["shared/momentum"].buffer)
    assert again.metadata() == metadata


def test_a_pipeline_finds_a_stage_by_its_class():
    shares = ClientShares(0.9)
    pipeline = Pipeline([FedNova(), shares])
    assert pipeline.find(ClientShares) is shares
    assert pipeline.find(NormScreening) is None


@pytest.mark.parametrize("round_", [1, 2])
def test_the_factors_of_auxiliary_tasks_are_those_of_the_round(round_):
    pipeline = Pipeline([AuxiliaryTasks({"mlm": AuxiliaryConfig(weight=0.5, decay=0.5)})])
    assert pipeline.factors(round_) == {"mlm": 0.5**round_}
