"""Checkpoints: components' own bytes under a safetensors header, so that writing one copies nothing.

The format is described at https://huggingface.co/docs/safetensors: eight bytes of header length, a JSON header, the
tensors one after the other without gaps.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from io import RawIOBase
from typing import Any

import torch

from fedmtl_core.layout import Component

_DTYPE = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}
_WRITE_BYTES = 8 * 2**20  # at a time: one write call of the kernel's takes 2 GiB at most


def write_safetensors(file: RawIOBase, components: Iterable[Component], metadata: Mapping[str, str]) -> None:
    """Write components into a file that any reader of safetensors opens.

    Args:
        file: unbuffered, at its beginning.
        components: no two of them have a tensor of the same name.
        metadata: for its header, besides the `format` that PyTorch's readers look for.
    """
    components = list(components)
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    end = 0
    for component in components:
        for spec in component.layout.tensors:
            start, end = end, end + spec.end - spec.offset
            header[spec.name] = {"dtype": _DTYPE[spec.dtype], "shape": spec.shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    _write(file, memoryview(len(text).to_bytes(8, "little") + text))
    for component in components:
        memory = component.memory()
        for run in component.layout.runs:  # the padding between them has no place in a checkpoint
            _write(file, memory[run.start : run.end])


def _write(file: RawIOBase, data: memoryview) -> None:
    while data:
        written = file.write(data[:_WRITE_BYTES])
        data = data[written or 0 :]
