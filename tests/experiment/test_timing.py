"""The parts of a cell's wall time, from the reports of rounds and the logs of clients."""

import pytest

from fedmtl_experiment.timing import RoundTimes, round_times, wall_time

LOGS = {
    "client-a": """\
10:00:00 [info     ] client.starting client_id=a server=127.0.0.1:1 config=run.yaml
10:00:02 [info     ] round.trained progress='Round 1/2' loss=0.5 steps=32 seconds=4.0 evaluation_seconds=1.0
10:00:02 [info     ] update.sent progress='Round 1/2' task=sst2 received={'accuracy': 0.47} bytes_sent=17544712
10:00:03 [warning  ] something.happened seconds=100.0
a line of a traceback with seconds=100.0
10:00:04 [info     ] round.trained progress='Round 2/2' loss=0.5 steps=32 seconds=2.0 evaluation_seconds=1.5
10:00:05 [info     ] model.evaluated progress='Final evaluation' task=sst2 metrics={'loss': 1.0} evaluation_seconds=0.25
""",
    "client-b": """\
10:00:02 [info     ] round.trained progress='Round 1/2' loss=0.5 steps=32 seconds=3.0 evaluation_seconds=1.5
10:00:04 [info     ] round.trained progress='Round 2/2' loss=0.5 steps=32 seconds=3.0 evaluation_seconds=0.75
10:00:05 [info     ] model.evaluated progress='Final evaluation' task=qqp metrics={'loss': 1.0} evaluation_seconds=0.5
""",
}


def test_in_each_round_the_client_that_was_busy_longest_counts_and_the_rest_is_exchange(tmp_path):
    """Round 1: a with 4 + 1 of 6 s. Round 2: b with 3 + 0.75 of 4 s. Final: b with 0.5 of 1 s."""
    for name, text in LOGS.items():
        (tmp_path / f"{name}.log").write_text(text)
    reports = [{"round": 1, "duration_s": 6.0}, {"round": 2, "duration_s": 4.0}, {"round": 3, "duration_s": 1.0}]
    times = round_times(reports, tmp_path.glob("*.log"))
    assert (times.training, times.evaluation, times.exchange) == (7.0, 2.25, 1.75)
    assert times.total == 11.0


def test_the_parts_add_up_to_the_total():
    runs = [RoundTimes(4.0, 1.0, 0.5), RoundTimes(3.0, 2.0, 0.25)]
    wall = wall_time(20.0, runs, reporting=2.0)
    assert (wall.training, wall.evaluation, wall.exchange, wall.reporting) == (7.0, 3.0, 0.75, 2.0)
    assert wall.start_up == pytest.approx(7.25)
