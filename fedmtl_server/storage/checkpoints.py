"""The file format of checkpoints: the bytes of components under a safetensors header, written without a copy.

The format is described at https://huggingface.co/docs/safetensors: eight bytes of header length, a JSON header, the
tensors one after the other without gaps.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from io import RawIOBase
from pathlib import Path

import torch

from fedmtl_core.errors import CorruptCheckpointError
from fedmtl_core.wire.layout import Component, Layout

_DTYPE = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}
_MAX_HEADER_BYTES = 100 * 2**20
_WRITE_BYTES = 8 * 2**20  # at a time: one write system call takes at most 2 GiB


def write_safetensors(file: RawIOBase, components: Iterable[Component], metadata: Mapping[str, str]) -> None:
    """Write components into a file that any reader of safetensors opens.

    Args:
        file: unbuffered, at its beginning.
        components: a tensor is stored under its name; if several components have that name, under `SCOPE/NAME`.
        metadata: for the header, beside the `format` that PyTorch's readers look for.
    """
    components = list(components)
    _write(file, memoryview(_header([component.layout for component in components], metadata)))
    for component in components:
        memory = component.memory()
        for run in component.layout.runs:  # a checkpoint has no padding between them
            _write(file, memory[run.start : run.end])


def _write(file: RawIOBase, data: memoryview) -> None:
    while data:
        written = file.write(data[:_WRITE_BYTES])
        data = data[written or 0 :]


def read_safetensors(
    path: Path, layouts: Iterable[Layout], metadata: Mapping[str, str], into: Mapping[str, Component] | None = None
) -> dict[str, Component]:
    """Read the components that `write_safetensors` wrote.

    Args:
        path: the file.
        layouts: of the components, in the order in which they were written.
        metadata: the metadata that it was written with.
        into: by scope, components of these layouts to overwrite, even if an error follows; new ones if None.

    Returns:
        Components by scope; the padding between the tensors of new ones is 0.

    Raises:
        CorruptCheckpointError: the file differs from what `write_safetensors` writes.
        OSError: it can't be read.
    """
    layouts = list(layouts)
    expected = _header(layouts, metadata)
    given = into or {}
    components = {layout.scope: given.get(layout.scope) or Component(layout) for layout in layouts}
    with path.open("rb", buffering=0) as file:
        header = bytearray(len(expected))
        _read(file, memoryview(header), path)
        if header != expected:
            raise CorruptCheckpointError(
                f"{path}: its table of contents isn't this model's: {_difference(path, expected)}"
            )
        for component in components.values():
            memory = component.memory()
            for run in component.layout.runs:
                _read(file, memory[run.start : run.end], path)
    return components


def require_digests(path: Path, components: Mapping[str, Component], expected: Mapping[str, str]) -> None:
    """Check that components are those that a round has committed.

    Args:
        path: the file that they were read from.
        components: by scope.
        expected: SHA-256 in hexadecimal by scope.

    Raises:
        CorruptCheckpointError: a component has another digest, or was not committed.
    """
    if damaged := [scope for scope, one in components.items() if one.digest().hex() != expected.get(scope)]:
        raise CorruptCheckpointError(f"{path}: {', '.join(damaged)}: the bytes aren't those that were written")


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata in a file's header, without checking it.

    Raises:
        CorruptCheckpointError: the file has no header with metadata.
        OSError: it can't be read.
    """
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(min(int.from_bytes(file.read(8), "little"), _MAX_HEADER_BYTES)))
        return {str(key): str(value) for key, value in header["__metadata__"].items()}
    except (ValueError, KeyError, AttributeError, TypeError):
        raise CorruptCheckpointError(f"{path}: its header can't be read") from None


def _header(layouts: Iterable[Layout], metadata: Mapping[str, str]) -> bytes:
    """Return the bytes before the tensors: the length of the JSON header, and the header."""
    header: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
    end = 0
    layouts = list(layouts)
    counts = Counter(spec.name for layout in layouts for spec in layout.tensors)
    for layout in layouts:
        for spec in layout.tensors:
            start, end = end, end + spec.end - spec.offset
            name = spec.name if counts[spec.name] == 1 else f"{layout.scope}/{spec.name}"
            header[name] = {"dtype": _DTYPE[spec.dtype], "shape": spec.shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _difference(path: Path, expected: bytes) -> str:
    """Describe the first tensor that isn't as expected."""
    try:
        with path.open("rb") as file:
            size = min(int.from_bytes(file.read(8), "little"), _MAX_HEADER_BYTES)
            found = json.loads(file.read(size))
        wanted = json.loads(expected[8:])
        name = next(name for name in [*wanted, *found] if wanted.get(name) != found.get(name))
        return f"{name}: expected {wanted.get(name)}, got {found.get(name)}"
    except (ValueError, StopIteration, AttributeError, TypeError):
        return "it can't be read"


def _read(file: RawIOBase, data: memoryview, path: Path) -> None:
    while data:
        num_bytes = file.readinto(data[:_WRITE_BYTES])
        if not num_bytes:
            raise CorruptCheckpointError(f"{path} ends before its tensors do")
        data = data[num_bytes:]
