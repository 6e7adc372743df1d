"""What errors tell besides their message."""

import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode

from fedmtl_core.errors import (
    InvalidRequestError,
    LayoutMismatchError,
    LimitExceededError,
    StaleRoundError,
    UnavailableError,
    within,
)
from fedmtl_core.wire.details import DETAILS_KEY, DOMAIN, MAX_RETRY_S, Details, read_details, text_of, trailing_metadata


def details_of(error):
    """Each of an error's details as its own type, by that type's name, and the status they are in."""
    ((key, value),) = trailing_metadata(error, text_of(error))
    assert key == DETAILS_KEY == "grpc-status-details-bin"
    status = status_pb2.Status.FromString(value)
    found = {}
    for detail in status.details:
        name = detail.type_url.rpartition(".")[2]
        found[name] = getattr(error_details_pb2, name)()
        assert detail.Unpack(found[name])
    return found, status


def test_every_error_says_which_it_is_and_the_facts():
    found, status = details_of(StaleRoundError("round 3 has closed", round=4, got=3))
    assert (status.code, status.message) == (StatusCode.ABORTED.value[0], "round 3 has closed")
    assert list(found) == ["ErrorInfo"]
    info = found["ErrorInfo"]
    assert (info.reason, info.domain, dict(info.metadata)) == ("STALE_ROUND", DOMAIN, {"round": "4", "got": "3"})


def test_a_field_at_fault_is_named_by_its_path_in_the_request():
    with pytest.raises(LayoutMismatchError) as caught:
        with within("header"), within("components[0]"):
            raise LayoutMismatchError("dense: expected [4, 4], got [4, 5]", field="tensors[3].shape")
    found, _ = details_of(caught.value)
    (violation,) = found["BadRequest"].field_violations
    assert violation.field == "header.components[0].tensors[3].shape"
    assert violation.description == "dense: expected [4, 4], got [4, 5]"
    assert violation.reason == found["ErrorInfo"].reason == "LAYOUT_MISMATCH"


def test_a_field_is_the_requests_fault_only_where_the_request_is_to_be_mended():
    found, _ = details_of(StaleRoundError("too late", field="header"))
    assert "BadRequest" not in found


def test_when_to_come_back_is_told_as_google_rpc_has_it():
    found, status = details_of(LimitExceededError("too fast", 1.25))
    assert (status.code, status.message) == (StatusCode.RESOURCE_EXHAUSTED.value[0], "too fast")
    retry = found["RetryInfo"].retry_delay
    assert (retry.seconds, retry.nanos) == (1, 250_000_000)


@pytest.mark.parametrize("seconds", [0.0, 0.004, 1.5, 3000.0])
def test_it_comes_back_as_it_was(seconds):
    error = LimitExceededError("x", seconds, field="held", allowed=3)
    told = read_details(trailing_metadata(error, "x"))
    assert told == Details("LIMIT_EXCEEDED", {"allowed": "3"}, "", seconds, StatusCode.RESOURCE_EXHAUSTED, "x")
    error = InvalidRequestError("x", field="task")
    assert read_details(trailing_metadata(error, "x")) == Details(
        "INVALID_REQUEST", {}, "task", None, StatusCode.INVALID_ARGUMENT, "x"
    )


@pytest.mark.parametrize("error", [LimitExceededError("too large"), UnavailableError("away")])
def test_an_error_without_a_time_doesnt_say_when_to_come_back(error):
    assert read_details(trailing_metadata(error, str(error))).retry_after_s is None


@pytest.mark.parametrize("metadata", [None, (), (("x", "y"),), ((DETAILS_KEY, b"\xff\xff"),), ((DETAILS_KEY, b""),)])
def test_what_cannot_be_read_says_nothing(metadata):
    assert read_details(metadata) == Details()


def test_reasons_of_another_domain_are_not_ours():
    status = status_pb2.Status(code=10, message="x")
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="STALE_ROUND", domain="example.org"))
    assert read_details([(DETAILS_KEY, status.SerializeToString())]) == Details()


def test_a_server_that_asks_for_ever_is_not_listened_to():
    assert read_details(trailing_metadata(LimitExceededError("x", 1e9), "x")).retry_after_s == MAX_RETRY_S


def test_a_status_stays_below_what_clients_take_of_metadata():
    """Percent-encoded text takes three bytes for a control character, and binary metadata grows by a third."""
    facts = {f"fact_{number}": "é" * 1000 for number in range(100)}
    error = LayoutMismatchError("\n" * 5000, field="x" * 5000, **facts)
    text = text_of(error)
    ((key, value),) = trailing_metadata(error, text)
    assert 3 * len(text) + len(key) + 4 * len(value) / 3 < 8192
    found, _ = details_of(error)
    assert found["ErrorInfo"].metadata["fact_0"].startswith("\\xe9")
