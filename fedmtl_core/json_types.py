"""The type of values that are read from JSON or written to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

JsonObject: TypeAlias = Mapping[str, Any]
"""A JSON object as `json.loads` returns it. The types of its values are those of the JSON text, and aren't checked."""
