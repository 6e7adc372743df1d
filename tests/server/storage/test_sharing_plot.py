"""The picture of a run's sharing, read without its colors."""

from __future__ import annotations

import random

import pytest

from fedmtl_server.storage.sharing_plot import sharing_figure
from fedmtl_server.storage.sharing_timeline import Cell, SharingTimeline, Via

WHOLE = ("embeddings", "0", "1", "pooler")


def takes(*tasks):
    return Cell(frozenset(tasks), Via.UPDATES)


def shares(*tasks):
    return Cell(frozenset(tasks), Via.COPY)


def texts(axes):
    """The cells' texts by row, from left to right."""
    rows = {}
    for one in sorted(axes.texts, key=lambda one: one.get_position()):
        rows.setdefault(axes.get_yticklabels()[round(one.get_position()[1])].get_text(), []).append(one.get_text())
    return rows


def key(figure):
    (text,) = figure.texts
    return text.get_text().replace("\n", ";  ").split(";  ")


def test_each_cell_says_whose_updates_are_taken():
    cells = {
        "sst2": [takes("sst2")] * 3 + [takes("qqp", "sst2")],
        "qqp": [takes("qqp"), takes("qqp"), takes("qqp", "sst2"), takes("qqp")],
        "stsb": [takes("stsb")] * 2 + [takes("stsb", "sick")] * 2,
        "sick": [takes("sick")] * 3 + [takes("sst2", "qqp", "stsb", "sick")],
    }
    figure = sharing_figure(SharingTimeline(tuple(cells), range(4), {WHOLE: cells}))
    (axes,) = figure.axes
    assert axes.get_title(loc="left") == "whole encoder"
    assert texts(axes) == {
        "1  sst2": ["own", "+ qqp"],
        "2  qqp": ["own", "+ sst2", "own"],
        "3  stsb": ["own", "+ sick"],
        "4  sick": ["own", "+ all"],
    }
    assert [one.get_width() for one in axes.patches] == [3, 1, 2, 1, 1, 2, 2, 3, 1]
    assert axes.patches[1].get_facecolor() == axes.patches[3].get_facecolor()  # the same tasks
    assert axes.patches[3].get_facecolor() != axes.patches[6].get_facecolor()
    assert key(figure) == [
        "+ A: own copy, which takes A's updates too",
        "own or -: own copy, own updates only",
        "1, 2, …: the tasks at the left",
    ]


def test_parts_with_different_sharing_have_panels_of_their_own():
    tasks = ("a", "b", "c")
    lower = {task: [shares(*tasks)] * 2 for task in tasks}
    upper = {"a": [shares(*tasks), shares("a")], "b": [shares(*tasks), shares("b", "c")]}
    upper["c"] = upper["b"]
    local = {task: [Cell(frozenset((task,)), Via.CLIENTS)] * 2 for task in tasks}
    parts = {("embeddings", "0"): lower, ("1", "2"): upper, ("pooler",): local}
    figure = sharing_figure(SharingTimeline(tasks, (0, 1), parts))
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["embeddings, layer 0", "layers 1-2", "pooler"]
    assert [texts(axes)["3  c"] for axes in figure.axes] == [["= all"], ["= all", "= b"], ["each client"]]
    assert "= A: one copy, shared with A" in key(figure)
    assert "client or c: each client has its own copy" in key(figure)


@pytest.mark.parametrize(("num_tasks", "num_rounds"), [(2, 1), (12, 40), (20, 100)])
def test_every_cell_has_a_text_however_many_there_are(num_tasks, num_rounds):
    draw = random.Random(0)
    tasks = [f"task{number:02}" for number in range(num_tasks)]
    cells = {}
    for task in tasks:
        now, cells[task] = {task}, []
        for _ in range(num_rounds + 1):
            now = (now ^ {draw.choice(tasks)} if draw.random() < 0.1 else now) | {task}
            cells[task].append(takes(*now))
    timeline = SharingTimeline(tasks, range(num_rounds + 1), {WHOLE: cells})
    (axes,) = sharing_figure(timeline).axes
    middles = {(one.get_x() + one.get_width() / 2, one.get_y() + 0.5) for one in axes.patches}
    assert {one.get_position() for one in axes.texts} == middles
    assert sum(one.get_width() for one in axes.patches) == num_tasks * (num_rounds + 1)


def test_a_run_is_plain_if_all_tasks_always_share_everything():
    def timeline(*cells):
        return SharingTimeline(("a", "b"), (0, 1), {WHOLE: {"a": cells, "b": cells}})

    assert timeline(shares("a", "b"), shares("a", "b")).is_plain
    assert not timeline(shares("a", "b"), shares("a")).is_plain
    assert not timeline(takes("a", "b"), takes("a", "b")).is_plain
