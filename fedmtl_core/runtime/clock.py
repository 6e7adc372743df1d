"""The time of day in the unit of the history and the contract."""

from __future__ import annotations

import time


def now_ms() -> int:
    """Return the milliseconds since the epoch (1970-01-01 UTC)."""
    return time.time_ns() // 1_000_000
