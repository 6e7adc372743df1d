"""The contract's messages to a client, as the values that a session works with."""

import pytest
from fedmtl.v1 import federation_pb2 as pb

from fedmtl_client.messages import event_from_proto, receipt_from_proto, slice_from, slice_header
from fedmtl_client.transport import Receipt, RoundEvent
from fedmtl_core.config import Config
from fedmtl_core.errors import InvalidRequestError, MalformedStreamError
from fedmtl_core.wire.messages import plan_to_proto


@pytest.mark.parametrize("name", [name for name, _ in pb.RoundEventKind.items() if not name.endswith("UNSPECIFIED")])
def test_every_kind_of_event_of_the_contract_has_a_name(name):
    event = event_from_proto(pb.WatchRoundsResponse(kind=pb.RoundEventKind.Value(name)))
    assert f"ROUND_EVENT_KIND_{event.kind.upper()}" == name


def test_an_event_keeps_what_it_says_of_its_client_and_its_round():
    message = pb.WatchRoundsResponse(
        run_id="run",
        kind=pb.ROUND_EVENT_KIND_OPENED,
        round=2,
        num_rounds=3,
        purpose=pb.ROUND_PURPOSE_TRAIN,
        in_cohort=True,
        reported=True,
        oldest_base_round=1,
        task="sst2",
    )
    expected = RoundEvent(
        "opened", "run", 2, 3, "train", in_cohort=True, reported=True, oldest_base_round=1, task="sst2"
    )
    assert event_from_proto(message) == expected
    assert expected.title == "Round 2/3"
    message.purpose = pb.ROUND_PURPOSE_EVALUATE
    assert event_from_proto(message).title == "Final evaluation"


def test_kinds_and_outcomes_of_a_newer_contract_are_unknown():
    event = event_from_proto(pb.WatchRoundsResponse(kind=99))  # enums of proto3 are open
    assert (event.kind, event.purpose) == ("unknown", "train")
    assert receipt_from_proto(pb.PushUpdateResponse(outcome=99)).outcome == "unknown"


@pytest.mark.parametrize("outcome", ["accepted", "duplicate"])
def test_a_receipt_says_what_became_of_the_update(outcome):
    message = pb.PushUpdateResponse(outcome=pb.Outcome.Value(f"OUTCOME_{outcome.upper()}"), round=4, num_bytes=12)
    assert receipt_from_proto(message) == Receipt(outcome, 4, 12)


@pytest.mark.parametrize("opening", [b"", pb.GetSliceResponse(chunk=pb.Chunk(scope="shared", data=b"x"))])
def test_a_slice_that_does_not_begin_with_its_header_is_malformed(opening):
    with pytest.raises(MalformedStreamError, match="expected a header as the first message"):
        slice_header(opening if isinstance(opening, bytes) else opening.SerializeToString())


def test_a_learning_rate_schedule_that_begins_after_the_slices_round_is_refused():
    entry = {"after_round": 3, "layers": {"0": "task"}, "restart_schedule": True}
    config = Config.model_validate({"tasks": {"sst2": {}}, "sharing": {"schedule": [entry]}})
    header = pb.SliceHeader(round=4, purpose=pb.ROUND_PURPOSE_TRAIN, plan=plan_to_proto(config.plan("sst2", 4)))
    assert slice_from(header, "sst2", {}, 0).plan.rate_schedule == (4, 7)
    header.round = 3
    with pytest.raises(InvalidRequestError, match=r"schedule_first_round: expected at most the slice's round 3, got 4"):
        slice_from(header, "sst2", {}, 0)
