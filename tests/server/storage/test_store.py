"""The run's folder."""

import contextlib
import hashlib
import json
import os
import pkgutil
import random
import shutil
import stat
import subprocess
import sys
import time

import pytest
import torch
from safetensors import safe_open
from structlog.testing import capture_logs

from fedmtl_core import config as configuration
from fedmtl_core.config import Config, ServerConfig, TrainingConfig
from fedmtl_core.errors import StoreError
from fedmtl_server.model import MTLServerModel
from fedmtl_server.rounds.report import RoundReport, TaskReport
from fedmtl_server.storage.checkpoint_folder import CheckpointLayouts
from fedmtl_server.storage.folders import held_run, state_of, unfinished_run
from fedmtl_server.storage.history import History
from fedmtl_server.storage.paths import HISTORY_FILE
from fedmtl_server.storage.records import RunRecord, UpdateRecord
from fedmtl_server.storage.resume import LayoutsOf, LeftOff
from fedmtl_server.storage.store import RunStore
from tests.support import OddEncoder, TinyEncoder, model_bytes, tiny_model

COHORT = {"b": "sst2", "a": "sst2", "c": "sst2"}
"""Not by name: the order of folding is to be kept."""


def config(**store) -> Config:
    return Config.model_validate({"tasks": {"sst2": {}}, "store": store})


def model_of(round_: int) -> MTLServerModel:
    """The model after a round, different each time."""
    return tiny_model("sst2", encoder=TinyEncoder(seed=round_))


def create(run_dir, model: MTLServerModel | None = None, **store) -> RunStore:
    """A new run's store; its model before the first round is that of round 0."""
    model = model or model_of(0)
    return RunStore.create(config(**store), "run", model.components, model.summary(), run_dir)


def resume(run_dir, **store) -> RunStore:
    return RunStore.resume(config(**store), "run", run_dir)


def report(round_: int, *, failed: bool = False) -> RoundReport:
    task = TaskReport("sst2", 2, 10, 1.0, {"accuracy": 0.5}, {"accuracy": 0.75})
    return RoundReport(round_, "train", 0, 1.5, [], [task], ["c"], [], 0, 10, 20, ["qqp"], failed=failed)


def update(round_: int, client_id: str) -> UpdateRecord:
    update_id = f"{client_id}-{round_}"
    return UpdateRecord(round_, client_id, "sst2", round_, update_id, "delta", 5, 120, {}, {}, "counted")


def commit(store: RunStore, model: MTLServerModel, round_: int) -> None:
    """Both halves of a commit, with the digests of the model's bytes."""
    store.write_model(model.components, round_)
    digests = {scope: hashlib.sha256(data).digest() for scope, data in model_bytes(model).items()}
    store.end_round(report(round_), COHORT, [update(round_, "b"), update(round_, "a")], digests)


def run_of(run_dir, num_rounds: int, **store) -> RunStore:
    """A run of so many committed rounds."""
    started = create(run_dir, **store)
    for round_ in range(1, num_rounds + 1):
        commit(started, model_of(round_), round_)
    return started


def layouts_of(model: MTLServerModel) -> LayoutsOf:
    """Those of a model whose layers stay where they are, without a server optimizer."""
    layouts = CheckpointLayouts([component.layout for component in model.components.values()])
    return lambda report: layouts


def left_off(store: RunStore) -> LeftOff:
    return store.left_off(layouts_of(model_of(0)))


def bytes_of(left: LeftOff) -> dict[str, bytes]:
    return {scope: component.buffer.numpy().tobytes() for scope, component in left.components.items()}


def checkpoint(run_dir, round_: int):
    return run_dir / "checkpoints" / f"round-{round_:04}.safetensors"


def checkpoints(run_dir) -> set[str]:
    return {path.name for path in (run_dir / "checkpoints").iterdir()}


def known_runs(run_dir) -> list[RunRecord]:
    """The runs in a folder's history."""
    with contextlib.closing(History.open(run_dir / HISTORY_FILE, create=False)) as history:
        return history.runs()


