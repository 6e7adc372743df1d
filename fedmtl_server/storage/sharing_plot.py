"""The picture of a run's sharing: a row for each task, a column for each round."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from fedmtl_core.model.sharing import parts_text
from fedmtl_server.storage.sharing_timeline import Cell, SharingTimeline, Via

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

_DPI = 150
_WIDTH, _COLUMN = 12.0, 0.95
"""Largest width of all columns, and of one column, in inches."""
_HEIGHT, _ROW = 60.0, 0.3
"""Largest height of all rows, and of one row, in inches."""
_GAP, _HEADING, _AXIS, _LINE = 0.15, 0.3, 0.45, 0.19
"""Heights in inches: the space between panels, a panel's heading, the rounds' numbers, and a line of the key."""
_SIZES = (8.0, 7.0, 6.0)
"""Font sizes of a cell in points; the first size that fits is used."""
_ALONE, _ALL, _LOCAL = "#f2f2f2", "#9ecae1", "#ffffff"
_OTHERS = (
    *("#fdd0a2", "#c7e9c0", "#dadaeb", "#fcbba1", "#fff2ae", "#c6dbef", "#e5c494", "#b3e2cd"),
    *("#f4cae4", "#e6f5c9", "#cbd5e8", "#f1e2cc", "#d9f0a3", "#fccde5", "#bfd3e6", "#ccebc5"),
)
"""Colors of sets of tasks, light enough for black text; a picture with more sets uses them again."""


def plot_sharing(timeline: SharingTimeline, path: Path) -> None:
    """Draw a run's sharing into a PNG file."""
    sharing_figure(timeline).savefig(path)


