"""What errors tell besides their message."""

import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode

from fedmtl_core.details import DETAILS_KEY, MAX_RETRY_S, retry_after_s, trailing_metadata
from fedmtl_core.errors import LimitExceededError, UnavailableError


def test_when_to_come_back_is_told_as_google_rpc_has_it():
    ((key, value),) = trailing_metadata(LimitExceededError("too fast", 1.25), "too fast")
    status = status_pb2.Status.FromString(value)
    retry = error_details_pb2.RetryInfo()
    assert key == DETAILS_KEY == "grpc-status-details-bin"
    assert (status.code, status.message) == (StatusCode.RESOURCE_EXHAUSTED.value[0], "too fast")
    assert status.details[0].Unpack(retry)
    assert (retry.retry_delay.seconds, retry.retry_delay.nanos) == (1, 250_000_000)


@pytest.mark.parametrize("seconds", [0.0, 0.004, 1.5, 3000.0])
def test_it_comes_back_as_it_was(seconds):
    assert retry_after_s(trailing_metadata(LimitExceededError("x", seconds), "x")) == seconds


@pytest.mark.parametrize("error", [LimitExceededError("too large"), UnavailableError("away")])
def test_an_error_that_says_nothing_of_it_has_no_details(error):
    assert trailing_metadata(error, str(error)) == ()


@pytest.mark.parametrize("metadata", [None, (), (("x", "y"),), ((DETAILS_KEY, b"\xff\xff"),), ((DETAILS_KEY, b""),)])
def test_what_cannot_be_read_says_nothing(metadata):
    assert retry_after_s(metadata) is None


def test_a_server_that_asks_for_ever_is_not_listened_to():
    assert retry_after_s(trailing_metadata(LimitExceededError("x", 1e9), "x")) == MAX_RETRY_S
