"""The sharing of a run in words: in the log, and as `fedmtl-server doctor` has it."""

import pytest
from structlog.testing import capture_logs

from fedmtl_core.config import sharing_in_words, validated
from fedmtl_server import doctor
from fedmtl_server.server import Server
from tests.support import tiny_model

PLAIN = "one encoder is averaged over all tasks, and each task has its own head"
AUTO = "each task has its own encoder, and takes other tasks' updates where clients' evaluations show a gain"


def config_of(sharing, *tasks):
    values = {"tasks": {key: {} for key in tasks or ("sst2", "qqp")}, "sharing": sharing, "server": {"port": 0}}
    return validated(values, "the file")


@pytest.mark.parametrize(
    ("sharing", "mode", "meaning", "others"),
    [
        ("plain", "plain", PLAIN, ["auto"]),
        ({}, "plain", PLAIN, ["auto"]),
        ("auto", "auto", AUTO, ["plain"]),
        (
            {"mode": "auto", "head": "local", "adaptive": {"patience": 1}},
            "auto",
            f"{AUTO}; other settings of `sharing`: head, adaptive.patience",
            ["plain"],
        ),
        ({"layers": {0: "task"}}, "custom", "as configured in `sharing`: layers", ["plain", "auto"]),
        (
            {"mode": "auto", "adaptive": {"policy": "cosine"}},
            "custom",
            "as configured in `sharing`: adaptive.policy",
            ["plain", "auto"],
        ),
    ],
)
def test_the_words_say_what_the_sharing_does_and_what_each_other_mode_would_do(sharing, mode, meaning, others):
    words = sharing_in_words(config_of(sharing))
    assert (words["mode"], words["meaning"]) == (mode, meaning)
    assert [text.partition("`")[0] for text in words["instead"].split("`sharing: ")[1:]] == others


def test_a_run_with_one_task_has_no_other_mode_and_says_so():
    meaning = "the run has one task, for which `plain` and `auto` are the same"
    for mode in ("plain", "auto"):
        assert sharing_in_words(config_of(mode, "sst2")) == {"mode": mode, "meaning": meaning}
    words = sharing_in_words(config_of({"head": "local"}, "sst2"))
    assert words == {"mode": "custom", "meaning": "as configured in `sharing`: head"}


@pytest.mark.parametrize(("sharing", "tasks"), [("plain", ["sst2", "qqp"]), ("auto", ["sst2"])])
def test_the_log_begins_with_them(sharing, tasks, tmp_path):
    config = config_of(sharing, *tasks)
    with capture_logs() as logs:
        Server(config, tmp_path, tiny_model(*tasks))
    assert logs[0] == {"event": "sharing.chosen", "log_level": "info", **sharing_in_words(config)}


def test_the_doctor_says_them_too():
    (found,) = doctor.sharing_mode(config_of("auto"))
    assert found.found == f"auto: {AUTO}; `sharing: plain` averages one encoder over all tasks"