def sharing_figure(timeline: SharingTimeline) -> Figure:
    """Return a drawing of a run's sharing: a panel for all parts with the same sharing, and in it a row for each task.

    Consecutive rounds with the same sharing form one cell. A cell's text says the same as its color, so that the
    drawing can be read without colors.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(facecolor="white", dpi=_DPI)  # texts are measured as they are drawn
    _Drawing(timeline, figure, FigureCanvasAgg(figure)).draw()
    return figure


@dataclass(frozen=True)
class _Span:
    """Consecutive rounds with equal cells."""

    cell: Cell
    first: int
    """The column of the first round."""
    length: int


def _spans(cells: Sequence[Cell]) -> Iterator[_Span]:
    """Yield the spans of a row."""
    first = 0
    for cell, equal in groupby(cells):
        length = len(list(equal))
        yield _Span(cell, first, length)
        first += length


class _Drawing:
    """Draws one picture.

    Args:
        timeline: the sharing.
        figure: an empty figure.
        canvas: its canvas, which measures texts.
    """

    def __init__(self, timeline: SharingTimeline, figure: Figure, canvas: FigureCanvasAgg):
        self._timeline = timeline
        self._figure = figure
        self._canvas = canvas
        self._number = {task: place for place, task in enumerate(timeline.tasks, 1)}
        self._column = min(_COLUMN, _WIDTH / len(timeline.rounds))
        self._row = min(_ROW, _HEIGHT / (len(timeline.tasks) * len(timeline.cells)))
        self._colors: dict[frozenset[str], str] = {}
        self._text_width = cache(self._measured)

    def draw(self) -> None:
        """Set the figure's size and draw all panels and the key."""
        labels = [self._label(task) for task in self._timeline.tasks]
        left = max(self._text_width(one, _SIZES[0]) for one in labels) + 0.2
        headings = [self._heading(parts) for parts in self._timeline.cells]
        wanted = max([self._text_width(one, 9.0) for one in headings] + [3.5])
        grid = self._column * len(self._timeline.rounds)
        width = left + max(grid, wanted) + 0.2
        panel = self._row * len(self._timeline.tasks)
        rows = (panel + _HEADING) * len(headings) + _GAP * (len(headings) - 1) + _AXIS
        key = self._key_lines(width - 0.2)
        height = rows + _LINE * len(key) + 0.1
        self._figure.set_size_inches(width, height)
        top = height
        for heading, by_task in zip(headings, self._timeline.cells.values(), strict=True):
            top -= _HEADING
            box = (left / width, (top - panel) / height, grid / width, panel / height)
            self._panel(self._figure.add_axes(box), heading, by_task, labels)
            top -= panel + _GAP
        bottom = self._figure.axes[-1]
        bottom.tick_params(axis="x", labelbottom=True)
        bottom.set_xlabel("round (0: before the first)", fontsize=8)
        self._figure.text(0.1 / width, 0.08 / height, "\n".join(key), fontsize=7.5, va="bottom", linespacing=1.5)

    def _panel(self, axes: Axes, heading: str, by_task: Mapping[str, Sequence[Cell]], labels: Sequence[str]) -> None:
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        rounds = self._timeline.rounds
        axes.set(xlim=(-0.5, len(rounds) - 0.5), ylim=(len(labels) - 0.5, -0.5))
        axes.set_title(heading, fontsize=9, loc="left", pad=4)
        axes.set_yticks(range(len(labels)), labels, fontsize=8)
        axes.tick_params(length=0, labelsize=8, labelbottom=False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=max(2, int(self._column * len(rounds) / 0.3))))
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda place, _: str(rounds[int(place)]) if 0 <= place < len(rounds) else "")
        )
        for spine in axes.spines.values():
            spine.set_visible(False)
        for row, (task, cells) in enumerate(by_task.items()):
            for span in _spans(cells):
                self._span(axes, row, task, span)

    def _span(self, axes: Axes, row: int, task: str, span: _Span) -> None:
        from matplotlib.patches import Rectangle

        edge = "#444444" if self._column * span.length > 0.05 else "none"
        axes.add_patch(
            Rectangle(
                (span.first - 0.5, row - 0.5),
                span.length,
                1,
                facecolor=self._color(span.cell),
                edgecolor=edge,
                linewidth=0.7,
                clip_on=False,
            )
        )
        room = 0.97 * self._column * span.length - 0.05
        center = (span.first + span.length / 2 - 0.5, row)
        for text in self._texts(task, span.cell):
            for size in _SIZES:
                if size / 72 <= self._row and self._text_width(text, size) <= room:
                    axes.text(*center, text, fontsize=size, ha="center", va="center")
                    return
        for text in self._texts(task, span.cell):
            if _SIZES[-1] / 72 <= room + 0.04 and self._text_width(text, _SIZES[-1]) <= self._row:
                axes.text(*center, text, fontsize=_SIZES[-1], ha="center", va="center", rotation=90)
                return

    def _texts(self, task: str, cell: Cell) -> list[str]:
        """Return the texts of a cell, from the longest to the shortest."""
        if cell.via is Via.CLIENTS:
            return ["each client", "client", "c"]
        others = [one for one in self._timeline.tasks if one in cell.tasks and one != task]
        if not others:
            return ["own", "-"]
        sign = "=" if cell.via is Via.COPY else "+"
        if len(others) + 1 == len(self._timeline.tasks) and len(others) > 1:
            return [f"{sign} all", f"{sign}all"]
        numbers = [str(self._number[one]) for one in others]
        missing = [str(self._number[one]) for one in self._timeline.tasks if one not in cell.tasks]
        texts = [f"{sign} {', '.join(others)}", f"{sign} {', '.join(numbers)}"]
        texts += [f"{sign} all but {', '.join(missing)}"] if len(missing) < len(others) else []
        return [*texts, f"{sign}{','.join(numbers)}", f"{sign} {len(others)}×", f"{len(others)}×"]

    def _color(self, cell: Cell) -> str:
        if cell.via is Via.CLIENTS:
            return _LOCAL
        if len(cell.tasks) == 1:
            return _ALONE
        if len(cell.tasks) == len(self._timeline.tasks):
            return _ALL
        return self._colors.setdefault(cell.tasks, _OTHERS[len(self._colors) % len(_OTHERS)])

    def _heading(self, parts: Sequence[str]) -> str:
        return "whole encoder" if len(self._timeline.cells) == 1 else parts_text(parts)

    def _label(self, task: str) -> str:
        return f"{self._number[task]}  {task}"

    def _key_lines(self, width: float) -> list[str]:
        """Return the lines that explain the signs that occur, wrapped to a width in inches."""
        cells = {one for by_task in self._timeline.cells.values() for mine in by_task.values() for one in mine}
        of_several = [one for one in cells if len(one.tasks) > 1]
        texts = {
            "= A: one copy, shared with A": any(one.via is Via.COPY for one in of_several),
            "+ A: own copy, which takes A's updates too": any(one.via is Via.UPDATES for one in of_several),
            "own or -: own copy, own updates only": any(
                len(one.tasks) == 1 and one.via is not Via.CLIENTS for one in cells
            ),
            "client or c: each client has its own copy": any(one.via is Via.CLIENTS for one in cells),
            "1, 2, …: the tasks at the left": bool(of_several),
            "5×: five other tasks": any(len(one.tasks) > 2 for one in of_several) and len(self._timeline.tasks) > 4,
        }
        lines: list[str] = []
        for text in (text for text, occurs in texts.items() if occurs):
            longer = f"{lines[-1]};  {text}" if lines else text
            if lines and self._text_width(longer, 7.5) <= width:
                lines[-1] = longer
            else:
                lines.append(text)
        return lines

    def _measured(self, text: str, size: float) -> float:
        """Return the width of a text in inches."""
        from matplotlib.font_manager import FontProperties

        renderer = self._canvas.get_renderer()  # type: ignore[no-untyped-call]
        width, _, _ = renderer.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)
        return float(width / renderer.dpi)
