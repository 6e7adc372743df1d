"""Components: flat buffers with a table of contents, each with the parameters of one scope.

The parameters of one scope (see `fedmtl_core.model.scopes`) form a component: one contiguous little-endian buffer and
an ordered list of `TensorSpec`. Slices, chunks, updates, averages and checkpoints all consist of components. No other
module packs or unpacks tensors.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fedmtl_core.errors import LayoutMismatchError, NonFiniteError
from fedmtl_core.identifiers import name_some, quoted, shown

if sys.byteorder != "little":  # pragma: no cover
    raise ImportError("FedMTL keeps tensors as little-endian bytes and needs a little-endian machine")

DTYPES: tuple[torch.dtype, ...] = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""The element types a parameter may have."""


@dataclass(frozen=True)
class TensorSpec:
    """One tensor's place in its component."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    """The tensor's first byte, from the start of the component."""

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def end(self) -> int:
        """The byte after the tensor's last byte."""
        return self.offset + self.num_elements * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} {list(self.shape)}"


@dataclass(frozen=True)
class Run:
    """Adjacent tensors of one dtype without padding between them: a range of a component that is one flat vector."""

    dtype: torch.dtype
    start: int
    end: int


@dataclass(frozen=True)
class Layout:
    """The table of contents of one component."""

    scope: str
    tensors: tuple[TensorSpec, ...]

    @classmethod
    def of(cls, scope: str, parameters: Mapping[str, Tensor]) -> Layout:
        """Lay out tensors one after another, each at the next multiple of its element size.

        Raises:
            LayoutMismatchError: a tensor's dtype isn't one of `DTYPES`.
        """
        specs, end = [], 0
        for name, tensor in parameters.items():
            if tensor.dtype not in DTYPES:
                raise LayoutMismatchError(
                    f"{name}: expected one of {', '.join(map(_dtype_name, DTYPES))}, got {_dtype_name(tensor.dtype)}"
                )
            spec = TensorSpec(name, tensor.dtype, tuple(tensor.shape), _round_up(end, tensor.dtype.itemsize))
            specs.append(spec)
            end = spec.end
        return cls(scope, tuple(specs))

    @cached_property
    def num_bytes(self) -> int:
        return self.tensors[-1].end if self.tensors else 0

    @property
    def num_elements(self) -> int:
        return sum(spec.num_elements for spec in self.tensors)

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """The component as flat vectors, one for each range of equal dtype, without padding and empty tensors."""
        runs: list[Run] = []
        for spec in self.tensors:
            if spec.num_elements == 0:
                continue
            if runs and runs[-1].dtype == spec.dtype and runs[-1].end == spec.offset:
                runs[-1] = Run(spec.dtype, runs[-1].start, spec.end)
            else:
                runs.append(Run(spec.dtype, spec.offset, spec.end))
        return tuple(runs)

    def require_same(self, other: Layout) -> None:
        """Check that another layout equals this one.

        Raises:
            LayoutMismatchError: the layouts differ; the message names the first difference and its tensor.
        """
        if self == other:
            return
        if self.scope != other.scope:
            raise LayoutMismatchError(f"expected component {self.scope!r}, got {quoted(other.scope)}", field="scope")
        mine, theirs = ({spec.name: spec for spec in layout.tensors} for layout in (self, other))
        if len(theirs) != len(other.tensors):
            raise LayoutMismatchError(f"{self.scope}: a tensor is listed twice", field="tensors")
        if missing := [name for name in mine if name not in theirs]:
            raise LayoutMismatchError(
                f"{self.scope}: tensor {missing[0]!r} is missing{_and_more(missing)}", field="tensors"
            )
        fields = {spec.name: f"tensors[{number}]" for number, spec in enumerate(other.tensors)}
        if extra := [name for name in theirs if name not in mine]:
            raise LayoutMismatchError(
                f"{self.scope}: the layout has no tensor {quoted(extra[0])}{_and_more(extra)}",
                field=f"{fields[extra[0]]}.name",
            )
        for name, spec in mine.items():
            got = theirs[name]
            if str(spec) != str(got):
                what = "dtype" if spec.dtype != got.dtype else "shape"
                raise LayoutMismatchError(
                    f"{self.scope}: {name}: expected {spec}, got {got}",
                    field=f"{fields[name]}.{what}",
                    tensor=name,
                    expected=spec,
                    got=got,
                )
        for spec, got in zip(self.tensors, other.tensors, strict=True):
            if spec != got:
                raise LayoutMismatchError(
                    f"{self.scope}: expected {spec.name} at byte {spec.offset}, got {got.name} at byte {got.offset}",
                    field=f"{fields[got.name]}.{'offset' if spec.name == got.name else 'name'}",
                )