def dying_at(step: str, when: str, patch: pytest.MonkeyPatch) -> None:
    """Have the server end before or after a method does its work."""
    owner, _, name = step.rpartition(".")
    real = getattr(pkgutil.resolve_name(owner), name)

    def last(*arguments: object) -> None:
        if when == "after":
            real(*arguments)
        raise KeyboardInterrupt

    patch.setattr(step, last)


def flip(path, offset: int, mask: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= mask
    path.write_bytes(data)


def test_a_checkpoint_holds_the_model_bit_for_bit(tmp_path):
    model = tiny_model("sst2", "qqp", encoder=OddEncoder())
    commit(create(tmp_path), model, 3)
    path = checkpoint(tmp_path, 3)
    with safe_open(path, "pt") as stored_model:
        assert stored_model.metadata() == {"format": "pt", "run_id": "run", "round": "3"}
        for component in model.components.values():
            for name, view in component.views().items():
                stored = stored_model.get_tensor(name)
                assert stored.dtype == view.dtype
                assert torch.equal(stored, view)
    history = History.open(tmp_path / HISTORY_FILE, create=False)
    digests = {scope: hashlib.sha256(data).hexdigest() for scope, data in model_bytes(model).items()}
    assert history.rounds("run")[-1].checkpoint == digests
    history.close()


def test_the_model_before_the_first_round_is_a_checkpoint_as_any_other(tmp_path):
    model = tiny_model("sst2", encoder=OddEncoder())
    create(tmp_path, model).close()
    store = resume(tmp_path)
    left = store.left_off(layouts_of(model))
    assert bytes_of(left) == model_bytes(model)
    assert (left.round, left.cohort, left.counted, left.reports) == (1, None, {}, [])
    store.close()


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    store = create(tmp_path, keep_checkpoints=2)
    for round_ in (8, 9, 9999, 10000):
        commit(store, model_of(round_), round_)
        store.prune(())
    assert checkpoints(tmp_path) == {f"round-{n}.safetensors" for n in (9999, 10000)}


def test_the_best_rounds_checkpoints_are_kept_besides_the_newest(tmp_path):
    store = run_of(tmp_path, 6, keep_checkpoints=2)
    store.prune({2, 6})
    assert checkpoints(tmp_path) == {f"round-{n:04}.safetensors" for n in (2, 5, 6)}
    commit(store, model_of(7), 7)
    store.prune({4})  # which is gone; and 2 is no longer the best
    assert checkpoints(tmp_path) == {f"round-{n:04}.safetensors" for n in (6, 7)}


def test_reports_and_metrics_are_in_the_history(tmp_path):
    store = create(tmp_path)
    commit(store, model_of(1), 1)
    store.end_round(report(2), COHORT, [])
    history = History.open(tmp_path / HISTORY_FILE, create=False)
    start, *rounds = history.rounds("run")
    assert (start.round, start.outcome, start.report) == (0, "committed", None)
    assert [(one.round, one.outcome, one.report["round"]) for one in rounds] == [
        (1, "committed", 1),
        (2, "committed", 2),
    ]
    assert rounds[0].report["missing_clients"] == ["c"]
    assert list(rounds[0].cohort.items()) == list(COHORT.items())
    assert rounds[1].checkpoint is None  # the model is as it was
    assert [(one.round, one.task, one.name, one.value, one.num_clients) for one in history.metrics("run")] == [
        (0, "sst2", "accuracy", 0.5, 2),  # what round 1 received is the model before it
        (1, "sst2", "accuracy", 0.5, 2),
    ]
    assert [(one.round, one.client_id) for one in history.updates("run")] == [(1, "b"), (1, "a")]
    history.close()


def test_a_new_run_writes_down_its_configuration_and_takes_no_used_folder(tmp_path):
    settings = Config.model_validate({"tasks": {"sst2": {}}, "server": {"runs_dir": str(tmp_path)}})
    model = model_of(0)
    store = RunStore.create(settings, "abcdef0123456789", model.components, model.summary())
    assert store.run_dir.parent == tmp_path
    assert store.run_dir.name.endswith("-abcdef01")
    assert configuration.load(store.run_dir / "config.yaml") == settings
    assert held_run(store.run_dir) == ("abcdef0123456789", settings)
    with pytest.raises(StoreError, match=f"another server is serving the run in {store.run_dir}"):
        RunStore.create(settings, "x", model.components, model.summary(), store.run_dir)
    assert held_run(store.run_dir) == ("abcdef0123456789", settings)
    assert bytes_of(left_off(store)) == model_bytes(model)


def test_a_password_is_kept_nowhere(tmp_path, monkeypatch):
    """Neither in the folder nor in the database, which others can read."""
    real = History.open
    monkeypatch.setattr(
        History, "open", lambda url, create: real(tmp_path / HISTORY_FILE)
    )  # as if PostgreSQL were there
    url = "postgresql+psycopg://me:hunter2@host:5433/fedmtl?sslpassword=hunter3&sslmode=require"
    create(tmp_path, url=url).close()
    monkeypatch.undo()
    kept = "postgresql+psycopg://me@host:5433/fedmtl?sslmode=require"
    assert configuration.load(tmp_path / "config.yaml").store.url == kept
    (run,) = known_runs(tmp_path)
    assert run.config["store"]["url"] == kept
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"hunter" not in path.read_bytes(), path


def test_the_names_of_all_folders_that_a_new_run_makes_are_on_disk(tmp_path, monkeypatch):
    synced = []
    for module in ("files", "store"):
        monkeypatch.setattr(
            f"fedmtl_server.storage.{module}.sync_folder",
            lambda folder: synced.append((folder, set(folder.iterdir()))),
        )
    run_dir = tmp_path / "runs" / "mine"
    create(run_dir, durability="power").close()
    for folder in (run_dir.parent, run_dir, run_dir / "checkpoints", run_dir / "staging"):
        assert any(parent == folder.parent and folder in names for parent, names in synced), folder


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"can't write .*file.*: Not a directory"):
        create(tmp_path / "file" / "run")


