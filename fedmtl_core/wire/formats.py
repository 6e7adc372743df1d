"""The names of encodings and compressions. `docs/wire.md` specifies them to the byte."""

from __future__ import annotations

from typing import Literal

Encoding = Literal["float32", "float16", "bfloat16", "int8", "topk"]
"""The encoding of a component's numbers. `float32` is the tensors' own bytes, exact for all dtypes."""

ENCODINGS: tuple[Encoding, ...] = ("float32", "float16", "bfloat16", "int8", "topk")

DELTA_ENCODINGS: frozenset[Encoding] = frozenset({"int8", "topk"})
"""The encodings that are for differences only."""

DEFAULT_DENSITY = 0.05
"""The share of a component's elements that `topk` sends by default."""

Compression = Literal["none", "zstd"]
COMPRESSIONS: tuple[Compression, ...] = ("none", "zstd")
