"""The table of errors and status codes."""

from grpc import StatusCode

from fedmtl_core import errors, status


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