def test_a_checkpoint_that_cannot_be_written_is_an_error_and_leaves_the_last_one(tmp_path, monkeypatch):
    store = run_of(tmp_path, 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedmtl_server.storage.checkpoint_folder.write_safetensors", full)
    with pytest.raises(StoreError, match=r"round-0002\.safetensors: .*No space left on device"):
        commit(store, model_of(2), 2)
    assert checkpoint(tmp_path, 1).exists()
    assert not checkpoint(tmp_path, 2).exists()
    assert left_off(store).round == 2


# Who has the folder.


def test_a_folder_has_one_server(tmp_path):
    first = create(tmp_path)
    with pytest.raises(StoreError, match=f"another server is serving the run in {tmp_path}"):
        resume(tmp_path)
    first.close()
    resume(tmp_path).close()


def test_a_process_that_is_killed_gives_the_folder_back(tmp_path):
    create(tmp_path).close()
    hold = "import sys, time, filelock as f; lock = f.FileLock(sys.argv[1]); lock.acquire(); print(1); time.sleep(60)"
    command = [sys.executable, "-uc", hold, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "1\n"
            with pytest.raises(StoreError, match="another server is serving the run"):
                resume(tmp_path)
        finally:
            other.kill()
    resume(tmp_path).close()


def test_a_run_that_the_database_does_not_know_is_refused_and_its_folder_given_back(tmp_path):
    create(tmp_path).close()
    History.open(tmp_path / "other.sqlite").close()
    with pytest.raises(StoreError, match=r"the database doesn't know run run of .*; was store\.url changed\?"):
        resume(tmp_path, url=f"sqlite:///{tmp_path}/other.sqlite")
    resume(tmp_path).close()


def test_a_history_that_is_missing_is_told_and_not_replaced_by_an_empty_one(tmp_path):
    run_of(tmp_path, 2).close()
    (tmp_path / HISTORY_FILE).rename(tmp_path / "kept")
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(StoreError, match=rf"{tmp_path}/history\.sqlite is missing: .* Restore the file") as caught:
        resume(tmp_path)
    assert "another folder (--run-dir)" in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == before
    with pytest.raises(StoreError, match="is missing"):
        state_of(tmp_path, config())
    with pytest.raises(StoreError, match=r"other\.sqlite: there is no such file"):
        resume(tmp_path, url=f"sqlite:///{tmp_path}/other.sqlite")
    assert not (tmp_path / "other.sqlite").exists()
    (tmp_path / "kept").rename(tmp_path / HISTORY_FILE)
    store = resume(tmp_path)  # the lock was released
    assert bytes_of(left_off(store)) == model_bytes(model_of(2))
    store.close()


@pytest.mark.parametrize(("readable_by", "mode"), [("owner", 0o700), ("group", 0o750), ("all", 0o755)])
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o000])
def test_a_run_s_folder_is_open_to_those_who_may_read_it_whatever_the_umask(tmp_path, readable_by, mode, umask):
    before = os.umask(umask)
    try:
        create(tmp_path / "runs" / "mine", readable_by=readable_by).close()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "runs" / "mine").stat().st_mode) == mode
    assert stat.S_IMODE((tmp_path / "runs").stat().st_mode) == 0o777 & ~umask


