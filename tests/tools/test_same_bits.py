"""What two runs leave behind is compared to the last bit, and what a commit changed on purpose is let through."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fedmtl_core import config as configuration
from tools.same_bits.__main__ import main
from tools.same_bits.comparing import CHANGES, Change, compare, summarized
from tools.same_bits.readings import digest
from tools.same_bits.revisions import ROOT, commit_of, is_between
from tools.same_bits.scenario import Scenario, Turn
from tools.same_bits.scenarios import SCENARIOS

REPORT = {"rounds": {"1": {"report": {"components": [{"scope": "shared", "norms": [1.5, math.nan]}], "refused": []}}}}


def changed(**values: object) -> dict[str, object]:
    copy = json.loads(json.dumps(REPORT))
    copy["rounds"]["1"]["report"] |= values
    return copy


def written(path: Path, values: torch.Tensor, run_id: str, round_: str = "1") -> Path:
    save_file({"w": values}, path, {"run_id": run_id, "round": round_})
    return path


def test_two_readings_of_the_same_values_are_equal():
    assert compare(REPORT, json.loads(json.dumps(REPORT))).differences == []


def test_a_value_that_differs_in_its_last_bit_is_told_with_its_round_and_key_and_both_values():
    other = changed(components=[{"scope": "shared", "norms": [math.nextafter(1.5, 2), math.nan]}])
    (difference,) = compare(REPORT, other).differences
    assert str(difference) == "rounds.1.report.components[0].norms[0]: A has 1.5, B has 1.5000000000000002"


@pytest.mark.parametrize(("a", "b"), [(1, 1.0), (0.0, -0.0), (True, 1), (None, []), ([], {})])
def test_values_that_python_takes_for_equal_differ_if_they_are_not_the_same(a, b):
    assert len(compare({"x": a}, {"x": b}).differences) == 1


def test_a_key_of_one_revision_alone_differs_unless_a_change_has_it_in_the_later_one():
    more = changed(warnings=[{"code": "few"}])
    (difference,) = compare(REPORT, more).differences
    assert str(difference) == 'only in B: rounds.1.report.warnings[0].code: "few"'
    change = Change("report.warnings", "abc", "they are new")
    comparison = compare(REPORT, more, changes=[change])
    assert comparison.differences == []
    assert comparison.accepted == {change: 1}
    (difference,) = compare(more, REPORT, changes=[change]).differences
    assert str(difference).startswith("only in A: ")
    assert compare(REPORT, changed(forewarnings=1), changes=[change]).differences


def test_a_change_lets_values_through_that_are_as_close_as_it_says():
    change = Change("pearson", "abc", "summed otherwise", within=1e-12)
    a, near, far = ({"tasks": [{"pearson": value, "loss": value}]} for value in (0.5, 0.5 + 1e-14, 0.5 + 1e-9))
    assert [one.key for one in compare(a, near, changes=[change]).differences] == ["tasks[0].loss"]
    assert len(compare(a, far, changes=[change]).differences) == 2
    assert len(compare(a, {"tasks": [{"loss": 0.5}]}, changes=[change]).differences) == 1


def test_a_renamed_key_is_compared_under_its_new_name():
    renamed = [("components[].norms[]", "parts[].lengths[]"), ("refused", "turned_away")]
    a = {"components": [{"norms": [1.0, 2.0]}, {"norms": [3.0]}], "refused": {"num": 1}}
    b = {"parts": [{"lengths": [1.0, 2.0]}, {"lengths": [4.0]}], "turned_away": {"num": 1}}
    assert [str(one) for one in compare(a, b, renamed=renamed).differences] == [
        "parts[1].lengths[0]: A has 3.0, B has 4.0"
    ]
    assert len(compare(a, b).differences) == 8


def test_differences_of_many_rounds_are_told_by_the_first():
    a, b = ({"rounds": {f"{n}": {"x": n + more, "y": n} for n in range(3)}} for more in (0, 1))
    assert summarized(compare(a, b).differences) == ["rounds.0.x: A has 0, B has 1 (and 2 like it)"]


def test_a_file_has_another_digest_if_one_byte_differs_but_not_for_the_id_of_its_run(tmp_path):
    values = torch.arange(4, dtype=torch.float32)
    first = digest(written(tmp_path / "a", values, "0123"), "0123")
    assert digest(written(tmp_path / "b", values, "4567"), "4567") == first
    assert digest(written(tmp_path / "c", values, "0123", round_="2"), "0123") != first
    content = bytearray((tmp_path / "a").read_bytes())
    content[-1] ^= 1
    (tmp_path / "d").write_bytes(content)
    assert digest(tmp_path / "d", "0123") != first


def test_scenarios_have_names_of_their_own_and_those_that_are_the_same_as_another_come_after_it():
    names = [scenario.name for scenario in SCENARIOS]
    assert len(set(names)) == len(names)
    for place, scenario in enumerate(SCENARIOS):
        assert not scenario.same_as or scenario.same_as in names[:place]
        named = {turn.client for turn in scenario.steps if turn is not None}
        assert {*scenario.own, *scenario.failing, *named} <= set(scenario.clients)


def test_every_scenario_is_a_valid_configuration():
    for scenario in SCENARIOS:
        assert len(configuration.resolve(scenario.configuration()).clients) == len(scenario.clients)


def test_a_script_says_who_trains_who_is_waited_for_and_when_the_server_is_killed():
    scenario = Scenario("any", {}, {"a": "sst2"}, script="a1? kill a12")
    assert scenario.steps == [Turn("a", 1, trains=False), None, Turn("a", 12, trains=True)]
    with pytest.raises(ValueError, match="expected a step such as a1"):
        Turn.of("1a")


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="a checkout is needed")
def test_a_change_counts_between_revisions_that_it_lies_between():
    head = commit_of("HEAD")
    assert commit_of(".") == "."
    assert not is_between(head, head, ".")
    assert not is_between("0" * 40, head, ".")
    assert not any(is_between(change.since, head, head) for change in CHANGES)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["main"], "expected two revisions"),
        (["main", "main", "--only", "none"], "invalid choice"),
        (["main", "main", "--renamed", "a[]=b"], "the same number of []"),
        (["main", "main", "--keep", "."], "exists"),
        (["main", "main", "--jobs", "0"], "at least 1"),
        (["no-such-revision", "main"], "expected a commit that git knows"),
    ],
)
def test_a_wrong_command_line_is_told_with_exit_code_2(arguments, expected, capsys):
    try:
        code = main(arguments)
    except SystemExit as error:
        code = error.code
    assert code == 2
    assert expected in capsys.readouterr().err


def test_the_scenarios_are_listed(capsys):
    assert main(["--list"]) == 0
    assert capsys.readouterr().out.split() == [scenario.name for scenario in SCENARIOS]
