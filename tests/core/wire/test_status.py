"""The tables of errors, status codes and reasons, and that the proto documents them."""

import re
from pathlib import Path

import pytest
from grpc import StatusCode

from fedmtl_core import errors
from fedmtl_core.wire import status

PROTO = Path(__file__).parents[3] / "protos" / "fedmtl" / "v1" / "federation.proto"


def all_request_errors(base=errors.RequestError):
    return [error for sub in base.__subclasses__() for error in (sub, *all_request_errors(sub))]


def test_every_request_error_has_a_code():
    assert len(all_request_errors()) > 8
    for error in all_request_errors():
        assert status.status_of(error("x")) is not StatusCode.UNKNOWN, error


def test_codes_say_what_the_caller_does_next():
    assert status.status_of(errors.LayoutMismatchError("")) is StatusCode.INVALID_ARGUMENT
    assert status.status_of(errors.StaleRoundError("")) is StatusCode.ABORTED
    assert status.status_of(errors.ChecksumError("")) is StatusCode.DATA_LOSS


def test_an_error_comes_back_as_itself():
    for error, code in status.STATUS_OF.items():
        assert type(status.error_from_status(code, "why")) is error


def test_a_code_outside_the_contract_is_named():
    error = status.error_from_status(StatusCode.UNIMPLEMENTED, "boom")
    assert type(error) is errors.RequestError
    assert str(error) == "the server answered UNIMPLEMENTED: boom"


def test_every_error_that_a_server_sends_has_a_reason_of_its_own():
    assert set(all_request_errors()) == set(status.REASON_OF) | status.LOCAL
    assert len(set(status.REASON_OF.values())) == len(status.REASON_OF)
    for error, reason in status.REASON_OF.items():
        assert re.fullmatch("[A-Z][A-Z0-9_]{2,62}", reason)  # what google.rpc.ErrorInfo asks for
        assert status.reason_of(error("x")) == reason


def test_a_reason_tells_apart_what_has_one_code():
    for error, reason in status.REASON_OF.items():
        assert type(status.error_from_status(status.status_of(error("")), "why", reason)) is error


@pytest.mark.parametrize("reason", ["", "NEVER_HEARD_OF", "STALE_ROUND"])
def test_the_code_counts_where_the_reason_doesnt_help(reason):
    assert type(status.error_from_status(StatusCode.INVALID_ARGUMENT, "why", reason)) is errors.InvalidRequestError


def test_a_code_that_no_server_of_ours_sends_is_not_explained_by_a_reason():
    assert type(status.error_from_status(StatusCode.DATA_LOSS, "why", "UNKNOWN_TASK")) is errors.ChecksumError
    assert type(status.error_from_status(StatusCode.UNKNOWN, "why", "UNKNOWN_TASK")) is errors.RequestError


def test_the_proto_lists_each_code_with_its_reasons():
    service = PROTO.read_text().partition("// One federated multi-task run.")[2].partition("service ")[0]
    entries = re.findall(r"^// \* `([A-Z_]+)`(.*?)(?=^// \* |^//$)", service, re.MULTILINE | re.DOTALL)
    documented = {code: set(re.findall("`([A-Z_]+)`", text)) for code, text in entries}
    for error, reason in status.REASON_OF.items():
        code = status.status_of(error("")).name
        assert code in documented, code
        assert reason == code or reason in documented[code], f"{code} lacks {reason}"


def test_every_rpc_names_its_errors_with_reasons_that_there_are():
    body = PROTO.read_text().partition("service FederatedMtlService {")[2].partition("\n}")[0]
    rpcs = re.findall(r"((?:^  //.*\n)+)  rpc (\w+)\(", body, re.MULTILINE)
    assert [name for _, name in rpcs] == ["GetSlice", "PushUpdate", "QueryUpload", "WatchRounds", "GetStatus"]
    used = set()
    for comment, name in rpcs:
        assert "// Errors:" in comment, name
        for code, reason in re.findall(r"^  // \* `([A-Z_]+)`(?: \(`([A-Z_]+)`\))?: ", comment, re.MULTILINE):
            error = next(error for error, known in status.REASON_OF.items() if known == (reason or code))
            assert status.status_of(error("")).name == code, f"{name}: {reason}"
            used.add(reason or code)
    everywhere = {"UNAUTHENTICATED", "PERMISSION_DENIED", "SERVER_FAULT"}  # the service's comment says so
    assert used | everywhere == set(status.REASON_OF.values())
