"""Rolling a run back to an earlier round. Needs no PyTorch.

The transaction of the history is the commit point: before it the run is unchanged, and after it the run is at the
earlier round. Files that the transaction makes superfluous are renamed or removed afterwards: here or, if this process
ends in between, when a server resumes the run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedmtl_core.errors import StoreError, UserError
from fedmtl_core.model.scopes import FROZEN, is_of_model
from fedmtl_server.storage.files import sync_folder
from fedmtl_server.storage.paths import (
    CHECKPOINTS,
    LOCK_FILE,
    PLOT_FILE,
    RESULTS_FILE,
    RUN_FILE,
    SHARING_PLOT_FILE,
    checkpoint_path,
    state_path,
)
from fedmtl_server.storage.runs import Place, holds, opened

if TYPE_CHECKING:
    from fedmtl_server.storage.records import RoundRecord

ROLLED_BACK, DAMAGED = ".rolled_back", ".damaged"
"""Suffixes of files that were checkpoints of the run."""


def roll_back(place: Place, to_round: int) -> list[int]:
    """Roll a run back to a round, so that a server that resumes it continues with the round after that one.

    Args:
        place: the run.
        to_round: the round to return to; 0 is the model before the first round.

    Returns:
        The rounds that were rolled back.

    Raises:
        UserError: the run has no such round, its checkpoint is missing, or no later round has begun.
        StoreError: a server is serving the run, or a file can't be read or written.
    """
    from filelock import FileLock, Timeout

    folder = place.folder
    if not holds(folder, place) or not (folder / RUN_FILE).is_file():
        raise StoreError(f"{folder} doesn't hold run {place.run.run_id}; roll it back on the machine of its server")
    try:
        with FileLock(folder / LOCK_FILE, blocking=False), opened(place.database) as history:
            rounds = history.rounds(place.run.run_id)
            later = [one.round for one in rounds if one.round > to_round and one.outcome != "rolled_back"]
            _require_possible(place, rounds, to_round, later)
            history.roll_back(place.run.run_id, to_round)
            clear_rolled_back(folder, later)
    except Timeout:
        raise StoreError(f"a server is serving the run in {folder}; stop it first") from None
    except OSError as error:
        raise StoreError(f"can't write {error.filename or folder}: {error.strerror or error}") from error
    return later


def clear_rolled_back(run_dir: Path, rounds: Collection[int]) -> None:
    """Set aside the checkpoints of rounds that are rolled back, and remove the run's results. It may be repeated.

    Raises:
        OSError: a file can't be renamed or removed.
    """
    if rounds:
        set_aside(run_dir, rounds, ROLLED_BACK)
        for name in (RESULTS_FILE, PLOT_FILE, SHARING_PLOT_FILE):
            (run_dir / name).unlink(missing_ok=True)


def set_aside(run_dir: Path, rounds: Iterable[int], suffix: str) -> None:
    """Rename the checkpoints of some rounds, so that they no longer count as checkpoints.

    Args:
        run_dir: the run's folder.
        rounds: the rounds; those without a checkpoint are skipped.
        suffix: replaces `.safetensors`.

    Raises:
        OSError: a file can't be renamed.
    """
    for round_ in rounds:
        for one in (checkpoint_path(run_dir, round_), state_path(run_dir, round_)):
            with contextlib.suppress(FileNotFoundError):
                one.replace(one.with_suffix(suffix))
    sync_folder(run_dir / CHECKPOINTS)


def _require_possible(place: Place, rounds: Sequence[RoundRecord], to_round: int, later: Sequence[int]) -> None:
    """Check that a run can be rolled back to a round.

    Raises:
        UserError: it can't be rolled back; the message names the possible rounds.
    """
    ended = {one.round: one for one in rounds if one.outcome in ("committed", "failed")}
    kept = [one for one in sorted(ended) if _is_kept(place, rounds, one)]
    there_are = f"there are checkpoints of the rounds {', '.join(map(str, kept)) or '(none)'}"
    if to_round not in ended:
        raise UserError(f"--to-round: run {place.run.run_id} has no round {to_round}; {there_are}")
    if not later:
        raise UserError(f"--to-round: run {place.run.run_id} is already at round {to_round}: no later round has begun")
    if to_round not in kept:
        raise UserError(
            f"--to-round: the checkpoint of round {to_round} is no longer in {place.folder} "
            f"(store.keep_checkpoints); {there_are}"
        )


def _is_kept(place: Place, rounds: Sequence[RoundRecord], round_: int) -> bool:
    """Return whether the model after a round is on disk; a round that made no model has that of the round before."""
    made = [one for one in rounds if one.outcome == "committed" and one.checkpoint is not None and one.round <= round_]
    newest = max(made, key=lambda one: one.round)
    paths = [checkpoint_path(place.folder, newest.round)]
    others = (scope for scope in newest.checkpoint or () if scope != FROZEN)
    has_state = any("/" in scope or not is_of_model(scope) for scope in others)
    paths += [state_path(place.folder, newest.round)] if has_state else []
    return all(_is_whole(one, place.run.run_id, newest.round) for one in paths)


def _is_whole(path: Path, run_id: str, round_: int) -> bool:
    """Return whether a checkpoint is complete, and belongs to the run and the round. Only the server can check its
    digests, because that takes the model's layout."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError):
        return False
    return (metadata.get("run_id"), metadata.get("round")) == (run_id, str(round_))
