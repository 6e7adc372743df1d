"""How an exception gets into the log, and how a console line is read again."""

import json

import pytest
import structlog

from fedmtl_core import logs


@pytest.fixture(autouse=True)
def _as_before():
    yield
    structlog.reset_defaults()


def logged(log_format, capsys) -> str:
    logs.configure(log_format)
    label = "what a row says"
    try:
        raise KeyError(len(label))
    except KeyError:
        logs.get_logger(rpc="GetSlice").exception("rpc.failed")
    return capsys.readouterr().err


def test_a_traceback_is_part_of_a_json_line(capsys):
    (line,) = logged("json", capsys).splitlines()
    line = json.loads(line)
    assert (line["event"], line["level"], line["rpc"]) == ("rpc.failed", "error", "GetSlice")
    assert line["exception"].startswith("Traceback (most recent call last):")
    assert line["exception"].endswith("KeyError: 15")


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_a_traceback_shows_no_values_of_variables(log_format, capsys):
    """They may be tensors, texts and labels."""
    text = logged(log_format, capsys)
    assert "Traceback (most recent call last):" in text
    assert text.count("what a row says") == 0


def test_the_event_and_the_values_of_a_console_line_are_read_again(capsys):
    logs.configure("console")
    logs.get_logger().info(
        logs.TRAINED, progress="Round 1/10", loss=0.25, seconds=1.5, evaluation_seconds=0.125, metrics={"loss": 2.0}
    )
    line = capsys.readouterr().err.rstrip()
    assert (logs.level_of(line), logs.event_of(line)) == ("info", "round.trained")
    assert logs.value_in(line, "progress") == "Round 1/10"
    assert logs.value_in(line, "seconds") == "1.5"
    assert logs.value_in(line, "evaluation_seconds") == "0.125"
    assert logs.value_in(line, "no_such") is None
    assert logs.event_of("Traceback (most recent call last):") == ""
