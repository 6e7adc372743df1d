"""The example clients in other languages: their codec, a run of four languages, and what they do at a fault."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from fedmtl_server.rounds.transitions import Phase
from fedmtl_server.storage.history import History
from fedmtl_server.storage.paths import HISTORY_FILE
from tests.examples.languages import LANGUAGES, ROOT, VECTORS, training
from tests.examples.scripted import CODE, DATA, RETRY_S, TASK, ScriptedServer, float32_of, scripted
from tests.support import CuttingProxy, WideEncoder, eventually, serving, tiny_model

NUM_ROUNDS = 3
TASK_OF = {"node": "sst2", "go": "qqp", "cpp": "stsb", "python-0": "sst2", "python-1": "stsb"}
"""By client id. The clients in Python have rows of their own."""

CONFIG = """
model: {model}
training: {{num_rounds: {num_rounds}, local_epochs: 1, learning_rate: 1e-3, max_length: 48}}
rounds: {{deadline_s: 120, quorum_timeout_s: 120, rejoin_grace_s: 20}}
tasks: {tasks}
"""


def test_the_vectors_pass(language):
    num_cases = sum(len(json.loads(path.read_text())["cases"]) for path in VECTORS.glob("*.json"))
    done = language.run("vectors", str(VECTORS))
    assert (done.returncode, done.stdout.strip()) == (0, f"{num_cases} vectors passed"), done.stderr


@pytest.mark.parametrize(
    ("file", "right", "wrong"),
    [
        ("chunks.json", '"crc32c": "aa36f2c9"', '"crc32c": "aa36f2c8"'),
        ("encodings.json", '"decoded_hex": "0000803f00', '"decoded_hex": "0000803f01'),
    ],
)
def test_a_vector_that_differs_is_named(language, tmp_path, file, right, wrong):
    for path in VECTORS.glob("*.json"):
        (tmp_path / path.name).write_text(path.read_text())
    text = (tmp_path / file).read_text()
    assert right in text
    (tmp_path / file).write_text(text.replace(right, wrong, 1))
    name = next(case["name"] for case in json.loads(text)["cases"] if right.split('"')[3] in json.dumps(case))
    done = language.run("vectors", str(tmp_path))
    assert done.returncode == 1
    assert name in done.stdout + done.stderr


class Processes:
    """A server and clients in Python, as processes, in one folder."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack, config: str):
        self.folder = folder
        self.run_dir = folder / "run"
        self._stack = stack
        (folder / "config.yaml").write_text(config)
        self.server = self.start("server", "fedmtl_server", "--port", "0", "--run-dir", str(self.run_dir))

    def start(self, name: str, module: str, *options: str) -> subprocess.Popen[bytes]:
        log = self._stack.enter_context((self.folder / f"{name}.log").open("wb"))
        command = [sys.executable, "-m", module, "--config", str(self.folder / "config.yaml"), *options]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        return process

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    async def address(self) -> str:
        give_up = time.monotonic() + 90
        while not (self.run_dir / "server.json").exists():
            assert self.server.poll() is None, self.log("server")
            assert time.monotonic() < give_up, "the server doesn't start"
            await asyncio.sleep(0.05)
        return str(json.loads((self.run_dir / "server.json").read_text())["address"])


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.mark.e2e
@pytest.mark.long
@pytest.mark.parametrize("adapters", [None, "freeze_a", "alternate"])
async def test_clients_in_all_languages_train_one_model(languages, tmp_path, stack, adapters):
    """With adapters, a client that trains only its head sees other components, and leaves out what a round does."""
    model = {"server_model": "builtin:toy"} | ({"adapters": {"aggregation": adapters}} if adapters else {})
    encoder_in = {"alternate": ["factor_b:shared", "factor_a:shared", "factor_b:shared"]}
    task_of = {client: task for client, task in TASK_OF.items() if client not in LANGUAGES.keys() - languages.keys()}
    tasks = {
        task: {"min_clients": number, "train_samples": 60, "val_samples": 30, "data": {"builtin": task}}
        for task, number in Counter(task_of.values()).items()
    }
    run = Processes(
        tmp_path, stack, CONFIG.format(num_rounds=NUM_ROUNDS, tasks=json.dumps(tasks), model=json.dumps(model))
    )
    address = await run.address()
    python = {
        name: run.start(name, "fedmtl_client", "--client-id", name, "--task", task, "--server", address)
        for name, task in task_of.items()
        if name not in LANGUAGES
    }
    async with contextlib.AsyncExitStack() as clients:
        foreign = {
            name: await clients.enter_async_context(
                training(one, tmp_path / f"{name}.log", address, name, task_of[name])
            )
            for name, one in languages.items()
        }
        assert await asyncio.to_thread(run.server.wait, 300) == 0, run.log("server")
        ended = {name: await client.ended() for name, client in foreign.items()}
    ended |= {name: process.wait(30) for name, process in python.items()}
    assert ended == dict.fromkeys(task_of, 0), [run.log(name) for name in ended if ended[name] != 0]

    with contextlib.closing(History.open(run.run_dir / HISTORY_FILE, create=False)) as history:
        [record] = history.runs()
        reports = [one.report for one in history.rounds(record.run_id) if one.report is not None]
        updates = history.updates(record.run_id)
    assert [report["round"] for report in reports] == [1, 2, 3, 4]
    assert {(one.round, one.client_id, one.task, one.outcome) for one in updates} == {
        (round_, client, task, "counted") for round_ in (1, 2, 3, 4) for client, task in task_of.items()
    }
    assert [report["num_refused"] for report in reports] == [0, 0, 0, 0]
    scopes = encoder_in.get(adapters, ["shared"] * NUM_ROUNDS)
    for report, encoder in zip(reports[:NUM_ROUNDS], scopes, strict=True):
        moved = {
            component["scope"]: {part["client_id"]: part["norm"] for part in component["contributions"]}
            for component in report["components"]
        }
        assert moved.keys() == {encoder, *(f"task:{task}" for task in tasks)}
        assert moved[encoder].keys() == task_of.keys()
        for client, task in task_of.items():
            assert moved[f"task:{task}"][client] > 0, "a client trains its head"
            assert (moved[encoder][client] == 0) == (client in LANGUAGES), "the examples send the encoder as it came"
        assert report["unchanged_tasks"] == []
    for task in (report for report in reports[NUM_ROUNDS]["tasks"]):
        assert task["num_updates"] == tasks[task["task"]]["min_clients"]
        assert task["received_metrics"], "the final model is measured"

    first, last = (load_file(run.run_dir / "checkpoints" / f"round-000{n}.safetensors") for n in (1, NUM_ROUNDS))
    for name in languages:
        assert not first[f"heads.{task_of[name]}.weight"].equal(last[f"heads.{task_of[name]}.weight"])
        losses = re.findall(r"^round (\d): .*loss ([\d.]+) -> ([\d.]+), accepted$", run.log(name), re.MULTILINE)
        assert [round_ for round_, _, _ in losses] == ["1", "2", "3"], run.log(name)
        assert all(float(after) < float(before) for _, before, after in losses), run.log(name)


