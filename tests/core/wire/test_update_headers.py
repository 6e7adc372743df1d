"""An update as a header and back: nothing is lost, and a stage's number is one line of a table."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from fedmtl.v1 import federation_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st

from fedmtl_core.errors import InvalidRequestError, LayoutMismatchError
from fedmtl_core.tasks.evaluation import ClassCounts, Evaluation
from fedmtl_core.tasks.glue import PRESETS
from fedmtl_core.tasks.paired import PairedLoss, VariantEvaluation
from fedmtl_core.wire.encoded import EncodedLayout
from fedmtl_core.wire.layout import Layout, TensorSpec
from fedmtl_core.wire.update_headers import (
    EXTRA_FIELDS,
    components_from_header,
    update_from_bytes,
    update_from_header,
    update_to_header,
    with_components,
)
from fedmtl_core.wire.updates import Update

SPEC = PRESETS["sst2"]
LAYOUT = Layout("shared", (TensorSpec("w", torch.float32, (2, 3), 0),))
COUNTS = ClassCounts((1, 2), (2, 3), (2, 3))
EXTRAS: dict[str, dict[str, float]] = {}
for one in EXTRA_FIELDS:
    EXTRAS.setdefault(one.stage, {})[one.name] = 2
WHOLE = Update(
    client_id="a",
    task="sst2",
    base_round=3,
    update_id="u",
    kind="delta",
    run_id="run",
    num_examples=40,
    received=Evaluation({"accuracy": 0.5}, 5, {"f1": ""}, COUNTS),
    trained=Evaluation({"train_loss": 0.25}, 5),
    components=(EncodedLayout(LAYOUT, "int8", 14),),
    compression="zstd",
    next_task="qqp",
    extras=EXTRAS,
    variants=(
        VariantEvaluation(
            "own", PairedLoss(5, 0.5, -0.25, 0.125), Evaluation({"accuracy": 0.75}, 5, {"f1": ""}, COUNTS)
        ),
        VariantEvaluation("bad", None),
    ),
)


def read(header: pb.UpdateHeader) -> Update:
    return with_components(update_from_header(header, SPEC), header, components_from_header(header, [LAYOUT]))


def test_an_update_comes_back_whole():
    assert read(update_to_header(WHOLE)).repeats(WHOLE)
    assert update_from_bytes(
        update_to_header(WHOLE).SerializeToString(), lambda update: [LAYOUT], lambda task: SPEC
    ).repeats(WHOLE)


def test_every_field_of_the_header_comes_from_the_update():
    assert {field.name for field, _ in update_to_header(WHOLE).ListFields()} == {
        field.name for field in pb.UpdateHeader.DESCRIPTOR.fields
    }


def test_an_evaluation_that_measured_nothing_has_details_and_one_that_was_not_made_has_none():
    header = update_to_header(dataclasses.replace(WHOLE, received=Evaluation({}, 5), trained=Evaluation()))
    assert (header.HasField("received_details"), header.HasField("trained_details")) == (True, False)


@pytest.mark.parametrize("extra", EXTRA_FIELDS, ids=lambda one: one.name)
def test_a_stages_number_travels_in_the_field_of_its_name_and_alone(extra):
    update = dataclasses.replace(WHOLE, extras={extra.stage: {extra.name: 7}})
    header = update_to_header(update)
    assert getattr(header, extra.name) == 7
    assert read(header).extras == {extra.stage: {extra.name: 7}}
    others = [one for one in EXTRA_FIELDS if one != extra]
    assert all(read(header).extra_of(one.stage, one.name) == 0 for one in others)


@pytest.mark.parametrize("number", [-1.0, 1e-31, 1e31, float("nan"), float("inf")])
def test_a_stages_number_out_of_its_bounds_is_refused_by_the_name_of_its_field(number):
    header = update_to_header(WHOLE)
    header.learning_rate_sum = number
    with pytest.raises(InvalidRequestError, match=r"learning_rate_sum: expected 0, or 1e-30 to 1e\+30, got "):
        update_from_header(header, SPEC)


def test_metrics_alone_have_no_number_of_any_stage_and_no_examples():
    header = update_to_header(dataclasses.replace(WHOLE, kind="metrics", components=()))
    update = update_from_header(header, SPEC)
    assert (update.extras, update.num_examples) == ({}, 0)


def test_variants_count_for_metrics_alone_too_and_need_rows():
    header = update_to_header(dataclasses.replace(WHOLE, kind="metrics", components=()))
    assert len(update_from_header(header, SPEC).variants) == 2
    for name in ("received_metrics", "trained_metrics", "received_details", "trained_details", "num_eval_examples"):
        header.ClearField(name)
    with pytest.raises(InvalidRequestError, match=r"num_eval_examples: expected 1 to .* with metrics, got 0"):
        update_from_header(header, SPEC)


def test_variants_that_an_older_server_did_not_look_at_are_left_out_of_an_update_from_its_file():
    header = update_to_header(WHOLE)
    header.variants[0].loss = float("nan")
    update = update_from_bytes(header.SerializeToString(), lambda update: [LAYOUT], lambda task: SPEC)
    assert (update.variants, update.num_examples) == ((), 40)


@given(st.integers(1, 2**53), st.integers(1, 2**53))
def test_a_limit_keeps_what_the_client_said_and_the_header_says_it_again(said, limit):
    update = dataclasses.replace(WHOLE, num_examples=said).limited_to(limit)
    assert update.num_examples == min(said, limit)
    assert update.claimed_examples == (said if said > limit else 0)
    assert update_to_header(update).num_examples == said


@pytest.mark.parametrize(
    "change",
    [
        {"update_id": "v"},
        {"num_examples": 41},
        {"extras": {}},
        {"components": (EncodedLayout(LAYOUT, "float32", 24),)},
        {"received": Evaluation({"accuracy": 0.5}, 6, {"f1": ""}, COUNTS)},
        {"received": Evaluation({"accuracy": 0.5}, 5, {}, COUNTS)},
        {"trained": Evaluation({"train_loss": 0.5}, 5)},
        {"variants": ()},
        {"variants": WHOLE.variants[:1]},
        {"variants": (dataclasses.replace(WHOLE.variants[0], paired=PairedLoss(5, 0.5, -0.25)), WHOLE.variants[1])},
        {"variants": (dataclasses.replace(WHOLE.variants[0], evaluation=Evaluation()), WHOLE.variants[1])},
    ],
    ids=str,
)
def test_a_retry_repeats_every_word(change):
    assert not dataclasses.replace(WHOLE, **change).repeats(WHOLE)


def test_how_its_chunks_are_compressed_is_no_part_of_the_update():
    assert dataclasses.replace(WHOLE, compression="none" if WHOLE.compression == "zstd" else "zstd").repeats(WHOLE)


def test_where_an_upload_starts_is_no_part_of_the_update():
    header = update_to_header(WHOLE)
    header.components[0].start_offset = 5
    assert [part.start for part in components_from_header(header, [LAYOUT])] == [5]
    assert read(header).repeats(WHOLE)


def test_components_of_another_layout_are_refused():
    other = Layout("shared", (TensorSpec("w", torch.float32, (3, 3), 0),))
    with pytest.raises(LayoutMismatchError):
        components_from_header(update_to_header(WHOLE), [other])
