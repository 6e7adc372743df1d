"""Names of the ways in which tensors travel. What they mean to the byte is in `docs/wire.md`."""

from __future__ import annotations

from typing import Literal

Encoding = Literal["float32", "float16", "bfloat16", "int8", "topk"]
"""How a component's numbers are written. `float32` means the tensors' own bytes, exact."""

ENCODINGS: tuple[Encoding, ...] = ("float32", "float16", "bfloat16", "int8", "topk")

DELTA_ENCODINGS: frozenset[Encoding] = frozenset({"int8", "topk"})
"""Those that are for differences only."""

DEFAULT_DENSITY = 0.05
"""Share of a component's elements that `topk` sends."""

Compression = Literal["none", "zstd"]
COMPRESSIONS: tuple[Compression, ...] = ("none", "zstd")
