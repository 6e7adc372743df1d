"""A client's local parameters: kept between rounds, and with a folder for them also between starts.

Personal layers (FedPer; Arivazhagan et al. 2019, arXiv:1912.00818), heads (FedRep; Collins et al. 2021,
arXiv:2102.07078) and norms (FedBN; Li et al. 2021, arXiv:2102.07623) are implemented in the same way: the server's plan
lists them as `local`, and the client trains them with the other parameters and never sends them.
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
    """One client's local parameters in one run. Only rounds that count change them.

    Args:
        model: the model with the initial values.
        names: the names of the local parameters.
        run_id: the run. Values that a file has from another run are ignored.
        path: the file of the parameters; None to keep them in memory only.

    Raises:
        ConfigError: the model lacks a local parameter.
        DataError: the file is damaged, belongs to another model, or can't be read.
    """

    def __init__(self, model: MultiTaskModel, names: Sequence[str], run_id: str, path: Path | None = None):
        own = model.exchanged()
        if missing := [name for name in names if name not in own]:
            raise ConfigError(
                f"the server's plan makes {name_some(missing)} local to this client, but its model has no such "
                "parameters; does it use another encoder than the server (model.client_model)?"
            )
        self._run_id = run_id
        self._path = path if names else None
        self._kept = {name: own[name].detach().cpu().clone() for name in names}
        if self._path is not None:
            self._restore(self._path)

    def put(self, model: MultiTaskModel) -> None:
        """Set a model's local parameters to the values kept last, or to the initial values."""
        own = model.exchanged()
        with torch.no_grad():
            for name, value in self._kept.items():
                own[name].copy_(value)

    def keep(self, model: MultiTaskModel, round_: int) -> None:
        """Keep a model's local parameters, since its round counts.

        Raises:
            DataError: the file can't be written; the values are kept in memory even then.
        """
        own = model.exchanged()
        for name, value in self._kept.items():
            value.copy_(own[name].detach())
        if self._path is not None:
            self._write(self._path, {"run_id": self._run_id, "round": str(round_)})

    def _restore(self, path: Path) -> None:
        try:
            if not path.exists():
                return
            with safe_open(path, framework="pt") as file:
                if (file.metadata() or {}).get("run_id") != self._run_id:
                    return
                values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
        except (OSError, SafetensorError) as error:
            raise DataError(
                f"client.state_dir: can't read {path}: {error}; remove the file to start from the initial values"
            ) from None
        if _shapes(values) != _shapes(self._kept):
            raise DataError(
                f"client.state_dir: {path} has other parameters than this client's local ones "
                f"({name_some(list(self._kept))}); remove the file to start from the initial values"
            )
        self._kept = values

    def _write(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Write the file atomically."""
        scratch = path.with_suffix(".tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            scratch.unlink(missing_ok=True)
            scratch.touch(mode=0o600)  # trained on this client's data, so nobody else may read it
            save_file(self._kept, scratch, dict(metadata))
            with scratch.open("rb") as file:
                os.fsync(file.fileno())
            scratch.replace(path)
        except (OSError, SafetensorError) as error:
            raise DataError(f"client.state_dir: can't write {path}: {error}") from None


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
