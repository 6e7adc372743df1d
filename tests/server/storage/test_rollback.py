"""`runs rollback`: a run is at an earlier round again, whole or not at all, and continues as if nothing came after."""

import json
from pathlib import Path

import pytest
from fedmtl.v1 import federation_pb2 as pb
from typer.testing import CliRunner

from fedmtl_core.errors import StoreError, UserError
from fedmtl_server.commands.runs import runs_app
from fedmtl_server.storage.history import History
from fedmtl_server.storage.paths import HISTORY_FILE
from fedmtl_server.storage.rollback import roll_back
from fedmtl_server.storage.runs import find_run
from tests.server.playing import model, play, push
from tests.server.storage.test_store import bytes_of, checkpoints, left_off, model_of, report, resume, run_of
from tests.support import model_bytes, reports_of, serving, watching

SECTIONS = {
    "server_optimizer": {"name": "fedadam"},
    "aggregation": {"task_weighting": "gradnorm", "learning_rate": 0.5},
    "store": {"keep_checkpoints": 10},
}


def rolled_back(*arguments: object) -> str:
    """What the command says."""
    result = CliRunner().invoke(runs_app, ["rollback", *map(str, arguments)])
    if result.exception is not None:
        raise result.exception
    return result.stdout


async def evaluate(server) -> None:
    """Hold the last round, and wait for the run's end."""
    async with watching(server, a="sst2", b="qqp") as clients:
        for client in clients.values():
            header, _ = await client.get_slice()
            fields = {"kind": pb.UPDATE_KIND_METRICS, "num_examples": 0, "num_eval_examples": 5, "components": []}
            await client.push(client.update(header, {}, received_metrics={"accuracy": 0.5}, **fields))
        await clients["a"].until(pb.ROUND_EVENT_KIND_FINISHED)
    await server.run_task


@pytest.mark.parametrize("over", [False, True])
async def test_a_run_that_was_rolled_back_comes_to_the_model_of_one_that_was_not(tmp_path, over):
    """To the last bit, with what the server's optimiser and the task weights remember; also after the run was over."""
    rules = {"num_rounds": 4, "sections": SECTIONS}
    async with serving(tmp_path, model(), **rules) as server:
        expected = await play(server, (1, 2, 3, 4))
        if over:
            await evaluate(server)
            server._outcome = "finished"
    expected_reports = [(one.round, one.components, one.stages["task_weighting"]) for one in reports_of(tmp_path)[:4]]
    assert (tmp_path / "results.json").exists() is over

    said = rolled_back(tmp_path, "--to-round", 2)
    assert "is at round 2 again; taken back: rounds 3, 4" in said
    assert said.endswith(f"fedmtl-server --resume {tmp_path}\n")
    assert not (tmp_path / "results.json").exists()
    async with serving(tmp_path, model(seed=99), **rules) as server:
        assert server.federation.status().round == 3
        assert await play(server, (3, 4)) == expected
        await evaluate(server)
        server._outcome = "finished"
    assert [
        (one.round, one.components, one.stages["task_weighting"]) for one in reports_of(tmp_path)[:4]
    ] == expected_reports
    assert json.loads((tmp_path / "results.json").read_text())["sst2"]["last"] == 0.5
    history = History.open(tmp_path / HISTORY_FILE, create=False)
    (run,) = history.runs()
    outcomes = [(one.round, one.outcome) for one in history.rounds(run.run_id)]
    history.close()
    assert (run.state, outcomes) == ("finished", [(n, "committed") for n in range(6)])


async def test_an_update_that_was_acknowledged_in_the_open_round_goes_with_it(tmp_path):
    async with serving(tmp_path, model(), num_rounds=4) as server:
        async with watching(server, a="sst2", b="qqp") as clients:
            for round_ in (1, 2):
                for client in clients.values():
                    await push(client, round_)
                for client in clients.values():
                    await client.until(pb.ROUND_EVENT_KIND_OPENED, round_ + 1)
            await push(clients["a"], 3)
            assert [one.reported for one in server.federation.status().clients] == [True, False]
    assert list((tmp_path / "staging").iterdir())
    assert "taken back: rounds 2, 3" in rolled_back(tmp_path, "--to-round", 1)
    async with serving(tmp_path, model(), num_rounds=4) as server:
        status = server.federation.status()
        assert (status.phase.value, status.round, status.clients) == ("waiting", 2, [])
    assert not (tmp_path / "staging").exists()


async def test_a_run_that_is_served_is_not_rolled_back(tmp_path):
    async with serving(tmp_path, model(), num_rounds=3) as server:
        await play(server, (1, 2))
        with pytest.raises(StoreError, match=r"a server is serving the run in .*; stop it first"):
            rolled_back(tmp_path, "--to-round", 1)
    assert [one.round for one in reports_of(tmp_path)] == [1, 2]


