"""The checkpoints of one run: written whole or not at all, and read with their digests checked."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedmtl_core.errors import CorruptCheckpointError, StoreError
from fedmtl_core.wire.layout import Component, Layout
from fedmtl_server.storage.checkpoints import read_safetensors, require_digests, write_safetensors
from fedmtl_server.storage.files import move_into_place, scratch_path, write_errors
from fedmtl_server.storage.paths import CHECKPOINTS, base_path, checkpoint_path, checkpoint_rounds, state_path
from fedmtl_server.storage.records import RoundRecord
from fedmtl_server.storage.rollback import DAMAGED, set_aside

Sharing = Mapping[str, Sequence[Sequence[str]]]
"""By part of the encoder that has moved, the blocks of tasks that share it."""


@dataclass(frozen=True)
class CheckpointLayouts:
    """The layouts of the components in a checkpoint's two files, in the order in which they were written."""

    model: Sequence[Layout]
    state: Sequence[Layout] = ()
    """Of the server optimizer's state and the control variates; empty if the run has neither."""


class CheckpointFolder:
    """The checkpoints in one run's folder.

    A checkpoint is a file with a round's model and, if the run has any, a second one with the state of the server
    optimizer and the control variates. Every file names its run and its round.

    Args:
        run_dir: the run's folder.
        run_id: the run.
        keep: how many of the newest checkpoints `prune` keeps.
        sync: whether a file is on disk before it gets its name, so that it survives a power failure.

    Raises:
        StoreError: from every method, when a file can't be written or read.
    """

    def __init__(self, run_dir: Path, run_id: str, *, keep: int, sync: bool):
        self.path = run_dir / CHECKPOINTS
        self.keep = keep
        self._run_dir = run_dir
        self._run_id = run_id
        self._sync = sync

    def has(self, round_: int) -> bool:
        """Return whether the model of a round is on disk, valid or not."""
        return checkpoint_path(self._run_dir, round_).exists()

    def write(
        self, round_: int, model: Mapping[str, Component], state: Mapping[str, Component], sharing: Sharing | None
    ) -> None:
        """Write a round's checkpoint, the state before the model.

        Args:
            round_: the round.
            model: all components by scope.
            state: the server optimizer's state by `SCOPE/SLOT` and control variates by `control:SCOPE`; may be empty.
            sharing: the tasks that share the parts of the encoder that have moved.
        """
        metadata = self._metadata(round_, sharing)
        if state:
            self._write(state_path(self._run_dir, round_), state, metadata)
        self._write(checkpoint_path(self._run_dir, round_), model, metadata)

    def write_base(self, base: Component) -> None:
        """Write the parameters that never change, once for the whole run."""
        self._write(base_path(self._run_dir), {base.scope: base}, {"run_id": self._run_id})

    def read_base(self, base: Component, digests: Mapping[str, str]) -> None:
        """Read the parameters that never change.

        Args:
            base: the component to overwrite; without meaning after an error.
            digests: SHA-256 in hexadecimal by scope, of the components that the run began with.

        Raises:
            CorruptCheckpointError: the file is missing, or differs from what was written.
        """
        read_base(self._run_dir, self._run_id, base, digests)

    def read(
        self, record: RoundRecord, layouts: CheckpointLayouts
    ) -> tuple[dict[str, Component], dict[str, Component]]:
        """Read the model after a round and the state stored with it. The state is empty if the round committed none.

        Args:
            record: the round, with the digests of what it committed.
            layouts: the layouts that the checkpoint was written with.

        Raises:
            CorruptCheckpointError: a file is missing, or differs from what was committed.
        """
        model = self._read(checkpoint_path(self._run_dir, record.round), record, layouts.model)
        committed = record.checkpoint or {}
        if not any(layout.scope in committed for layout in layouts.state):
            return model, {}
        return model, self._read(state_path(self._run_dir, record.round), record, layouts.state)

    def prune(self, best_rounds: Collection[int]) -> None:
        """Remove the checkpoints that are neither among the newest nor of one of the best rounds."""
        with write_errors(self.path):
            for old in checkpoint_rounds(self._run_dir)[: -self.keep]:
                if old not in best_rounds:
                    checkpoint_path(self._run_dir, old).unlink(missing_ok=True)
                    state_path(self._run_dir, old).unlink(missing_ok=True)

    def set_aside_after(self, round_: int) -> None:
        """Rename the checkpoints of later rounds, which would otherwise count as newer than those still to come."""
        with write_errors(self.path):
            later = [one for one in checkpoint_rounds(self._run_dir) if one > round_]
            set_aside(self._run_dir, later, DAMAGED)

    def _metadata(self, round_: int, sharing: Sharing | None) -> dict[str, str]:
        return {"run_id": self._run_id, "round": str(round_)} | (
            {"sharing": json.dumps(sharing, sort_keys=True)} if sharing else {}
        )

    def _write(self, path: Path, components: Mapping[str, Component], metadata: Mapping[str, str]) -> None:
        with write_errors(path):
            scratch = scratch_path(path)
            with scratch.open("wb", buffering=0) as file:
                write_safetensors(file, components.values(), metadata)
            move_into_place(scratch, path, sync=self._sync)

    def _read(self, path: Path, record: RoundRecord, layouts: Sequence[Layout]) -> dict[str, Component]:
        try:
            components = read_safetensors(path, layouts, self._metadata(record.round, record.sharing))
        except FileNotFoundError:
            raise CorruptCheckpointError(f"{path} is missing") from None
        except OSError as error:
            raise StoreError(f"can't read {path}: {error.strerror or error}") from error
        require_digests(path, components, record.checkpoint or {})
        return components


def read_base(run_dir: Path, run_id: str, base: Component, digests: Mapping[str, str] | None) -> None:
    """Read the parameters of a run that never change; see `CheckpointFolder.read_base`.

    Args:
        run_dir: the run's folder.
        run_id: the run.
        base: the component to overwrite; without meaning after an error.
        digests: SHA-256 in hexadecimal by scope; None to check no digest.

    Raises:
        CorruptCheckpointError: the file is missing, or differs from what was written.
        StoreError: it can't be read.
    """
    path = base_path(run_dir)
    try:
        components = read_safetensors(path, [base.layout], {"run_id": run_id}, {base.scope: base})
    except FileNotFoundError:
        raise CorruptCheckpointError(f"{path} is missing; the run's adapters can't be used without it") from None
    except OSError as error:
        raise StoreError(f"can't read {path}: {error.strerror or error}") from error
    if digests is not None:
        require_digests(path, components, digests)
