"""Compute the cells of a folder of results beside other processes that do the same; each cell is locked meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from fedmtl_experiment.cells import Cell
from fedmtl_experiment.progress import ConsoleProgress
from fedmtl_experiment.results import Folder

_POLL_S = 1.0


def compute_all(
    cells: Iterable[Cell], folder: Folder, compute: Callable[[Cell], object], progress: ConsoleProgress
) -> None:
    """Compute cells until all have a result, here or in other processes.

    Cells that other processes compute are passed over. When no others remain, this waits for them, and takes over the
    cell of a process that ends without a result.

    Args:
        cells: the cells, in order.
        folder: the folder of the results.
        compute: computes and stores one cell.
        progress: receives progress.
    """
    remaining, has_told = list(cells), False
    while remaining:
        elsewhere = []
        for cell in remaining:
            with folder.claim(cell) as is_mine:
                if folder.is_finished(cell):
                    progress.found_finished()
                elif is_mine:
                    compute(cell)
                else:
                    elsewhere.append(cell)
        if elsewhere == remaining:
            if not has_told:
                progress.waiting_for(remaining)
            has_told = True
            time.sleep(_POLL_S)
        else:
            has_told = False
        remaining = elsewhere