def test_a_run_s_folder_is_its_owner_s_alone_unless_it_was_there_or_opened_later(tmp_path):
    create(tmp_path / "new").close()
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    (tmp_path / "new").chmod(0o755)
    resume(tmp_path / "new").close()
    (tmp_path / "own").mkdir()
    (tmp_path / "own").chmod(0o751)
    create(tmp_path / "own").close()
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("new", "own")] == [0o755, 0o751]


# Where a run was left.


def test_a_run_is_left_off_after_its_last_commit(tmp_path):
    run_of(tmp_path, 2).close()
    store = resume(tmp_path)
    with capture_logs() as logs:
        left = left_off(store)
    assert logs == []
    assert bytes_of(left) == model_bytes(model_of(2))
    assert (left.round, left.cohort) == (3, None)
    assert left.counted == {"a": ("a-2", 2), "b": ("b-2", 2)}
    assert left.reports == [report(1), report(2)]


def test_the_model_of_a_round_without_one_is_that_of_the_round_before(tmp_path):
    """A round that failed, or in which no component changed."""
    store = run_of(tmp_path, 1)
    store.end_round(report(2, failed=True), COHORT, [])
    store.end_round(report(3), COHORT, [])
    store.close()
    left = left_off(resume(tmp_path))
    assert bytes_of(left) == model_bytes(model_of(1))
    assert left.round == 4
    assert left.reports == [report(1), report(2, failed=True), report(3)]


def test_a_round_that_was_open_is_left_off_with_its_cohort(tmp_path):
    store = run_of(tmp_path, 1)
    store.open_round(2, "train", 1_764_000_000_000, COHORT)
    store.close()
    left = left_off(resume(tmp_path))
    assert (left.round, left.opened_at_unix_ms) == (2, 1_764_000_000_000)
    assert left.cohort is not None
    assert list(left.cohort.items()) == list(COHORT.items())  # in its order
    assert bytes_of(left) == model_bytes(model_of(1))
    assert left.counted == {"a": ("a-1", 1), "b": ("b-1", 1)}


def test_a_model_that_was_written_and_not_committed_is_of_no_account(tmp_path):
    store = run_of(tmp_path, 1)
    store.open_round(2, "train", 7, COHORT)
    store.write_model(model_of(2).components, 2)
    (tmp_path / "checkpoints" / "round-0002.tmp").write_bytes(b"half")
    store.close()
    left = left_off(resume(tmp_path))
    assert (left.round, left.cohort) == (2, COHORT)
    assert bytes_of(left) == model_bytes(model_of(1))


def test_another_model_than_the_runs_is_refused(tmp_path):
    run_of(tmp_path, 1).close()
    wider = tiny_model("sst2", encoder=TinyEncoder(width=5))
    with pytest.raises(StoreError, match=r"the model that the configuration names isn't the run's: .*encoder"):
        resume(tmp_path).left_off(layouts_of(wider))


# Checkpoints that can't be used.


