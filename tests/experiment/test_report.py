"""Tables and plots, from results that are made up here."""

import json
from dataclasses import replace

import pytest

from fedmtl_experiment.plots import bars, curves, difference_points, differences
from fedmtl_experiment.report import compare, to_json
from fedmtl_experiment.tables import markdown
from fedmtl_experiment.timing import WallTime
from tests.experiment.support import outcome, result

BASES = {"local": "local", "standard": "standard", "mtl": "mtl", "mtl_other": "mtl", "central": "central"}
RESULTS = [
    result("standard", 1, 0.70, held_parameters=2020),
    result("standard", 2, 0.80, held_parameters=2020),
    result("mtl", 1, 0.75),
    result("mtl", 2, 0.87),
    result("mtl_other", 1, 0.60),
    result("central", 1, 0.90, bytes_up=None, bytes_down=None, seconds=1234.5),
    result("central", 2, 0.90, bytes_up=None, bytes_down=None, seconds=1234.5),
]


def test_a_table_has_means_deviations_differences_ratios_and_costs():
    """The differences are 0.05 and 0.07: mean 0.06, error sqrt(0.0002) / sqrt(2) = 0.01. 0.81 / 0.9 = 0.9."""
    text = markdown(compare(RESULTS, BASES), finished=7, planned=10)
    assert text.startswith("# Results by setting and encoder\n\n7 of 10 cells are finished.\n")
    assert text.endswith("(tiny-toy-bars.png)\n")
    for line in (
        "## tiny, toy",
        "| method | seeds | sst2 accuracy | mean | mean / centralized | validation mean |",
        "| trivial baseline |  | 0.500 |  |  |  |",
        "| single-task federations (`standard`) | 2 | 0.750 ± 0.071 | 0.750 ± 0.071 | 0.833 | 0.750 |",
        "| whole encoder shared (`mtl`) | 2 | 0.810 ± 0.085 | 0.810 ± 0.085 | 0.900 | 0.810 |",
        "| mtl_other | 1 | 0.600 | 0.600 | 0.667 | 0.600 |",
        "| difference to single-task federations | sst2 | mean |",
        "| whole encoder shared (`mtl`) | +0.060 (SE 0.010) | +0.060 (SE 0.010) |",
        "| mtl_other | -0.100 | -0.100 |",
        "| single-task federations (`standard`) | 2,020 | 2.02 | 4.0 | 8 | 10 |",
        "| whole encoder shared (`mtl`) | 1,010 | 1.01 | 4.0 | 8 | 10 |",
        "| centralized training (`central`) | 1,010 | 1.01 | – | 8 | 1,234 |",
    ):
        assert line in text.splitlines(), line
    assert "| single-task federations (`standard`) | –" not in text  # they aren't compared with themselves
    assert "`local`" not in text


def test_costs_have_the_parts_of_the_wall_time_where_cells_have_them():
    """Means of 10 and 20 in total, of 1 and 3 at the start, and so on; the third cell is of an older version."""
    timed = [
        result("mtl", 1, 0.7, wall=WallTime(10.0, 1.0, 4.0, 2.0, 2.0, 1.0)),
        result("mtl", 2, 0.7, wall=WallTime(20.0, 3.0, 8.0, 4.0, 2.0, 3.0)),
        result("mtl", 3, 0.7),
        result("standard", 1, 0.7),
    ]
    lines = markdown(compare(timed, BASES), finished=4, planned=4).splitlines()
    head = "wall seconds | start-up | training | evaluation | exchange | reporting |"
    assert any(line.endswith(f"| seconds | {head}") for line in lines)
    assert "| whole encoder shared (`mtl`) | 1,010 | 1.01 | 4.0 | 8 | 10 | 15 | 2 | 6 | 3 | 2 | 2 |" in lines
    assert "| single-task federations (`standard`) | 1,010 | 1.01 | 4.0 | 8 | 10 | – | – | – | – | – | – |" in lines
    assert "wall seconds" not in markdown(compare(RESULTS, BASES), finished=7, planned=10)


def test_held_back_rows_have_their_own_table_with_differences():
    """Differences of 0.1 and 0.3: mean 0.2, error sqrt(0.02) / sqrt(2) = 0.1."""

    def held(method, seed, value):
        return result(method, seed, 0.5, tasks={"sst2": outcome(0.5, held_back={"accuracy": value})})

    results = [held("standard", 1, 0.6), held("standard", 2, 0.6), held("mtl", 1, 0.7), held("mtl", 2, 0.9)]
    lines = markdown(compare(results, BASES), finished=4, planned=4).splitlines()
    assert "| held-back rows, and difference | sst2 | mean |" in lines
    both = "0.800 ± 0.141, +0.200 (SE 0.100)"
    assert f"| whole encoder shared (`mtl`) | {both} | {both} |" in lines
    assert "| single-task federations (`standard`) | 0.600 ± 0.000 | 0.600 ± 0.000 |" in lines
    assert "held-back" not in markdown(compare(RESULTS, BASES), finished=7, planned=10)