async def test_what_arrives_damaged_or_in_part_is_fetched_again(language, tmp_path):
    script = ScriptedServer(damage=["chunk", "digest", "break"])
    async with scripted(script) as address, training(language, tmp_path / "log", address, "a", TASK) as client:
        assert await client.ended() == 0, client.said
    assert [request.round for request in script.downloads] == [1, 1, 1, 1, 2, 3]
    assert script.faults == []
    assert list(script.uploaded) == [1, 2, 3], client.said
    _require_trained_heads(script)


async def test_an_update_is_sent_again_until_it_counts_and_stays_the_same_update(language, tmp_path):
    script = ScriptedServer(refusals=[CODE.UNAVAILABLE, CODE.DATA_LOSS, CODE.RESOURCE_EXHAUSTED])
    async with scripted(script) as address, training(language, tmp_path / "log", address, "a", TASK) as client:
        assert await client.ended() == 0, client.said
    assert [header.base_round for header in script.headers] == [1, 1, 1, 1, 2, 3]
    ids = [header.update_id for header in script.headers]
    assert (len(set(ids[:4])), len(set(ids))) == (1, 3)
    assert script.waited_s >= RETRY_S
    assert script.faults == []
    _require_trained_heads(script)


async def test_a_round_that_closes_is_left_for_the_next_one(language, tmp_path):
    script = ScriptedServer(refusals=[CODE.ABORTED])
    async with scripted(script) as address, training(language, tmp_path / "log", address, "a", TASK) as client:
        assert await client.ended() == 0, client.said
    assert [header.base_round for header in script.headers] == [1, 2, 3]
    assert list(script.uploaded) == [2, 3]


@pytest.mark.parametrize("code", [CODE.INTERNAL, CODE.UNAUTHENTICATED], ids=lambda code: code.name)
async def test_an_error_that_will_not_pass_ends_the_client_with_the_servers_words(language, tmp_path, code):
    script = ScriptedServer(refusals=[code])
    async with scripted(script) as address, training(language, tmp_path / "log", address, "a", TASK) as client:
        assert await client.ended() == 1, client.said
    assert f"the script says {code.name}" in client.said
    assert len(script.headers) == 1


async def test_the_last_round_gets_metrics_alone_and_metrics_are_numbers(language, tmp_path):
    script = ScriptedServer()
    async with scripted(script) as address, training(language, tmp_path / "log", address, "a", TASK) as client:
        assert await client.ended() == 0, client.said
    *trained, evaluated = script.headers
    assert all(len(header.components) == 2 and header.num_examples >= 1 for header in trained)
    assert len(evaluated.components) == 0
    assert evaluated.received_metrics
    assert evaluated.num_eval_examples >= 1
    assert [header.trained_metrics["loss"] < header.received_metrics["loss"] for header in trained] == [True, True]


