"""The parameters that a client keeps for itself: between rounds, and if it has a folder for them, between starts.

Personal layers (FedPer; Arivazhagan et al. 2019, arXiv:1912.00818), heads (FedRep; Collins et al. 2021,
arXiv:2102.07078) and norms (FedBN; Li et al. 2021, arXiv:2102.07623) are all the same here: parameters that the
server's plan calls `local`, which are trained with the others and never sent.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fedmtl_core.errors import ConfigError, DataError
from fedmtl_core.identifiers import name_some
from fedmtl_core.model.modeling import MultiTaskModel


class LocalParameters:
    """One client's own parameters in one run. They move with the rounds that count, and with no others.

    Args:
        model: with their first values.
        names: which they are.
        run_id: the run. What a file has of another run is not taken up.
        path: where they are kept; None for in memory alone.

    Raises:
        ConfigError: the model has no such parameters.
        DataError: the file is damaged, of another model, or can't be read.
    """

    def __init__(self, model: MultiTaskModel, names: Sequence[str], run_id: str, path: Path | None = None):
        own = model.exchanged()
        if missing := [name for name in names if name not in own]:
            raise ConfigError(
                f"the server's plan has this client keep {name_some(missing)} for itself, which its model hasn't; "
                "is its encoder (model.client_model) another?"
            )
        self._run_id = run_id
        self._path = path if names else None
        self._kept = {name: own[name].detach().cpu().clone() for name in names}
        if self._path is not None:
            self._take_up(self._path)

    def put(self, model: MultiTaskModel) -> None:
        """Give a model the values that were kept last, or those they began with."""
        own = model.exchanged()
        with torch.no_grad():
            for name, value in self._kept.items():
                own[name].copy_(value)

    def keep(self, model: MultiTaskModel, round_: int) -> None:
        """Keep a model's values: its round counts.

        Raises:
            DataError: the file can't be written; they are kept in memory then.
        """
        own = model.exchanged()
        for name, value in self._kept.items():
            value.copy_(own[name].detach())
        if self._path is not None:
            self._write(self._path, {"run_id": self._run_id, "round": str(round_)})

    def _take_up(self, path: Path) -> None:
        try:
            if not path.exists():
                return
            with safe_open(path, framework="pt") as file:
                if (file.metadata() or {}).get("run_id") != self._run_id:
                    return
                values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
        except (OSError, SafetensorError) as error:
            raise DataError(f"client.state_dir: can't read {path}: {error}; remove it to begin anew") from None
        if _shapes(values) != _shapes(self._kept):
            raise DataError(
                f"client.state_dir: {path} has other parameters than this client keeps for itself "
                f"({name_some(list(self._kept))}); remove it to begin anew"
            )
        self._kept = values

    def _write(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Write the file whole or not at all."""
        scratch = path.with_suffix(".tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            scratch.unlink(missing_ok=True)
            scratch.touch(mode=0o600)  # trained on this client's rows: nobody else's to read
            save_file(self._kept, scratch, dict(metadata))
            with scratch.open("rb") as file:
                os.fsync(file.fileno())
            scratch.replace(path)
        except (OSError, SafetensorError) as error:
            raise DataError(f"client.state_dir: can't write {path}: {error}") from None


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