def _flip_a_byte_of_the_model(path):
    flip(path, path.stat().st_size - 1)


def _flip_a_byte_of_the_size(path):
    flip(path, 6)


def _flip_in_the_header(text: bytes, flipped: bytes):
    """One bit of the JSON, which stays JSON."""
    assert sum((one ^ other).bit_count() for one, other in zip(text, flipped, strict=True)) == 1

    def damage(path):
        data = path.read_bytes()
        assert text in data
        path.write_bytes(data.replace(text, flipped, 1))

    return damage


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def _truncate_in_the_header(path):
    path.write_bytes(path.read_bytes()[:20])


def _empty(path):
    path.write_bytes(b"")


def _remove(path):
    path.unlink()


def _replace_by_an_older_one(path):
    shutil.copy(path.with_name("round-0001.safetensors"), path)


DAMAGES = {
    "one flipped byte": (_flip_a_byte_of_the_model, "the bytes aren't those that were written"),
    "a flipped byte of the header's size": (_flip_a_byte_of_the_size, "its table of contents isn't this model's"),
    "a flipped bit of a tensor's name": (
        _flip_in_the_header(b"encoder.dense.w", b"encoder.dense.v"),
        "its table of contents isn't this model's",
    ),
    "a flipped bit of a dtype": (_flip_in_the_header(b'"F32"', b'"D32"'), "its table of contents isn't this model's"),
    "a flipped bit of a shape": (_flip_in_the_header(b"[4,4]", b"[4,5]"), "its table of contents isn't this model's"),
    "a flipped bit of a key": (
        _flip_in_the_header(b"data_offsets", b"data_offset3"),
        "its table of contents isn't this model's",
    ),
    "a flipped bit between a tensor's offsets": (
        _flip_in_the_header(b"[0,64]", b"[0.64]"),
        "its table of contents isn't this model's",
    ),
    "truncated": (_truncate, "ends before its tensors do"),
    "truncated in its header": (_truncate_in_the_header, "ends before its tensors do"),
    "empty": (_empty, "ends before its tensors do"),
    "missing": (_remove, "is missing"),
    "an older one in its place": (_replace_by_an_older_one, "isn't this model's: __metadata__"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_checkpoint_that_is_not_what_was_written_is_refused_and_the_one_before_it_used(damage, tmp_path):
    do, reason = DAMAGES[damage]
    started = run_of(tmp_path, 3)
    started.open_round(4, "train", 7, COHORT)
    started.close()
    do(checkpoint(tmp_path, 3))
    store = resume(tmp_path)
    with capture_logs() as logs:
        left = left_off(store)
    assert bytes_of(left) == model_bytes(model_of(2))
    assert (left.round, left.cohort) == (3, None)
    assert left.counted == {"a": ("a-2", 2), "b": ("b-2", 2)}
    assert left.reports == [report(1), report(2)]
    refused, rolled_back = logs
    assert (refused["event"], refused["log_level"], refused["round"]) == ("checkpoint.refused", "error", 3)
    assert reason in refused["reason"]
    assert "round-0003.safetensors" in refused["reason"]
    assert (rolled_back["event"], rolled_back["log_level"], rolled_back["to_round"]) == ("run.rolled_back", "error", 2)
    history = History.open(tmp_path / HISTORY_FILE, create=False)
    outcomes = {one.round: one.outcome for one in history.rounds("run")}
    assert outcomes == {0: "committed", 1: "committed", 2: "committed", 3: "rolled_back"}
    assert {(one.round, one.outcome) for one in history.updates("run")} == {
        (1, "counted"),
        (2, "counted"),
        (3, "rolled_back"),
    }
    assert [one.round for one in history.metrics("run")] == [0, 1]  # round 3 measured the model of round 2
    history.close()
    commit(store, model_of(33), 3)  # the round is held again
    store.close()
    with capture_logs() as logs:
        again = left_off(resume(tmp_path))
    assert logs == []
    assert bytes_of(again) == model_bytes(model_of(33))
    assert (again.round, again.reports) == (4, [report(1), report(2), report(3)])


def test_the_newest_checkpoint_that_can_be_used_is(tmp_path):
    """With rounds between that made no model: they are held again too."""
    started = run_of(tmp_path, 3)
    started.end_round(report(4, failed=True), COHORT, [])
    started.close()
    _remove(checkpoint(tmp_path, 2))
    _truncate(checkpoint(tmp_path, 3))
    with capture_logs() as logs:
        left = left_off(resume(tmp_path))
    assert bytes_of(left) == model_bytes(model_of(1))
    assert (left.round, left.reports) == (2, [report(1)])
    assert [(line["event"], line.get("round"), line.get("to_round")) for line in logs] == [
        ("checkpoint.refused", 3, None),
        ("checkpoint.refused", 2, None),
        ("run.rolled_back", None, 1),
    ]


def test_a_bit_that_flipped_anywhere_in_a_checkpoint_never_changes_the_model(tmp_path):
    """The file's header has no digest of its own: where it says the same all the same, the file may be used."""
    store, rng, wrong = run_of(tmp_path, 2, durability="process"), random.Random(0), {}
    path, newest, before = checkpoint(tmp_path, 2), model_bytes(model_of(2)), model_bytes(model_of(1))
    for offset in rng.sample(range(path.stat().st_size), 60):
        bit = rng.randrange(8)
        flip(path, offset, 1 << bit)
        try:
            with capture_logs():
                left = left_off(store)
            if (left.round, bytes_of(left)) not in ((3, newest), (2, before)):
                wrong[offset, bit] = f"round {left.round}"
        except Exception as error:
            wrong[offset, bit] = repr(error)
        commit(store, model_of(2), 2)
    assert wrong == {}


def test_a_checkpoint_is_read_with_the_layouts_of_its_own_rounds_report(tmp_path):
    """Layers may have moved between two rounds, and which ones is in the report."""
    run_of(tmp_path, 2).close()
    layouts, asked = layouts_of(model_of(0)), []

    def noted(about: RoundReport | None) -> CheckpointLayouts:
        asked.append(about)
        return layouts(about)

    for path in (checkpoint(tmp_path, 2), checkpoint(tmp_path, 1)):
        _truncate(path)
    with capture_logs():
        assert resume(tmp_path).left_off(noted).round == 1
    assert asked == [report(2), report(1), None]


def test_a_run_without_a_checkpoint_that_can_be_used_is_refused_and_stays_as_it_is(tmp_path):
    run_of(tmp_path, 2).close()
    _remove(checkpoint(tmp_path, 0))
    _truncate(checkpoint(tmp_path, 1))
    _flip_a_byte_of_the_model(checkpoint(tmp_path, 2))
    store = resume(tmp_path)
    with pytest.raises(
        StoreError, match=r"no checkpoint in .*checkpoints can be used: .*\[2, 1, 0\] are missing or damaged"
    ):
        left_off(store)
    history = History.open(tmp_path / HISTORY_FILE, create=False)
    assert [one.outcome for one in history.rounds("run")] == ["committed"] * 3
    history.close()


# What a folder holds.


def test_a_folder_without_a_run_holds_none(tmp_path):
    assert held_run(tmp_path / "nowhere") is None
    assert held_run(tmp_path) is None
    (tmp_path / "config.yaml").write_text("tasks: {sst2: {}}")  # its run hadn't begun
    assert held_run(tmp_path) is None


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    "step", ["fedmtl_server.storage.history.History.begin_run", "fedmtl_server.storage.store.write_text"]
)
def test_a_run_that_was_cut_short_in_its_beginning_leaves_no_other_in_the_history(step, when, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        dying_at(step, when, patch)
        with pytest.raises(KeyboardInterrupt):
            create(tmp_path)
    assert held_run(tmp_path) is None
    model = model_of(1)
    RunStore.create(config(), "second", model.components, model.summary(), tmp_path).close()
    assert [run.run_id for run in known_runs(tmp_path)] == ["second"]
    held = held_run(tmp_path)
    assert held is not None
    assert held[0] == "second"
    assert {path.name for path in tmp_path.iterdir()} == {
        "checkpoints", "config.yaml", "history.sqlite", "lock", "run.json",
    }  # fmt: skip


def test_a_run_that_began_while_the_folder_was_waited_for_is_left_alone(tmp_path):
    create(tmp_path).close()
    model = model_of(1)
    with pytest.raises(StoreError, match=f"{tmp_path} already holds a run"):
        RunStore.create(config(), "second", model.components, model.summary(), tmp_path)
    assert [run.run_id for run in known_runs(tmp_path)] == ["run"]
    resume(tmp_path).close()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", "\x00", '{"run_id"'])
def test_a_run_whose_id_is_damaged_is_an_error(text, tmp_path):
    create(tmp_path).close()
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(StoreError, match=f"{tmp_path} holds a run that can't be read"):
        held_run(tmp_path)


@pytest.mark.parametrize("text", [None, "tasks: {", "tasks: {nonsense: 3}"])
def test_a_run_whose_configuration_is_damaged_is_an_error(text, tmp_path):
    create(tmp_path).close()
    (tmp_path / "config.yaml").unlink()
    if text is not None:
        (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(StoreError, match=f"{tmp_path} holds a run that can't be read"):
        held_run(tmp_path)


def test_the_end_of_a_run_is_in_its_history_and_its_results_in_the_folder(tmp_path):
    store = run_of(tmp_path, 1)
    store.write_results({"sst2": {"last": 0.5}})
    store.finish()
    assert json.loads((tmp_path / "results.json").read_text()) == {"sst2": {"last": 0.5}}
    history = History.open(tmp_path / HISTORY_FILE, create=False)
    run = history.find_run("run")
    assert run is not None
    assert run.state == "finished"
    assert run.finished_at_unix_ms is not None
    history.close()


def test_a_run_ends_once(tmp_path):
    """Its end and its results stay as they were when its model is handed out again."""
    store = run_of(tmp_path, 1)
    store.write_results({"sst2": {"last": 0.5}})
    store.finish()
    store.close()
    (before,) = known_runs(tmp_path)
    time.sleep(0.01)
    store = RunStore.resume(config(), "run", tmp_path, finished=True)
    store.write_results({"sst2": {"last": 0.75}})
    store.finish()
    store.close()
    assert known_runs(tmp_path) == [before]
    assert json.loads((tmp_path / "results.json").read_text()) == {"sst2": {"last": 0.5}}


def test_a_run_that_is_over_is_told_with_how_to_see_it(tmp_path):
    url = f"sqlite:///{tmp_path}/all.sqlite"
    run_dir = tmp_path / "mine"
    store = create(run_dir, url=url)
    store.finish()
    store.close()
    with pytest.raises(StoreError, match=f"is over: see it with `fedmtl-server runs show {run_dir} --url {url}`"):
        resume(run_dir, url=url)


def test_a_finished_run_whose_last_model_is_damaged_ends_anew(tmp_path):
    store = run_of(tmp_path, 2)
    store.write_results({"sst2": {"last": 0.5}})
    store.finish()
    store.close()
    (before,) = known_runs(tmp_path)
    _truncate(checkpoint(tmp_path, 2))
    time.sleep(0.01)
    store = RunStore.resume(config(), "run", tmp_path, finished=True)
    assert left_off(store).round == 2
    commit(store, model_of(22), 2)
    store.write_results({"sst2": {"last": 0.75}})
    store.finish()
    store.close()
    (after,) = known_runs(tmp_path)
    assert before.finished_at_unix_ms < after.finished_at_unix_ms
    assert json.loads((tmp_path / "results.json").read_text()) == {"sst2": {"last": 0.75}}


def test_what_is_committed_after_a_rollback_outlives_the_damaged_checkpoints_of_later_rounds(tmp_path):
    """They have higher numbers, and would pass for newer."""
    store = run_of(tmp_path, 5, keep_checkpoints=2)
    store.prune([3])
    store.close()
    for round_ in (4, 5):
        _truncate(checkpoint(tmp_path, round_))
    store = resume(tmp_path, keep_checkpoints=2)
    assert left_off(store).round == 4
    commit(store, model_of(4), 4)
    store.prune([])
    store.close()
    store = resume(tmp_path, keep_checkpoints=2)
    assert left_off(store).round == 5
    store.close()
    assert {path.name for path in (tmp_path / "checkpoints").glob("*.damaged")} == {
        "round-0004.damaged",
        "round-0005.damaged",
    }


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    "step",
    [
        "fedmtl_server.storage.checkpoint_folder.CheckpointFolder.set_aside_after",
        "fedmtl_server.storage.history.History.roll_back",
    ],
)
def test_a_rollback_that_was_cut_short_is_taken_up_again(step, when, tmp_path, monkeypatch):
    """Wherever it was cut, the run goes on as after a whole one."""
    run_of(tmp_path, 5, keep_checkpoints=1).close()
    for round_ in (4, 5):
        _truncate(checkpoint(tmp_path, round_))
    store = resume(tmp_path, keep_checkpoints=1)
    with monkeypatch.context() as patch:
        dying_at(step, when, patch)
        with pytest.raises(KeyboardInterrupt):
            left_off(store)
    store.close()
    store = resume(tmp_path, keep_checkpoints=1)
    left = left_off(store)
    assert (left.round, bytes_of(left)) == (4, model_bytes(model_of(3)))
    assert checkpoints(tmp_path) >= {"round-0004.damaged", "round-0005.damaged"}
    commit(store, model_of(44), 4)
    store.prune([])
    store.close()
    left = left_off(resume(tmp_path, keep_checkpoints=1))
    assert (left.round, bytes_of(left)) == (5, model_bytes(model_of(44)))


def test_other_files_among_the_checkpoints_are_nobodys_business(tmp_path):
    store = run_of(tmp_path, 3, keep_checkpoints=1)
    copy = tmp_path / "checkpoints" / "round-0001-copy.safetensors"
    copy.write_text("mine")
    store.prune([])
    store.close()
    assert copy.read_text() == "mine"
    assert checkpoint(tmp_path, 3).exists()
    assert not checkpoint(tmp_path, 2).exists()


def run_in(runs_dir, name, **sections) -> Config:
    """A run of one round in a folder of `runs_dir`, not over; returns its configuration."""
    given = Config.model_validate({"tasks": {"sst2": {}}, "server": {"runs_dir": str(runs_dir)}} | sections)
    model = model_of(0)
    RunStore.create(given, name, model.components, model.summary(), runs_dir / name).close()
    return given


def test_an_unfinished_run_of_the_same_configuration_is_found_and_the_newest_of_them(tmp_path):
    for age_s, name in ((20, "older"), (10, "newer")):
        given = run_in(tmp_path, name)
        then = time.time() - age_s
        os.utime(tmp_path / name / "run.json", (then, then))
    assert unfinished_run(given) == tmp_path / "newer"
    assert state_of(tmp_path / "newer", given) == "running"


def test_a_run_that_is_over_served_unreadable_or_of_another_configuration_is_no_unfinished_one(tmp_path):
    given = run_in(tmp_path / "1", "over")
    with contextlib.closing(RunStore.resume(given, "over", tmp_path / "1" / "over")) as store:
        store.finish()
    assert (unfinished_run(given), state_of(tmp_path / "1" / "over", given)) == (None, "finished")

    given = run_in(tmp_path / "2", "served")
    with contextlib.closing(RunStore.resume(given, "served", tmp_path / "2" / "served")):
        assert unfinished_run(given) is None
    assert unfinished_run(given) == tmp_path / "2" / "served"

    given = run_in(tmp_path / "3", "unreadable")
    (tmp_path / "3" / "unreadable" / HISTORY_FILE).write_text("broken" * 1000)
    assert unfinished_run(given) is None

    given = run_in(tmp_path / "4", "other")
    assert unfinished_run(given.model_copy(update={"training": TrainingConfig(seed=7)})) is None
    assert unfinished_run(given.model_copy(update={"server": ServerConfig(runs_dir=tmp_path / "nowhere")})) is None
    assert state_of(tmp_path / "nowhere", given) is None
