"""A server killed again and again, and started with the same command: nothing it said is forgotten or counted twice.

Five times; a hundred times with `FEDMTL_FAULTS=long` in the environment, which takes a quarter of an hour.
`FEDMTL_FAULTS_KILLS` is another number, `FEDMTL_FAULTS_SEED` another choice of moments.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.faults.harness import (
    COHORT,
    NUM_ROUNDS,
    ClientProcess,
    ServerProcess,
    Undisturbed,
    accounts,
    checkpoint,
    require_same_bits,
    run_undisturbed,
    undisturbed_model,
    wait_until,
    write_config,
)

pytestmark = pytest.mark.e2e

LONG = os.environ.get("FEDMTL_FAULTS") == "long"
NUM_KILLS = int(os.environ.get("FEDMTL_FAULTS_KILLS", "100" if LONG else "5"))
SEED = int(os.environ.get("FEDMTL_FAULTS_SEED", "1"))
MOMENTS = ("start", "any", "ledger", "commit", "ledger")
"""When a server is killed: while it starts, whenever, just after it acknowledged something, just as it commits."""
PATIENCE_S = 8.0
"""How long to wait for such a moment; clients are back within half of it."""


def plan_of(num_kills: int, draw: random.Random) -> list[str]:
    """A moment for each kill. Of many kills, those in a commit are where the pace lets a round come to its end."""
    a_round = num_kills // NUM_ROUNDS
    moments = []
    for kill in range(num_kills):
        if a_round < 2:
            moments.append(MOMENTS[kill % len(MOMENTS)])
        else:
            moments.append("commit" if kill % a_round == a_round - 1 else draw.choice(("start", "any", "ledger")))
    if a_round < 2:
        draw.shuffle(moments)
    return moments


class Killer:
    """Kills a server at moments of a kind.

    Args:
        server: which.
        ledger: of its clients.
        draw: where chance comes from.
    """

    def __init__(self, server: ServerProcess, ledger: Path, draw: random.Random):
        self._server = server
        self._ledger = ledger
        self._draw = draw
        self._kinds: dict[str, Callable[[], None]] = {
            "start": lambda: time.sleep(self._draw.uniform(0.0, 3.0)),
            "any": self._any_moment,
            "ledger": lambda: self._once(self._ledger_size, 0.1),
            "commit": lambda: self._once(self._num_checkpoints, 0.05),
        }

    def kill(self, moment: str) -> None:
        """Let a server that was just started live until its moment has come."""
        self._kinds[moment]()
        assert not self._server.has_ended, self._server.log()
        self._server.kill()

    def _any_moment(self) -> None:
        self._server.await_serving()
        time.sleep(self._draw.uniform(0.0, 4.0))

    def _once(self, figure: Callable[[], float], window_s: float) -> None:
        """A moment after something has changed, or was expected to for long enough."""
        self._server.await_serving()
        before, give_up = figure(), time.monotonic() + PATIENCE_S
        wait_until(lambda: figure() != before or time.monotonic() > give_up, within_s=2 * PATIENCE_S)
        time.sleep(self._draw.uniform(0.0, window_s))

    def _ledger_size(self) -> float:
        return self._ledger.stat().st_size

    def _num_checkpoints(self) -> float:
        return len(list((self._server.run_dir / "checkpoints").glob("*")))


@pytest.fixture
def federation(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[ServerProcess, ClientProcess, Path]]:
    """A server, its clients, and the file that says how far the run may have come; none of them started.

    As its parameter it takes sections of the configuration.
    """
    pace = tmp_path / "pace"
    server = ServerProcess(tmp_path, write_config(tmp_path / "config", getattr(request, "param", None)))
    clients = ClientProcess(tmp_path, "clients", server.address, COHORT, seed=SEED, pace=str(pace))
    set_pace(pace, 0.0)
    yield server, clients, pace
    server.kill()
    clients.kill()


def set_pace(path: Path, rounds: float) -> None:
    """Say how far the run may have come."""
    scratch = path.with_suffix(".tmp")
    scratch.write_text(str(rounds))
    scratch.replace(path)


def test_the_undisturbed_run_comes_to_what_the_definition_says(undisturbed: Undisturbed) -> None:
    """Weighted means in float64, taken here; so much the other runs are worth that are compared with it."""
    expected = undisturbed_model(undisturbed.initial, NUM_ROUNDS)
    got = undisturbed.after(NUM_ROUNDS)
    assert got.keys() == expected.keys()
    assert max(float((got[name] - tensor).abs().max()) for name, tensor in expected.items()) < 1e-5


def test_what_a_server_acknowledged_outlives_every_kill(
    federation: tuple[ServerProcess, ClientProcess, Path], undisturbed: Undisturbed, say: Callable[[str], None]
) -> None:
    outlive(federation, plan_of(NUM_KILLS, random.Random(SEED)), undisturbed, say)


def outlive(
    federation: tuple[ServerProcess, ClientProcess, Path],
    moments: Sequence[str],
    undisturbed: Undisturbed,
    say: Callable[[str], None],
) -> None:
    """Kill a server at some moments. Each life may take the run a little further, so that they fall all over it."""
    server, clients, pace = federation
    draw = random.Random(SEED)
    killer = Killer(server, clients.ledger, draw)
    server.start()
    clients.start()
    wait_until(clients.ledger.exists, within_s=60, or_else=clients.log)
    for life, moment in enumerate(moments):
        set_pace(pace, NUM_ROUNDS * (life + 1) / len(moments))
        killer.kill(moment)
        assert not clients.has_ended, clients.log()
        server.start()
    set_pace(pace, float("inf"))
    assert server.wait(120) == 0, server.log()
    assert clients.wait(60) == 0, clients.log()

    result = accounts(server.run_dir, [clients.ledger])
    say(
        f"kills {len(moments)}, acknowledged {result.acknowledged}, lost {len(result.lost)}, "
        f"double-counted {len(result.double_counted)}"
    )
    result.require_exact(NUM_ROUNDS)
    require_same_bits(checkpoint(server.run_dir, NUM_ROUNDS), undisturbed.after(NUM_ROUNDS))
    assert "Traceback" not in server.log() + clients.log()


MOVED = {"server_optimizer": {"name": "fedadam"}, "aggregation": {"task_weighting": "pcgrad"}}


@pytest.mark.long
@pytest.mark.parametrize("federation", [MOVED], indirect=True, ids=["fedadam and pcgrad"])
def test_what_an_optimiser_remembers_outlives_every_kill_too(
    federation: tuple[ServerProcess, ClientProcess, Path],
    undisturbed: Undisturbed,
    tmp_path: Path,
    say: Callable[[str], None],
) -> None:
    """The model is, to the last bit, that of a run nobody killed; and another one than the plain average."""
    expected = asyncio.run(run_undisturbed(tmp_path / "undisturbed", MOVED))
    plain, moved = undisturbed.after(NUM_ROUNDS), expected.after(NUM_ROUNDS)
    assert max(float((moved[name] - tensor).abs().max()) for name, tensor in plain.items()) > 1e-3
    outlive(federation, ["commit", "ledger", "commit"] * (NUM_KILLS // 5), expected, say)


@pytest.mark.skipif(not LONG, reason="part of the long form, FEDMTL_FAULTS=long")
def test_a_server_killed_after_the_last_round_still_tells_its_clients_that_the_run_is_over(
    federation: tuple[ServerProcess, ClientProcess, Path],
) -> None:
    """They come back one after the other, not all at once."""
    server, clients, pace = federation
    set_pace(pace, float("inf"))
    server.start()
    clients.start()
    everything = len(COHORT) * (NUM_ROUNDS + 1)
    wait_until(clients.ledger.exists, within_s=60, or_else=clients.log)
    wait_until(lambda: clients.ledger.read_bytes().count(b"\n") == everything, within_s=90, or_else=server.log)
    server.kill()
    server.start()
    assert server.wait(60) == 0, server.log()
    assert clients.wait(30) == 0, clients.log()
    accounts(server.run_dir, [clients.ledger]).require_exact(NUM_ROUNDS)
