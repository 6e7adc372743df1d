"""The stored results in docs/results: the report is made from them, and the chart shows their paired differences."""

import json
import re
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
    assert (len(results), len(cells)) == (377, 403)  # `auto` and `mtl_preserve` aren't complete yet
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


def stored_difference(setting, encoder, method, task, seeds=None, other="standard"):
    """The mean of the paired differences to another method, and its standard error; None for one seed."""
    ours, theirs = (stored_values(setting, encoder, one) for one in (method, other))
    differences = [ours[seed][task] - theirs[seed][task] for seed in seeds or ours]
    error = stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else None
    return fmean(differences), error


def shown_difference(text):
    """The mean and the standard error in a cell such as `+0.053 (SE 0.005), method`; None without an error."""
    mean, error = re.match(r"([+-][0-9.]+)(?: \(SE ([0-9.]+)\))?", text).groups()
    return float(mean), None if error is None else float(error)


def test_the_chart_shows_the_paired_differences_of_the_stored_cells(comparisons):
    """Every drawn point and both ends of its bar, for the 6 settings and 2 encoders with three seeds, 3 tasks and
    their mean."""
    points = plots.difference_points(comparisons)
    assert len(points) == 12 * 2 * 4  # the chosen method and `mtl`, which is never the chosen one
    assert {(point.setting, point.encoder) for point in points} == {
        (setting.name, encoder.name)
        for setting in (STORED / "cells").iterdir()
        for encoder in setting.iterdir()
        if (encoder / "standard-3.json").exists()
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
    counts = {"finished": 377, "planned": 403}
    assert (STORED / "results.md").read_text(encoding="utf-8") == tables.markdown(comparisons, **counts)
    stored = json.loads((STORED / "results.json").read_text())
    assert stored == json.loads(json.dumps(report.to_json(comparisons, **counts)))


def test_the_page_opens_with_what_auto_is_worth():
    """Each difference in the first table of docs/results.md, in the order of the experiment's settings."""
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    lines = [line for line in page[: page.index("## Findings")].splitlines() if line.startswith("| ")]
    assert lines[0].startswith("| setting, encoder | seeds |")
    tasks = ["sst2", "qqp", "stsb", "mean"]
    for line in lines[2:]:
        place, num_seeds, *differences, by_hand, plain = [cell.strip() for cell in line.strip("|").split("|")]
        setting, encoder = re.search(r"\(`(\w+)`\), (\w+)$", place).groups()
        seeds = sorted(stored_values(setting, encoder, "auto_sick"))
        assert int(num_seeds) == len(seeds)
        shown = {("auto_sick", task): text for task, text in zip(tasks, differences, strict=True)}
        shown |= {(re.search(r"`(\w+)`", by_hand)[1], "mean"): by_hand, ("mtl", "mean"): plain}
        for (method, task), text in shown.items():
            wanted = stored_difference(setting, encoder, method, task, seeds)
            assert shown_difference(text) == pytest.approx(wanted, abs=0.00051), (place, method, task)
    assert len(lines) - 2 == len(list((STORED / "cells").glob("*/*/auto_sick-1.json"))) - 1  # without six layers


def test_the_page_says_what_adapters_are_worth():
    """Each row of the table of adapters in docs/results.md, against full fine-tuning and a task's own federation."""
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    page = page[page.index("### Adapters") :]
    lines = [line for line in page[: page.index("\n- ")].splitlines() if line.startswith("| ")]
    tasks = ["sst2", "qqp", "stsb", "mean"]
    methods = []
    for line in lines[2:]:
        title, mean, to_full, *to_own, sent, held = [cell.strip() for cell in line.strip("|").split("|")]
        method = re.search(r"\(`(\w+)`\)$", title)[1]
        methods.append(method)
        values = stored_values("mission", "minilm", method)
        assert len(values) == 3
        assert float(mean) == pytest.approx(fmean(tasks["mean"] for tasks in values.values()), abs=0.00051)
        own = "standard_lora_average" if "average" in method else "standard_lora"
        for text, task, other in [
            (to_full, "mean", "mtl"),
            *((one, task, own) for task, one in zip(tasks, to_own, strict=True)),
        ]:
            if text != "–":
                wanted = stored_difference("mission", "minilm", method, task, other=other)
                assert shown_difference(text) == pytest.approx(wanted, abs=0.00051), (method, task, other)
        cells = [
            json.loads(path.read_text()) for path in (STORED / "cells/mission/minilm").glob(f"{method}-[0-9].json")
        ]
        assert float(sent.replace(",", "")) == pytest.approx(
            fmean(one["bytes_up"] + one["bytes_down"] for one in cells) / 1e6, abs=0.051
        )
        assert {round(one["held_parameters"] / one["encoder_parameters"], 2) for one in cells} == {float(held)}
    with_adapters = {path.stem[:-2] for path in (STORED / "cells/mission/minilm").glob("*lora*-1.json")}
    assert set(methods) == with_adapters | {"mtl", "standard"}


def test_the_page_has_the_overview_that_the_program_writes():
    """Every row of the overview in docs/results.md is a row of the written report."""
    written = (STORED / "results.md").read_text(encoding="utf-8").splitlines()
    overview = [line for line in written if line.startswith("|")][:15]
    assert overview[0].startswith("| setting, encoder | chosen |")
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert "\n".join(overview) in page
