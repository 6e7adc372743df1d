"""A variant that is chosen for a task: only its own tensors change, also those that it gets for itself just then."""

from __future__ import annotations

import math

import pytest
import torch
from fedmtl.v1 import federation_pb2 as pb

import fedmtl_server.assembly
from fedmtl_core.errors import AggregationError
from fedmtl_core.model.sharing import SharingRules
from fedmtl_core.model.sharing_schedule import SharingSchedule
from fedmtl_server.aggregation.pipeline import Pipeline
from fedmtl_server.aggregation.stages.base import Outcome
from fedmtl_server.aggregation.variants import make_variant, with_chosen
from fedmtl_server.sharing.layer_moves import LayerRegrouping
from tests.server.sharing.test_shared_layers import layered_model
from tests.support import full_of, model_bytes, reports_of, serving, watching

OPENED, FINISHED = pb.ROUND_EVENT_KIND_OPENED, pb.ROUND_EVENT_KIND_FINISHED
WEIGHT = "encoder.layer.1.weight"
TOGETHER, APART = (("sst2", "qqp"),), (("sst2",), ("qqp",))


def chosen_in(model, tensors):
    variant = make_variant("sst2", "own", tensors)
    return with_chosen(model.components, model.sharing, {"sst2": variant})


def test_only_the_tasks_own_components_with_a_chosen_tensor_are_new():
    model = layered_model("sst2", "qqp", "stsb")
    before = model_bytes(model)
    after = chosen_in(model, {WEIGHT: torch.full((4, 4), 7.0)})
    assert [scope for scope, one in after.items() if one is not model.components[scope]] == ["task:sst2"]
    views, old = after["task:sst2"].views(), model.components["task:sst2"].views()
    assert views[WEIGHT].eq(7.0).all()
    assert all(torch.equal(view, old[name]) for name, view in views.items() if name != WEIGHT)
    assert model_bytes(model) == before


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"encoder.layer.0.weight": torch.zeros(4, 4)}, "encoder.layer.0.weight is shared with qqp, stsb"),
        ({"heads.qqp.bias": torch.zeros(2)}, "heads.qqp.bias: expected None"),
        ({WEIGHT: torch.zeros(4, 3)}, r"expected float32 \[4, 4\], got float32 \[4, 3\]"),
        ({WEIGHT: torch.full((4, 4), math.inf)}, "its values aren't finite"),
    ],
)
def test_what_is_not_the_tasks_own_cannot_be_chosen(tensors, said):
    with pytest.raises(AggregationError, match=said):
        chosen_in(layered_model("sst2", "qqp", "stsb"), tensors)


class SplitAtEnd(LayerRegrouping):
    """Lets two tasks part at the end of the run, and gives one of them other values of what they had shared."""

    def end(self, ending):
        return Outcome()

    def conclude(self, ending):
        self._note_moved({"1": APART})
        own = make_variant("sst2", "own", {WEIGHT: torch.full((4, 4), 7.0)})
        return Outcome(moved={"1": TOGETHER}, moved_by={"1": "sharing.schedule[0]"}, chosen={"sst2": own})


async def test_a_task_that_leaves_the_others_at_the_end_gets_values_of_its_own(tmp_path, monkeypatch):
    make_pipeline = fedmtl_server.assembly.make_pipeline

    def with_stage(config, model, rules):
        stage = SplitAtEnd(model.parts, SharingSchedule.of(model.parts.shape, SharingRules(), []))
        return Pipeline([*make_pipeline(config, model, rules).stages, stage])

    monkeypatch.setattr(fedmtl_server.assembly, "make_pipeline", with_stage)
    model = layered_model("sst2", "qqp", rules=SharingRules())
    async with serving(tmp_path, model) as server, watching(server, a="sst2", b="qqp") as clients:
        for round_ in (1, 2):
            for client in clients.values():
                await client.until(OPENED, round_)
                header, data = await client.get_slice(round=round_)
                fields = {}
                if round_ == 2:
                    data = {}
                    metrics = {"received_metrics": {"accuracy": 0.5}, "num_eval_examples": 4}
                    fields = {"kind": pb.UPDATE_KIND_METRICS, "components": [], "num_examples": 0, **metrics}
                await client.push(client.update(header, full_of(data, 3), **fields))
        await clients["a"].until(FINISHED)
        await server.run_task
    sst2, qqp = model.get_model_slice_for_task("sst2"), model.get_model_slice_for_task("qqp")
    assert sst2[WEIGHT].eq(7.0).all()
    assert sst2["encoder.layer.1.bias"].eq(3.0).all()
    assert qqp[WEIGHT].eq(3.0).all()
    assert model.sharing.by_task["sst2"][WEIGHT] != model.sharing.by_task["qqp"][WEIGHT]
    assert [(one.moved, bool(one.tasks[0].chosen)) for one in reports_of(tmp_path)][1][1]
    final = model_bytes(model)

    again = layered_model("sst2", "qqp", rules=SharingRules())
    async with serving(tmp_path, again, finished=True):
        assert model_bytes(again) == final
