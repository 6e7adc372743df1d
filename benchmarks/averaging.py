"""Measure averaging in a separate process: FedMTL's aggregation and `torch.Tensor.add_`, over the same updates.

python -m benchmarks.averaging NUM_UPDATES NUM_ELEMENTS
"""

from __future__ import annotations

import json
import sys

import torch

from benchmarks.processes import serve_commands
from fedmtl_core.model.scopes import SHARED
from fedmtl_core.runtime.allocator import keep_freed_blocks
from fedmtl_core.wire.layout import Component
from fedmtl_server.aggregation.aggregator import ClientUpdate
from fedmtl_server.aggregation.pipeline import Pipeline


def main(num_updates: str, num_elements: str) -> None:
    keep_freed_blocks()
    components = [
        Component.pack(SHARED, {"encoder.weight": torch.randn(int(num_elements))}) for _ in range(int(num_updates))
    ]
    updates = [ClientUpdate(f"c{i}", "sst2", 100 + i, {SHARED: one}).screened(1) for i, one in enumerate(components)]
    pipeline = Pipeline()
    vectors = [one.runs()[0] for one in components]
    total = torch.zeros(int(num_elements))

    def ours() -> None:
        aggregation = pipeline.begin({})
        for update in updates:
            aggregation.add(update)
        aggregation.combine()

    def bound() -> None:
        for vector in vectors:
            total.add_(vector)

    print(json.dumps("ready"), flush=True)
    serve_commands({"ours": ours, "bound": bound})


if __name__ == "__main__":
    main(*sys.argv[1:])