async def test_a_token_goes_with_every_call_and_is_never_said(language, tmp_path):
    (tmp_path / "token").write_text("fedmtl.a-token-of-this-test\n")
    script = ScriptedServer(refusals=[CODE.UNAVAILABLE])
    options = ("--token-file", str(tmp_path / "token"))
    async with (
        scripted(script) as address,
        training(language, tmp_path / "log", address, "a", TASK, *options) as client,
    ):
        assert await client.ended() == 0, client.said
    assert len(script.metadata) >= 1 + 3 + 4
    assert {metadata.get("authorization") for metadata in script.metadata} == {"Bearer fedmtl.a-token-of-this-test"}
    assert "a-token-of-this-test" not in client.said


@pytest.mark.parametrize("upwards", [False, True], ids=["download", "upload"])
async def test_a_transfer_that_is_cut_off_goes_on(language, tmp_path, upwards):
    """8 MB are cut off after 5: the bytes that are there already don't come again, or not for long."""
    model = tiny_model("sst2", encoder=WideEncoder(2_000_000))
    async with (
        serving(tmp_path / "run", model, rejoin_grace_s=20) as server,
        CuttingProxy(server.address, [5_000_000], upwards=upwards) as proxy,
        training(language, tmp_path / "log", proxy.address, "a", "sst2") as client,
    ):
        assert await client.ended() == 0, client.said
        async with asyncio.timeout(20):
            await server.run_task
    assert proxy.num_cut == 1
    assert ", accepted" in client.said
    whole = 8_000_000 if upwards else 16_000_000  # the final evaluation fetches the slice once more
    assert whole < proxy.bytes_passed < whole + 2 * 2**21 + 500_000, "it began anew"


async def test_a_client_that_calls_too_often_waits_as_it_is_told(language, tmp_path):
    """One call is admitted after each wait: a client that spends it on QueryUpload first is refused for ever."""
    limits = {"requests_per_s": 4, "request_burst": 2}
    async with (
        serving(tmp_path / "run", tiny_model("sst2"), num_rounds=3, sections={"limits": limits}) as server,
        training(language, tmp_path / "log", server.address, "a", "sst2") as client,
    ):
        assert await client.ended() == 0, client.said
    assert client.said.count(", accepted") == 4, client.said


async def test_a_task_that_the_server_does_not_have(language, tmp_path):
    async with (
        serving(tmp_path / "run", tiny_model("sst2")) as server,
        training(language, tmp_path / "log", server.address, "a", "weather") as client,
    ):
        assert await client.ended() == 1, client.said
    assert "expected one of sst2, got 'weather'" in client.said, "the server says it best"


@pytest.mark.long
async def test_a_server_that_is_not_there(language, tmp_path):
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        async with training(language, tmp_path / "log", address, "a", "sst2") as client:
            assert await client.ended() == 1, client.said
    assert address in client.said
    assert len(client.said.strip().splitlines()) <= 3, client.said


async def test_ctrl_c_ends_a_client_in_order(language, tmp_path):
    async with (
        serving(tmp_path / "run", tiny_model("sst2"), min_clients=2) as server,
        training(language, tmp_path / "log", server.address, "a", "sst2") as client,
    ):
        await client.has_said("waiting")
        client.interrupt()
        assert await client.ended(10) in (0, 130), client.said
        await eventually(lambda: not any(one.connected for one in server.federation.status().clients))
        assert server.federation.status().phase is Phase.WAITING
    assert not re.search(r"panic|goroutine|terminate called|^\s+at ", client.said, re.MULTILINE), client.said


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("dance",),
        ("train", "--server", "127.0.0.1:1", "--task", "sst2"),
        ("train", "--server", "127.0.0.1:1", "--task", "sst2", "--client-id", "a", "--colour", "red"),
        ("vectors",),
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_is_answered_with_the_right_one(language, arguments):
    done = language.run(*arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "usage: " in (done.stdout + done.stderr).lower()


def test_typescript_passes_its_check(language_named):
    language_named("node")
    done = subprocess.run(
        ["npm", "run", "check"],
        cwd=ROOT / "examples" / "node",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _require_trained_heads(script: ScriptedServer) -> None:
    """Each round's update is the slice with another head, or a delta that moves the head alone."""
    for header in script.headers:
        if header.components and header.base_round in script.uploaded:
            encoder, head = (script.uploaded[header.base_round][scope] for scope in DATA)
            base = DATA if header.kind == 1 else {scope: bytes(len(data)) for scope, data in DATA.items()}
            assert encoder == base["shared"]
            assert len(head) == len(base[f"task:{TASK}"])
            assert list(float32_of(head)) != list(float32_of(base[f"task:{TASK}"]))