def test_the_mean_over_tasks_is_taken_seed_by_seed():
    """Means over tasks are 0.6 and 0.8, and 0.5 and 0.5: differences 0.1 and 0.3, error sqrt(0.02) / sqrt(2) = 0.1."""

    def of_two(method, seed, sst2, qqp):
        return result(method, seed, 0.0, tasks={"sst2": outcome(sst2), "qqp": outcome(qqp)})

    results = [of_two("mtl", 1, 0.5, 0.7), of_two("mtl", 2, 0.9, 0.7)]
    results += [of_two("standard", 1, 0.4, 0.6), of_two("standard", 2, 0.6, 0.4)]
    (comparison,) = compare(results, BASES)
    mean = next(row.mean for row in comparison.methods if row.method == "mtl")
    assert mean.value.mean == pytest.approx(0.7)
    assert mean.to_standard.mean == pytest.approx(0.2)
    assert mean.to_standard.standard_error == pytest.approx(0.1)
    assert "| whole encoder shared (`mtl`) | +0.200 (SE 0.100) | +0.200 (SE 0.100) | +0.200 (SE 0.100) |" in markdown(
        [comparison], finished=4, planned=4
    )


def test_a_federation_of_all_tasks_is_chosen_by_the_rows_for_choosing_alone():
    def seen(method, seed, reported, chosen_by):
        return result(method, seed, 0.0, tasks={"sst2": outcome(reported, by_round={0: 0.9, 1: chosen_by})})

    results = [seen("mtl", seed, 0.9, 0.6) for seed in (1, 2)] + [seen("mtl_other", seed, 0.5, 0.7) for seed in (1, 2)]
    (comparison,) = compare([*results, seen("central", 1, 0.9, 0.95)], BASES)
    assert comparison.chosen == "mtl_other"
    lines = markdown([comparison], finished=5, planned=5).splitlines()
    assert "Chosen on the validation rows: mtl_other." in lines
    assert "| mtl_other | 2 | 0.500 ± 0.000 | 0.500 ± 0.000 | 0.556 | 0.700 |" in lines
    assert compare(results[:3], BASES)[0].chosen == "mtl"  # the other has fewer seeds
    assert compare(results[:1], BASES)[0].chosen is None


def test_an_overview_has_of_each_comparison_the_chosen_federation_and_its_lowest_and_highest_task():
    """stsb gains 0.1 and 0.3 (error sqrt(0.02) / sqrt(2)), sst2 loses 0.1 twice; 0.65 of central's 0.8 is 0.8125."""

    def of_two(method, seed, sst2, stsb, **more):
        return result(method, seed, 0.0, tasks={"sst2": outcome(sst2), "stsb": outcome(stsb)}, **more)

    results = [of_two("mtl", 1, 0.7, 0.5), of_two("mtl", 2, 0.7, 0.7)]
    results += [of_two("standard", 1, 0.8, 0.4), of_two("standard", 2, 0.8, 0.4)]
    results += [of_two("central", seed, 0.8, 0.8) for seed in (1, 2)]
    lines = markdown(compare(results, BASES), finished=6, planned=6).splitlines()
    values = "sst2 -0.100 (SE 0.000) | stsb +0.200 (SE 0.100) | +0.050 (SE 0.050) | 0.812 | 1.01"
    assert f"| tiny, toy | whole encoder shared (`mtl`) | 2 | {values} |" in lines
    without_standard = [one for one in results if one.cell.method != "standard"]
    alone = compare(without_standard, BASES)
    assert "minus single-task federations" not in markdown(alone, finished=4, planned=6)
    assert differences(alone) is None


def test_methods_are_compared_with_the_first_of_their_kind():
    others = [result("standard", 1, 0.5), result("standard_other", 1, 0.9), result("mtl", 1, 0.6)]
    (comparison,) = compare(others, {"standard": "standard", "standard_other": "standard", "mtl": "mtl"})
    rows = {row.method: row.tasks["sst2"].to_standard for row in comparison.methods}
    assert rows["standard"] is None
    assert rows["mtl"].mean == pytest.approx(0.1)
    assert rows["standard_other"].mean == pytest.approx(0.4)


