"""Layouts and plans as messages, and back."""

from typing import get_args

import pytest
import torch
from fedmtl.v1 import federation_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st

from fedmtl_core.config import Config
from fedmtl_core.errors import InvalidRequestError, LayoutMismatchError
from fedmtl_core.identifiers import require_identifier
from fedmtl_core.tasks.plan import Pooling
from fedmtl_core.wire.encoded import EncodedLayout
from fedmtl_core.wire.encodings import encode
from fedmtl_core.wire.formats import ENCODINGS
from fedmtl_core.wire.layout import DTYPES, Component, Layout
from fedmtl_core.wire.messages import (
    component_from_proto,
    component_to_proto,
    layout_from_proto,
    plan_from_proto,
    plan_to_proto,
)


def sent(layout):
    """An exact component's table of contents, after it has been bytes."""
    message = component_to_proto(EncodedLayout(layout, "float32", layout.num_bytes))
    return pb.Component.FromString(message.SerializeToString())


@given(st.lists(st.tuples(st.lists(st.integers(0, 4), max_size=3), st.sampled_from(DTYPES)), max_size=6))
def test_a_layout_survives_the_wire(drawn):
    layout = Layout.of("task:x", {f"t{i}": torch.zeros(shape, dtype=dtype) for i, (shape, dtype) in enumerate(drawn)})
    assert layout_from_proto(sent(layout)) == layout


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_how_a_component_travels_survives_the_wire(encoding):
    component = Component.pack("shared", {"a": torch.ones(3, 5), "b": torch.ones(2, dtype=torch.float64)})
    part = EncodedLayout(component.layout, encoding, len(encode(component, encoding)), start=8)
    message = component_to_proto(part, digest=b"d", base_digest=b"b")
    assert component_from_proto(pb.Component.FromString(message.SerializeToString())) == part
    assert (message.digest, message.base_digest) == (b"d", b"b")


def test_a_component_that_says_nothing_of_an_encoding_is_exact():
    message = sent(Layout.of("shared", {"a": torch.zeros(3)}))
    message.ClearField("encoding")
    message.ClearField("encoded_bytes")
    part = component_from_proto(message)
    assert (part.encoding, part.num_bytes) == ("float32", 12)


def test_a_plan_survives_the_wire():
    training = {"update": "delta", "optimizer": "sgd", "proximal_mu": 0.5}
    config = Config.model_validate({"training": training, "tasks": {"sst2": {"train_samples": 7}}})
    plan = config.plan("sst2")
    assert plan_from_proto(pb.TrainingPlan.FromString(plan_to_proto(plan).SerializeToString())) == plan


@pytest.mark.parametrize("pooling", get_args(Pooling))
def test_every_pooling_survives_the_wire(pooling):
    plan = Config.model_validate({"model": {"pooling": pooling}, "tasks": {"sst2": {}}}).plan("sst2")
    assert plan_from_proto(plan_to_proto(plan)).pooling == pooling


def test_a_plan_says_which_labels_the_head_is_for():
    message = plan_to_proto(Config.model_validate({"tasks": {"rte": {}}}).plan("rte"))
    assert (message.task_type, list(message.labels)) == (
        pb.TASK_TYPE_CLASSIFICATION,
        ["entailment", "not_entailment"],
    )
    message.ClearField("task_type")  # a server that doesn't say
    assert plan_from_proto(message).task_type is None
    message.task_type = 9
    with pytest.raises(InvalidRequestError, match=r"plan\.task_type: unknown value 9"):
        plan_from_proto(message)


def test_a_plan_that_names_no_optimiser_means_adamw_and_an_unknown_one_is_refused():
    message = plan_to_proto(Config.model_validate({"tasks": {"sst2": {}}}).plan("sst2"))
    message.ClearField("optimizer")
    assert plan_from_proto(message).optimizer == "adamw"
    message.optimizer = 9
    with pytest.raises(InvalidRequestError, match=r"plan\.optimizer: unknown value 9"):
        plan_from_proto(message)


def test_a_size_that_does_not_add_up_is_refused():
    message = sent(Layout.of("shared", {"a": torch.zeros(3)}))
    message.num_bytes = 2**60
    with pytest.raises(LayoutMismatchError, match="the last tensor ends at byte 12"):
        layout_from_proto(message)


def test_an_unknown_element_type_is_refused_by_name():
    message = sent(Layout.of("shared", {"a": torch.zeros(3)}))
    message.tensors[0].dtype = 99
    with pytest.raises(LayoutMismatchError, match="a: unknown element type 99"):
        layout_from_proto(message)


def test_a_tensor_of_absurd_rank_is_refused_at_once():
    message = sent(Layout.of("shared", {"a": torch.zeros(3)}))
    message.tensors[0].shape.extend([2**63] * 100_000)
    with pytest.raises(LayoutMismatchError, match="a: expected at most 16 dimensions"):
        layout_from_proto(message)


def test_a_plan_that_cannot_be_followed_is_refused():
    message = plan_to_proto(Config.model_validate({"tasks": {"sst2": {}}}).plan("sst2"))
    message.batch_size = 0
    with pytest.raises(InvalidRequestError, match=r"plan\.batch_size: expected at least 1, got 0"):
        plan_from_proto(message)


@pytest.mark.parametrize("name", ["", "a b", "ä", "x" * 65, "a/b", "a\n"])
def test_a_name_that_is_no_identifier_is_refused(name):
    with pytest.raises(InvalidRequestError, match="client_id: expected 1 to 64 letters"):
        require_identifier("client_id", name)


def test_an_identifier_is_taken():
    assert require_identifier("client_id", "site-7_a.b") == "site-7_a.b"


def test_a_plan_says_which_learning_rate_schedule_is_in_progress():
    config = Config.model_validate(
        {
            "tasks": {"sst2": {}},
            "training": {"num_rounds": 5},
            "sharing": {"schedule": [{"after_round": 2, "layers": {"0": "task"}, "restart_schedule": True}]},
        }
    )
    message = plan_to_proto(config.plan("sst2", 4))
    assert (message.schedule_first_round, message.schedule_num_rounds) == (3, 3)
    assert plan_from_proto(message) == config.plan("sst2", 4)
    plain = plan_from_proto(plan_to_proto(Config.model_validate({"tasks": {"sst2": {}}}).plan("sst2")))
    assert plain.rate_schedule == (1, 10)  # as with a server that doesn't know the fields
    message.schedule_first_round = 0
    with pytest.raises(
        InvalidRequestError, match=r"plan\.schedule_num_rounds: expected it together with schedule_first"
    ):
        plan_from_proto(message)
