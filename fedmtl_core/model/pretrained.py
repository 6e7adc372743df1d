"""Loads pretrained weights, and records which of an encoder's weights its files have.

`transformers` gives random values to weights that the files lack, and FedMTL keeps its report out of the log. This
module keeps the report, and `encoder_check` interprets it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError  # nosec B403  # PyTorch raises it; nothing is unpickled here

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoModel, PretrainedConfig, PreTrainedModel

from fedmtl_core.errors import ModelUnavailableError, first_line

_POINTER = b"version https://git-lfs"
_DAMAGED = (SafetensorError, RuntimeError, EOFError, UnpicklingError)
_SHOWN = 120
"""Longest excerpt of a library's message, in characters."""


@dataclass(frozen=True)
class LoadedWeights:
    """The weights found in an encoder's files. Names are the encoder's, in its order."""

    num_wanted: int
    """Number of tensors of the encoder."""
    missing: tuple[str, ...] = ()
    """Tensors that the files lack, so that their values are random."""
    leftover: tuple[str, ...] = ()
    """Tensors of the files that the encoder doesn't have, by their names in the files."""

    def of_part(self, model: nn.Module, part: nn.Module) -> LoadedWeights:
        """Return this report for one part of a model, by its own names. A tensor may have several names in a model."""
        own = {tensor.data_ptr(): name for name, tensor in part.state_dict(keep_vars=True).items()}
        tensors = model.state_dict(keep_vars=True)
        names = {name: own.get(tensor.data_ptr()) for name, tensor in tensors.items()}
        missing = (names.get(name) for name in self.missing)
        return LoadedWeights(
            num_wanted=len(own),
            missing=tuple(dict.fromkeys(name for name in missing if name is not None)),
            leftover=self.leftover,
        )


def load_pretrained(location: str, config: PretrainedConfig) -> tuple[PreTrainedModel, LoadedWeights]:
    """Load an encoder in float32 on CPU, with the weights of a folder or of a model on the hub.

    Raises:
        ModelUnavailableError: a file of weights is damaged or was never fetched, and the message names it; or a weight
            has another shape than the configuration says.
        OSError: the model doesn't exist or can't be reached.
    """
    try:
        encoder, info = AutoModel.from_pretrained(
            location, config=config, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except _DAMAGED as error:
        raise ModelUnavailableError(f"model {location!r}: {_damage(location, error)}") from None
    if differing := sorted(info["mismatched_keys"]):
        name, found, expected = differing[0]
        raise ModelUnavailableError(
            f"model {location!r}: its weights don't fit its configuration: expected {name} with the shape "
            f"{list(expected)}, got {list(found)}. If model.num_hidden_layers is set, leave it out"
        )
    order = {name: number for number, name in enumerate(encoder.state_dict())}
    return encoder, LoadedWeights(
        num_wanted=len(order),
        missing=tuple(sorted(info["missing_keys"], key=lambda name: order.get(name, len(order)))),
        leftover=tuple(sorted(info["unexpected_keys"])),
    )


def pointers(location: str) -> list[str]:
    """Return the files of a folder that are unfetched Git LFS pointers; empty if the location is no folder."""
    return [path.name for path in _files(location) if _beginning(path).startswith(_POINTER)]


def not_fetched(names: list[str]) -> str:
    """Return a sentence about files that are Git LFS pointers."""
    are = "is a Git LFS pointer, not the file itself" if len(names) == 1 else "are Git LFS pointers, not the files"
    return f"{', '.join(names)} {are}; run `git lfs pull` in the folder."


def _damage(location: str, error: Exception) -> str:
    """Return a sentence about weights that can't be read."""
    if names := pointers(location):
        return not_fetched(names)
    reason = first_line(error)[:_SHOWN]
    for path in _files(location):
        if path.suffix == ".safetensors" and (reason_here := _unreadable(path)):
            size = f"{path.stat().st_size:,} bytes"
            return f"{path.name} ({size}) is truncated or damaged ({reason_here}); copy or download it again."
    return f"its weights are truncated or damaged ({reason}); copy or download them again."


def _unreadable(path: Path) -> str:
    """Return why a safetensors file can't be read; empty if it can."""
    try:
        with safe_open(path, framework="pt"):
            return ""
    except (OSError, SafetensorError) as error:
        return str(error)


def _files(location: str) -> Iterator[Path]:
    folder = Path(location)
    return (path for path in sorted(folder.iterdir()) if path.is_file()) if folder.is_dir() else iter(())


def _beginning(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(len(_POINTER))
    except OSError:
        return b""