class Component:
    """The parameters of one scope: a layout, and the bytes that it describes.

    Args:
        layout: the table of contents.
        buffer: uint8 `(layout.num_bytes,)` on CPU, contiguous; a new buffer of zeros if None.
    """

    def __init__(self, layout: Layout, buffer: Tensor | None = None):
        if buffer is None:
            buffer = torch.zeros(layout.num_bytes, dtype=torch.uint8)
        if buffer.dtype != torch.uint8 or tuple(buffer.shape) != (layout.num_bytes,):
            raise LayoutMismatchError(
                f"{layout.scope}: expected a buffer of {layout.num_bytes} bytes, "
                f"got {_dtype_name(buffer.dtype)} {list(buffer.shape)}"
            )
        self.layout = layout
        self.buffer = buffer

    @classmethod
    def pack(cls, scope: str, parameters: Mapping[str, Tensor]) -> Component:
        """Copy tensors from any device into a new component."""
        component = cls(Layout.of(scope, parameters))
        component.copy_from(parameters)
        return component

    @classmethod
    def adopt(cls, scope: str, parameters: Mapping[str, Tensor]) -> Component:
        """Move CPU tensors into a new component: the tensors become views of its buffer."""
        component = cls.pack(scope, {name: tensor.detach() for name, tensor in parameters.items()})
        component.lend_to(parameters)
        return component

    @property
    def scope(self) -> str:
        return self.layout.scope

    def memory(self) -> memoryview:
        """Return the bytes as a writable view, without a copy."""
        return memoryview(self.buffer.numpy())  # type: ignore[arg-type]  # an ndarray is a Buffer

    def views(self) -> dict[str, Tensor]:
        """Return the tensors by name, as views: writing to a tensor writes to the buffer."""
        return {
            spec.name: _typed(self.buffer, spec.dtype, spec.offset, spec.end).view(spec.shape)
            for spec in self.layout.tensors
        }

    def runs(self) -> list[Tensor]:
        """Return the flat vectors of `layout.runs` as views."""
        return [_typed(self.buffer, run.dtype, run.start, run.end) for run in self.layout.runs]

    def lend_to(self, parameters: Mapping[str, Tensor]) -> None:
        """Make CPU tensors of this layout views of the component; their old values are dropped."""
        for name, view in self.views().items():
            parameters[name].data = view

    def copy_from(self, parameters: Mapping[str, Tensor]) -> None:
        """Overwrite every tensor. All parameters are checked before the first byte changes.

        Raises:
            LayoutMismatchError: names, shapes or dtypes differ from the layout.
        """
        in_order = {spec.name: parameters[spec.name] for spec in self.layout.tensors if spec.name in parameters}
        extra = {name: tensor for name, tensor in parameters.items() if name not in in_order}
        self.layout.require_same(Layout.of(self.scope, in_order | extra))
        with torch.no_grad():
            for name, view in self.views().items():
                view.copy_(parameters[name])

    def add(self, other: Component) -> None:
        """Add another component's numbers to this component, in the tensors' dtype, rounding each number once."""
        self.layout.require_same(other.layout)
        for mine, theirs in zip(self.runs(), other.runs(), strict=True):
            mine.add_(theirs)

    def subtract(self, other: Component) -> None:
        """Subtract another component's numbers from this one, in the tensors' dtype, rounding each number once."""
        self.layout.require_same(other.layout)
        for mine, theirs in zip(self.runs(), other.runs(), strict=True):
            mine.sub_(theirs)

    def clone(self) -> Component:
        return Component(self.layout, self.buffer.clone())

    def clear_padding(self) -> None:
        """Set the bytes between tensors to 0."""
        end = 0
        for run in self.layout.runs:
            self.buffer[end : run.start] = 0
            end = run.end

    def digest(self) -> bytes:
        """Return the SHA-256 of the bytes."""
        return hashlib.sha256(self.memory()).digest()

    def tensor_digests(self) -> list[bytes]:
        """Return the SHA-256 of each tensor's bytes, in their order."""
        memory = self.memory()
        return [hashlib.sha256(memory[spec.offset : spec.end]).digest() for spec in self.layout.tensors]

    def require_finite(self) -> None:
        """Check that no value is NaN or infinite.

        It first sums all values at memory bandwidth, and checks single tensors only if a sum isn't finite.

        Raises:
            NonFiniteError: a value is NaN or infinite; the message names its tensor.
        """
        if all(math.isfinite(run.sum(dtype=_sum_dtype(run.dtype)).item()) for run in self.runs()):
            return
        for name, tensor in self.views().items():
            bad = int((~torch.isfinite(tensor)).sum())
            if bad:
                raise NonFiniteError(f"{self.scope}: {name} has {bad} of {tensor.numel()} values NaN or infinite")


def digest_of(parameters: Mapping[str, Tensor]) -> bytes:
    """Return the digest of the component that tensors from any device would be packed into, without packing them."""
    digest, end = hashlib.sha256(), 0
    for spec in Layout.of("", parameters).tensors:
        digest.update(bytes(spec.offset - end))
        digest.update(_bytes_of(parameters[spec.name]))
        end = spec.end
    return digest.digest()


def joint_digest(digests: Iterable[bytes]) -> bytes:
    """Return one digest of several components: the SHA-256 of their digests in order, or the digest of a single one."""
    in_order = list(digests)
    return in_order[0] if len(in_order) == 1 else hashlib.sha256(b"".join(in_order)).digest()


def digests_of(parameters: Mapping[str, Tensor]) -> dict[str, bytes]:
    """Return the SHA-256 of each tensor's bytes by name, as `Component.tensor_digests` does."""
    return {name: hashlib.sha256(_bytes_of(tensor)).digest() for name, tensor in parameters.items()}


def require_scopes(expected: Iterable[str], got: Iterable[str]) -> None:
    """Check that components have the expected scopes in the expected order.

    Raises:
        LayoutMismatchError: the scopes differ.
    """
    expected, got = list(expected), list(got)
    if expected != got:
        theirs = name_some(list(map(shown, got))) or "none"
        raise LayoutMismatchError(
            f"expected the components {', '.join(expected) or 'none'}, got {theirs}", field="components"
        )


def _bytes_of(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]  # an ndarray is a Buffer


def _typed(buffer: Tensor, dtype: torch.dtype, start: int, end: int) -> Tensor:
    if start == end:
        return torch.empty(0, dtype=dtype)
    return buffer[start:end].view(dtype)


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _round_up(offset: int, multiple: int) -> int:
    return -(-offset // multiple) * multiple


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