def test_without_a_federation_per_task_and_central_data_there_is_nothing_to_compare_with():
    text = markdown(compare([result("mtl", 1, 0.7)], BASES), finished=1, planned=1)
    assert "difference to single-task federations" not in text
    assert "| whole encoder shared (`mtl`) | 1 | 0.700 | 0.700 | – | 0.700 |" in text


def test_the_model_of_the_best_round_is_reported_apart():
    best = [result(method, 1, 0.7, tasks={"sst2": outcome(0.7, 0.9)}) for method in ("mtl", "mtl_other")]
    lines = markdown(compare(best, BASES), finished=1, planned=1).splitlines()
    assert "| whole encoder shared (`mtl`) | 1 | 0.700 | 0.700 | – | 0.700 |" in lines
    assert "| whole encoder shared (`mtl`), best round | 1 | 0.900 |  |  |  |" in lines
    assert not any("mtl_other, best round" in line for line in lines)  # it isn't one of the main methods


def test_curves_are_means_over_seeds_of_the_rounds_that_all_have():
    short = outcome(0.0, by_round={0: 0.1, 1: 0.2})
    long = outcome(0.0, by_round={0: 0.3, 1: 0.6, 2: 1.0})
    results = [result("mtl", seed, 0.0, tasks={"sst2": one}) for seed, one in ((1, short), (2, long))]
    (comparison,) = compare(results, BASES)
    assert comparison.methods[0].tasks["sst2"].by_round == pytest.approx({0: 0.2, 1: 0.4})


def test_the_json_is_what_the_tables_are_made_of():
    values = json.loads(json.dumps(to_json(compare(RESULTS, BASES), finished=7, planned=10)))
    row = next(one for one in values["comparisons"][0]["methods"] if one["method"] == "mtl")
    assert row["tasks"]["sst2"]["to_standard"] == pytest.approx({"mean": 0.06, "standard_error": 0.01, "n": 2})
    assert (values["cells_finished"], values["cells_planned"]) == (7, 10)


def test_plots_show_every_method_once_for_each_task():
    (comparison,) = compare(RESULTS, BASES)
    axes = curves(comparison).axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines) == ["single-task federations", "whole encoder shared", "centralized training", "others"]
    assert list(lines["whole encoder shared"].get_ydata()) == pytest.approx([0.5, 0.81, 0.81])
    assert list(lines["others"].get_ydata()) == pytest.approx([0.5, 0.6, 0.6])
    drawn = bars(comparison).axes[0]
    assert [bar.get_width() for bar in drawn.patches] == pytest.approx([0.75, 0.81, 0.6, 0.9])
    labels = [label.get_text() for label in drawn.get_yticklabels()]
    assert labels == ["single-task federations", "whole encoder shared", "mtl_other (1 seed)", "centralized training"]


def test_a_bar_is_marked_with_the_value_of_single_task_federations_with_the_same_seeds():
    (comparison,) = compare(RESULTS, BASES)
    drawn = bars(comparison).axes[0].collections
    (marks,) = (one for one in drawn if one.get_label() == "single-task federations, same seeds")
    at, places = marks.get_offsets().T
    assert list(at) == pytest.approx([0.75, 0.70, 0.75])
    assert list(places) == [1, 2, 3]


def test_each_setting_and_encoder_has_tables_of_its_own():
    other = replace(RESULTS[0], cell=replace(RESULTS[0].cell, encoder="large"))
    assert [one.title for one in compare([*RESULTS, other], BASES)] == ["tiny, toy", "tiny, large"]


def test_methods_and_settings_have_the_labels_that_are_given():
    labels = {"standard": "one per task", "mtl_other": "another"}
    (comparison,) = compare(RESULTS, BASES, labels=labels, setting_labels={"tiny": "few rows"})
    assert comparison.title == "few rows (`tiny`), toy"
    titles = [row.title for row in comparison.methods]
    assert titles[:3] == ["one per task (`standard`)", "whole encoder shared (`mtl`)", "another (`mtl_other`)"]


def test_the_chart_of_differences_has_the_chosen_federation_and_the_first_one():
    other = [result("mtl_other", seed, 0.0, tasks={"sst2": outcome(0.95)}) for seed in (1, 2)]
    comparisons = compare([one for one in RESULTS if one.cell.method != "mtl_other"] + other, BASES)
    assert [(point.method, point.task, point.is_chosen) for point in difference_points(comparisons)] == [
        ("mtl", "sst2", False),
        ("mtl", "mean", False),
        ("mtl_other", "sst2", True),
        ("mtl_other", "mean", True),
    ]
    (axes,) = differences(comparisons).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["sst2", "mean"]
    assert [text.get_text() for text in axes.texts] == ["tiny", "mtl_other"]