def test_only_a_round_whose_checkpoint_is_kept_can_be_gone_back_to(tmp_path):
    store = run_of(tmp_path, 5, keep_checkpoints=3)
    store.prune([])
    store.close()
    before = (left_off(store_ := resume(tmp_path)), checkpoints(tmp_path))
    store_.close()
    for to_round, message in (
        (1, r"the checkpoint of round 1 is no longer in .* \(store.*\); there are checkpoints of the rounds 3, 4, 5$"),
        (6, r"run run has no round 6; there are checkpoints of the rounds 3, 4, 5$"),
        (5, r"run run is already at round 5: no later round has begun$"),
    ):
        with pytest.raises(UserError, match=message):
            rolled_back(tmp_path, "--to-round", to_round)
    (tmp_path / "checkpoints" / "round-0004.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"there are checkpoints of the rounds 3, 5$"):
        rolled_back(tmp_path, "--to-round", 4)
    store_ = resume(tmp_path)
    assert (bytes_of(left_off(store_)), left_off(store_).round) == (bytes_of(before[0]), 6)
    store_.close()


def test_a_folder_that_is_not_the_run_s_is_left_alone(tmp_path):
    run_of(tmp_path, 2).close()
    place = find_run(str(tmp_path), tmp_path, None)
    (tmp_path / "run.json").write_text('{"run_id": "another"}')
    with pytest.raises(StoreError, match="doesn't hold run run; roll it back on the machine of its server"):
        roll_back(place, 1)


def test_a_round_that_did_not_change_the_model_has_that_of_the_round_before(tmp_path):
    store = run_of(tmp_path, 1)
    store.end_round(report(2, failed=True), {}, [])
    store.end_round(report(3), {}, [])
    store.close()
    rolled_back(tmp_path, "--to-round", 2)
    store = resume(tmp_path)
    left = left_off(store)
    store.close()
    assert (bytes_of(left), left.round) == (model_bytes(model_of(1)), 3)


class Killed(BaseException):
    """The end of the process, at some step."""


def kill_at(step: int, monkeypatch) -> list[str]:
    """Have the process end at one of the steps that change the disk, counted from 0; half of them are done before."""
    done: list[str] = []

    def dying(name, act):
        def stepped(*arguments, **options):
            if len(done) == step:
                raise Killed(name)
            done.append(name)
            result = act(*arguments, **options)
            if len(done) == step:
                raise Killed(name)
            done.append(name)
            return result

        return stepped

    monkeypatch.setattr(History, "roll_back", dying("transaction", History.roll_back))
    for name in ("replace", "unlink"):
        monkeypatch.setattr(Path, name, dying(name, getattr(Path, name)))
    from fedmtl_server.storage import rollback

    monkeypatch.setattr(rollback, "sync_folder", dying("sync", rollback.sync_folder))
    return done


def test_a_rollback_that_is_killed_at_any_step_has_happened_whole_or_not_at_all(tmp_path):
    step, states = 0, []
    while True:
        run_dir = tmp_path / str(step)
        store = run_of(run_dir, 4, keep_checkpoints=9)
        (run_dir / "results.json").write_text("{}")
        store.close()
        place = find_run(str(run_dir), run_dir, None)
        with pytest.MonkeyPatch.context() as monkeypatch:
            done = kill_at(step, monkeypatch)
            try:
                roll_back(place, 2)
                is_dead = False
            except Killed:
                is_dead = True
        store = resume(run_dir, keep_checkpoints=9)
        left = left_off(store)
        again = left_off(store)
        store.close()
        assert (again.round, bytes_of(again)) == (left.round, bytes_of(left))
        assert left.round in (3, 5)
        assert bytes_of(left) == model_bytes(model_of(left.round - 1))
        assert len(left.reports) == left.round - 1
        assert left.counted["a"] == (f"a-{left.round - 1}", left.round - 1)
        is_back = left.round == 3
        there = checkpoints(run_dir)
        assert ("round-0004.safetensors" in there, "round-0004.rolled_back" in there) == (not is_back, is_back)
        assert (run_dir / "results.json").exists() is not is_back
        states.append(is_back)
        if not is_dead:
            break
        step += 1
    assert len(done) > 8  # the transaction, the renames, the folder and the results, each begun and done
    assert states == sorted(states)
    assert states[0] is False
    assert states[1] is True  # right after the transaction


def test_what_a_run_that_is_over_came_to_stays_when_it_is_served_again(tmp_path):
    """It was rolled back once, and ended earlier the second time."""
    run_of(tmp_path, 4, keep_checkpoints=9).close()
    rolled_back(tmp_path, "--to-round", 3)
    store = resume(tmp_path)
    left_off(store)
    store.write_results({"sst2": {}})
    store.finish()
    store.close()
    from fedmtl_server.storage.store import RunStore
    from tests.server.storage.test_store import config

    store = RunStore.resume(config(), "run", tmp_path, finished=True)
    left_off(store)
    store.close()
    assert (tmp_path / "results.json").exists()
