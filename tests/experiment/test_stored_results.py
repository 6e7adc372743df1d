"""The stored results in docs/results: the report is made from them, and the chart shows their paired differences."""

import json
from pathlib import Path
from statistics import fmean, stdev

import pytest

from fedmtl_experiment import cells as grid
from fedmtl_experiment import config, plots, report, runner, tables
from fedmtl_experiment.results import Folder

ROOT = Path(__file__).parents[2]
STORED = ROOT / "docs" / "results"


@pytest.fixture(scope="module")
def comparisons():
    experiment = config.load(ROOT / "configs" / "experiment.yaml")
    cells = grid.plan(experiment)
    results = Folder(STORED).finished({cell: grid.inputs(experiment, cell) for cell in cells})
    assert (len(results), len(cells)) == (291, 364)  # `auto` and `mtl_preserve` have few results yet
    return runner.comparisons_of(experiment, results)


def stored_values(setting, encoder, method):
    """The main metric on the reported rows by seed and task, read without the package."""
    values = {}
    for path in (STORED / "cells" / setting / encoder).glob(f"{method}-*.json"):
        tasks = json.loads(path.read_text())["tasks"]
        values[int(path.stem.removeprefix(f"{method}-"))] = {
            task: outcome["report"][outcome["metric"]] for task, outcome in tasks.items()
        }
    return {seed: tasks | {"mean": fmean(tasks.values())} for seed, tasks in values.items()}


def stored_difference(setting, encoder, method, task):
    """The mean of the paired differences to `standard`, and its standard error."""
    ours, theirs = (stored_values(setting, encoder, one) for one in (method, "standard"))
    differences = [ours[seed][task] - theirs[seed][task] for seed in ours]
    return fmean(differences), stdev(differences) / len(differences) ** 0.5


def test_the_chart_shows_the_paired_differences_of_the_stored_cells(comparisons):
    """Every drawn point and both ends of its bar, for 6 settings, 2 encoders, 3 tasks and their mean."""
    points = plots.difference_points(comparisons)
    assert len(points) == (12 * 2 - 1) * 4  # the chosen method and `mtl`, which are the same once
    assert {(point.setting, point.encoder) for point in points} == {
        (setting.name, encoder.name) for setting in (STORED / "cells").iterdir() for encoder in setting.iterdir()
    }
    expected, drawn = [], []
    for point in points:
        mean, error = stored_difference(point.setting, point.encoder, point.method, point.task)
        assert point.difference.mean == pytest.approx(mean)
        assert point.difference.standard_error == pytest.approx(error)
        expected.append((point.encoder, mean, mean - 2 * error, mean + 2 * error))
    for axes in plots.differences(comparisons).axes:
        for markers, _, (bars,) in axes.containers:
            for mean, (start, end) in zip(markers.get_xdata(), bars.get_segments(), strict=True):
                drawn.append((axes.get_title(), mean, start[0], end[0]))
    for (title, *values), (encoder, *wanted) in zip(sorted(drawn), sorted(expected), strict=True):
        assert title == encoder
        assert values == pytest.approx(wanted)


def test_the_stored_report_is_the_one_that_the_program_writes(comparisons):
    counts = {"finished": 291, "planned": 364}
    assert (STORED / "results.md").read_text(encoding="utf-8") == tables.markdown(comparisons, **counts)
    stored = json.loads((STORED / "results.json").read_text())
    assert stored == json.loads(json.dumps(report.to_json(comparisons, **counts)))


def test_the_page_has_the_overview_that_the_program_writes():
    """Every row of the overview in docs/results.md is a row of the written report."""
    written = (STORED / "results.md").read_text(encoding="utf-8").splitlines()
    overview = [line for line in written if line.startswith("|")][:14]
    assert overview[0].startswith("| setting, encoder | chosen |")
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert "\n".join(overview) in page
