"""Clocks that jump."""

import time

import torch
from fedmtl.v1 import federation_pb2 as pb

from tests.support import full_of, serving, tiny_model, watching

OPENED = pb.ROUND_EVENT_KIND_OPENED


async def test_the_wall_clock_may_jump_without_a_round_losing_or_repeating_anything(tmp_path, monkeypatch):
    """Rounds are timed by a clock that only goes forwards; the other one is for people."""
    jumps, real = iter([0, -86_400, 86_400 * 365, -86_400 * 700] * 50), time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + next(jumps) * 10**9)
    trained = tiny_model("sst2")
    async with serving(tmp_path, trained, num_rounds=3) as server, watching(server, a="sst2") as clients:
        reports = []
        for round_ in (1, 2, 3):
            header, data = await clients["a"].get_slice(round=round_)
            await clients["a"].push(clients["a"].update(header, full_of(data, round_)))
            await clients["a"].until(OPENED, round_ + 1)
            reports.append(server.federation.last_report)
        assert [report.round for report in reports] == [1, 2, 3]
        assert all(0 <= report.duration_s < 60 for report in reports)
    assert torch.equal(trained.module.encoder.dense.bias, torch.full((4,), 3.0))
