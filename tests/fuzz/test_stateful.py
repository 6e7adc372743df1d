"""Any order of calls by several clients, against a model of the rules: no crash, no state changed by a refused call,
and every acknowledged update counts exactly once."""

import hashlib
import itertools
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import google_crc32c
import numpy as np
import torch
from fedmtl.v1 import federation_pb2 as pb
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from fedmtl_core.config import Config
from fedmtl_core.wire.encoded import EncodedLayout
from fedmtl_core.wire.encodings import encode
from fedmtl_core.wire.layout import Component
from fedmtl_core.wire.messages import component_to_proto
from fedmtl_server.rounds.rules import RoundRules
from fedmtl_server.rounds.task_selection import RoundRobin
from tests.fuzz.driver import Driver, Stream, Watch, quiet_log
from tests.fuzz.rules import DEADLINE_S, GRACE_S, QUORUM_S, TRANSFER_S, Claim, Partial, Rules
from tests.support import chunk_message, tiny_model

LONG = os.environ.get("FEDMTL_FUZZ") == "long"
TASK_OF = {"a": "sst2", "b": "sst2", "c": "qqp"}
NUM_ROUNDS = 3
MIN_CLIENTS = {"sst2": 1, "qqp": 0}
BOUND = 1e6
SETTINGS = settings(
    max_examples=600 if LONG else 50,
    stateful_step_count=80 if LONG else 40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

clients = st.sampled_from(sorted(TASK_OF))
some = st.integers(0, 11)
"""Which of the clients that may report; at 0 and 1 any client."""
update_ids = st.sampled_from(["", "", "", "", "u1", "u2"])
"""Mostly a new one."""
examples = st.sampled_from([1, 2, 3, 1000])
values = st.integers(-8, 8).map(float)
kinds = st.sampled_from(["parameters", "delta"])
encodings = st.sampled_from(["float32", "float16"])


class _Unchanged:
    """Checks that a call changes nothing that anybody could see."""

    def __init__(self, machine, but_uploads):
        self._machine, self._but_uploads = machine, but_uploads

    def __enter__(self):
        self._before = self._look()

    def __exit__(self, kind, *_):
        if kind is None:
            assert self._look() == self._before

    def _look(self):
        driver = self._machine.driver
        status = self._machine.status()
        status.ClearField("uptime_seconds")
        status.ClearField("waiting_for")
        status.ClearField("warnings")  # a client that reports NaN is refused, and told of
        model = {scope: one.buffer.numpy().tobytes() for scope, one in driver.model.components.items()}
        seen = [status, model, driver.federation.published.round, len(driver.reports)]
        if not self._but_uploads:
            seen.append({client: dict(one.offsets) for client, one in self._machine.rules.partials.items()})
            seen.append(driver.federation.staging.used_bytes)
        return seen


def chunks(scope, whole, size, start=0):
    return [chunk_message(scope, offset, whole[offset : offset + size]) for offset in range(start, len(whole), size)]


def numbers(data):
    return np.frombuffer(data, "<f4").astype(np.float64)


def _setting(**fields):
    def change(header):
        for name, value in fields.items():
            setattr(header, name, value)

    return change


def _on_first(**fields):
    def change(header):
        if header.components:
            _setting(**fields)(header.components[0])

    return change


def _without_last(header):
    if header.components:
        del header.components[-1]


def _shape(header):
    if header.components:
        header.components[0].tensors[0].shape[0] += 1


WRONG_CALLS = [
    ("WatchRounds", pb.WatchRoundsRequest(client_id="a"), "INVALID_ARGUMENT"),
    ("WatchRounds", pb.WatchRoundsRequest(task="sst2"), "INVALID_ARGUMENT"),
    ("WatchRounds", pb.WatchRoundsRequest(client_id="a b", task="sst2"), "INVALID_ARGUMENT"),
    ("WatchRounds", pb.WatchRoundsRequest(client_id="a", task="cola"), "NOT_FOUND"),
    ("WatchRounds", pb.WatchRoundsRequest(client_id="a", task="sst2", run_id="other"), "FAILED_PRECONDITION"),
    ("GetSlice", pb.GetSliceRequest(), "INVALID_ARGUMENT"),
    ("GetSlice", pb.GetSliceRequest(task="sst2", all_tasks=True), "INVALID_ARGUMENT"),
    ("GetSlice", pb.GetSliceRequest(task="cola"), "NOT_FOUND"),
    ("GetSlice", pb.GetSliceRequest(task="sst2", run_id="other"), "FAILED_PRECONDITION"),
    ("GetSlice", pb.GetSliceRequest(task="sst2", encoding=77), "INVALID_ARGUMENT"),
    ("GetSlice", pb.GetSliceRequest(task="sst2", compression=9), "INVALID_ARGUMENT"),
    ("GetSlice", pb.GetSliceRequest(task="sst2", round=99), "ABORTED"),
    ("QueryUpload", pb.QueryUploadRequest(client_id="a b", update_id="u1"), "INVALID_ARGUMENT"),
    ("QueryUpload", pb.QueryUploadRequest(client_id="a", update_id="u1", run_id="other"), "FAILED_PRECONDITION"),
    ("PushUpdate", [], "INVALID_ARGUMENT"),
    ("PushUpdate", [pb.PushUpdateRequest()], "INVALID_ARGUMENT"),
    ("PushUpdate", chunks("shared", b"12345678", 8), "INVALID_ARGUMENT"),
]
LOST = {"ABORTED", "UNAVAILABLE", "INVALID_ARGUMENT"}
"""How a stream may end that brings an update nobody waits for any more."""
OF_THE_LAYOUT = {"missing component", "wrong shape"}
"""Layers may have moved: an update that is late, or counts already, is told that."""
NEEDS_COMPONENTS = {"missing component", "wrong shape", "encoding", "start", "int8 of parameters"}
HEADER_DEFECTS = {
    "run": (_setting(run_id="other"), "FAILED_PRECONDITION"),
    "task": (_setting(task="cola"), "NOT_FOUND"),
    "client": (_setting(client_id="a b"), "INVALID_ARGUMENT"),
    "update": (_setting(update_id=""), "INVALID_ARGUMENT"),
    "kind": (_setting(kind=0), "INVALID_ARGUMENT"),
    "metric": (lambda header: header.received_metrics.update(accuracy=float("nan")), "INVALID_ARGUMENT"),
    "metric's name": (lambda header: header.received_metrics.update({"": 1.0}), "RESOURCE_EXHAUSTED"),
    "compression": (_setting(compression=9), "INVALID_ARGUMENT"),
    "missing component": (_without_last, "INVALID_ARGUMENT"),
    "wrong shape": (_shape, "INVALID_ARGUMENT"),
    "encoding": (_on_first(encoding=77), "INVALID_ARGUMENT"),
    "start": (_on_first(start_offset=81), "INVALID_ARGUMENT"),
    "int8 of parameters": (_on_first(encoding=pb.ENCODING_INT8, encoded_bytes=40), "INVALID_ARGUMENT"),
}


def _at(index, **fields):
    """Change one message's chunk; its checksum is right unless it is what is changed."""

    def change(messages):
        chunk = messages[index].chunk
        for name, value in fields.items():
            setattr(chunk, name, value)
        if "crc32c" not in fields:
            chunk.crc32c = google_crc32c.value(chunk.data)
        return messages

    return change


def _full_of(value):
    def change(messages):
        for message in messages[1:]:
            message.chunk.data = np.full(len(message.chunk.data) // 4, value, "<f4").tobytes()
            message.chunk.crc32c = google_crc32c.value(message.chunk.data)
        return messages

    return change


STREAM_DEFECTS = {
    "NaN": (_full_of(np.nan), "INVALID_ARGUMENT", False),
    "infinity": (_full_of(-np.inf), "INVALID_ARGUMENT", False),
    "too far": (_full_of(1e9), "INVALID_ARGUMENT", False),
    "checksum": (_at(2, crc32c=1), "DATA_LOSS", True),
    "short": (lambda messages: messages[:-1], "INVALID_ARGUMENT", False),
    "header alone": (lambda messages: messages[:1], "INVALID_ARGUMENT", False),
    "header twice": (lambda messages: [*messages[:2], messages[0]], "INVALID_ARGUMENT", False),
    "gap": (lambda messages: [messages[0], *messages[2:]], "INVALID_ARGUMENT", False),
    "overlap": (lambda messages: [*messages[:2], *messages[1:]], "INVALID_ARGUMENT", False),
    "too many": (lambda messages: [*messages, *chunks("shared", bytes(104), 24, 80)], "INVALID_ARGUMENT", False),
    "unknown component": (_at(1, scope="task:cola"), "INVALID_ARGUMENT", False),
    "empty chunk": (_at(1, data=b""), "INVALID_ARGUMENT", False),
    "huge chunk": (_at(1, data=bytes(2**21 + 1)), "RESOURCE_EXHAUSTED", False),
    "unannounced compression": (_at(1, uncompressed_bytes=24), "INVALID_ARGUMENT", False),
    "empty message": (lambda messages: [messages[0], pb.PushUpdateRequest()], "INVALID_ARGUMENT", False),
}


class Server(RuleBasedStateMachine):
    """One run, its clients, and what the rules say of it."""

    @initialize(there=st.sampled_from(["a", "ab", "ac", "abc", "c", ""]))
    def begin(self, there) -> None:
        self.folder = tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
        self.quiet = quiet_log()
        self.quiet.__enter__()
        config = Config.model_validate(
            {
                "training": {"num_rounds": NUM_ROUNDS},
                "rounds": {
                    "deadline_s": DEADLINE_S,
                    "quorum_timeout_s": QUORUM_S,
                    "rejoin_grace_s": GRACE_S,
                    "transfer_timeout_s": TRANSFER_S,
                },
                "tasks": {task: {"min_clients": needed} for task, needed in MIN_CLIENTS.items()},
                "store": {"durability": "process"},
                "robustness": {"norms": {"action": "refuse", "bound": BOUND}},
            }
        )
        rules = RoundRules.from_config(config, RoundRobin())
        model = tiny_model(*MIN_CLIENTS)
        self.driver = Driver(Path(self.folder.name) / "run", config, model, rules)
        parameters = {scope: numbers(one.buffer.numpy().tobytes()) for scope, one in model.components.items()}
        self.rules = Rules(NUM_ROUNDS, MIN_CLIENTS, parameters)
        self.layouts = {task: model.layouts_for(task) for task in MIN_CLIENTS}
        self.watches: dict[str, Watch] = {}
        self.ended: list[tuple[Watch, str]] = []
        self.streams: dict[str, tuple[Stream, Claim, str]] = {}
        self.fresh = itertools.count()
        self.driver.start()
        for client in there:
            self.watch(client, None)

    def teardown(self) -> None:
        if not hasattr(self, "driver"):
            return
        try:
            for stream, _, _ in self.streams.values():
                stream.task.cancel()
            records = self.driver.close()
            committed = {(one.client_id, one.update_id): one.round for one in records if one.outcome == "counted"}
            num_counted = sum(one.outcome == "counted" for one in records)
            assert num_counted == len(committed), "an update counts twice"
            still_open = {key for key, round_ in self.rules.acknowledged.items() if round_ == self.rules.round}
            expected = dict(self.rules.acknowledged)
            if self.rules.phase != "finished":
                expected = {key: round_ for key, round_ in expected.items() if key not in still_open}
            assert committed == expected
        finally:
            self.quiet.__exit__(None, None, None)
            self.folder.cleanup()

    # Who is there.

    @rule(client=clients, task=st.sampled_from([None, "sst2", "qqp"]))
    def watch(self, client, task):
        """Mostly for the client's own task; another process of the client is replaced."""
        task = task or TASK_OF[client]
        before = self.watches.get(client)
        self.watches[client] = Watch(self.driver, client, task)
        self.driver.settle()
        if before is not None:
            assert before.end_code() == "ALREADY_EXISTS"
        self.rules.join(client, task)
        assert self.watches[client].events, "a watcher is told at once where the run stands"

    @precondition(lambda self: self.watches)
    @rule(data=st.data())
    def leave(self, data):
        client = data.draw(st.sampled_from(sorted(self.watches)))
        self.driver.cancel(self.watches.pop(client).task)
        self.rules.leave(client)

    # Slices.

    @rule(task=st.sampled_from(sorted(MIN_CLIENTS)))
    def get_slice(self, task):
        messages = self.driver.get_slice(pb.GetSliceRequest(task=task))
        header, chunks = messages[0].header, [message.chunk for message in messages[1:]]
        assert header.round == self.rules.round
        assert header.purpose == pb.RoundPurpose.Value(f"ROUND_PURPOSE_{self.rules.purpose.upper()}")
        for component in header.components:
            data = b"".join(chunk.data for chunk in chunks if chunk.scope == component.scope)
            assert hashlib.sha256(data).digest() == component.digest
            np.testing.assert_allclose(numbers(data), self.rules.parameters[component.scope], rtol=1e-4, atol=1e-4)

    # Whole updates.

    @rule(which=some, update_id=update_ids, n=examples, value=values, kind=kinds, encoding=encodings, off=st.data())
    def push(self, which, update_id, n, value, kind, encoding, off):
        """Mostly for the round in progress."""
        claim = self.claim(self.one_of_those(which), update_id, n, value, kind)
        claim = replace(claim, base_round=claim.base_round + off.draw(st.sampled_from([0, 0, 0, 0, 0, 0, -1, 1])))
        self.whole(claim, encoding)

    @precondition(lambda self: self.rules.counted)
    @rule(data=st.data())
    def push_again(self, data):
        """What counts already, or counted before that: the answer was lost, or an old client comes back."""
        client, update_id = data.draw(st.sampled_from(sorted(self.rules.acknowledged)))
        base_round = data.draw(st.sampled_from([self.rules.acknowledged[client, update_id], self.rules.round]))
        claim = replace(self.claim(client, update_id, 1, 0.0, "parameters"), base_round=base_round)
        self.whole(claim, "float32")

    def whole(self, claim, encoding):
        verdict = self.rules.verdict(claim)
        messages = self.messages(claim, encoding)
        if verdict != "OK":
            with self.unchanged():
                assert self.driver.push(messages) == verdict
            return
        self.rules.partials.pop(claim.client, None)
        assert self.driver.push(messages) == "ACCEPTED"
        self.rules.progress(claim.client)
        self.rules.count(claim)

    @rule(client=clients, update_id=update_ids, defect=st.sampled_from(sorted(HEADER_DEFECTS)))
    def push_with_a_wrong_header(self, client, update_id, defect):
        change, code = HEADER_DEFECTS[defect]
        messages = self.messages(self.claim(client, update_id, 1, 1.0, "parameters"), "float32")
        if not messages[0].header.components and defect in NEEDS_COMPONENTS:
            return
        change(messages[0].header)
        verdict = self.rules.verdict(self.claim(client, update_id, 1, 1.0, "parameters"))
        late = {verdict} if defect in OF_THE_LAYOUT and verdict in ("ABORTED", "DUPLICATE") else set()
        with self.unchanged():
            assert self.driver.push(messages) in {code, *late}

    @precondition(lambda self: self.rules.purpose == "train")
    @rule(which=some, update_id=update_ids, defect=st.sampled_from(sorted(STREAM_DEFECTS)))
    def push_with_wrong_bytes(self, which, update_id, defect):
        change, code, kept = STREAM_DEFECTS[defect]
        client = self.one_of_those(which)
        claim = self.claim(client, update_id, 1, 1.0, "parameters")
        verdict = self.rules.verdict(claim)
        messages = change(self.messages(claim, "float32"))
        with self.unchanged(but_uploads=verdict == "OK"):
            assert self.driver.push(messages) == (code if verdict == "OK" else verdict)
        if verdict == "OK":  # what was there of another upload has made room for this one, which is gone too
            self.rules.partials.pop(client, None)
            if isinstance(messages[-1].WhichOneof("part"), str) and len(messages) > 1:  # a chunk came
                self.rules.progress(client)
            if kept:
                self.rules.partials[client] = Partial(claim, "float32", self.offsets_of(claim, messages[:2]))

    @rule(call=st.sampled_from(range(len(WRONG_CALLS))))
    def call_wrongly(self, call):
        """What is refused whatever the run's state."""
        method, request, code = WRONG_CALLS[call]
        with self.unchanged():
            assert self.driver.refusal(method, request) == code

    # Updates in pieces.

    @precondition(lambda self: self.rules.purpose == "train")
    @rule(
        which=some,
        update_id=update_ids,
        n=examples,
        value=values,
        kind=kinds,
        encoding=encodings,
        pieces=st.integers(0, 8),
    )
    def begin_upload(self, which, update_id, n, value, kind, encoding, pieces):
        """A header and some chunks; what was on its way of the client goes."""
        client = self.one_of_those(which)
        if client in self.streams:
            return
        claim = self.claim(client, update_id, n, value, kind)
        verdict = self.rules.verdict(claim)
        stream = Stream(self.driver)
        messages = self.messages(claim, encoding)[: 1 + pieces]
        stream.send(*messages)
        self.driver.settle()
        if verdict != "OK":
            if not stream.task.done():  # of an older update: the history is read while the bytes come
                stream.send(*self.messages(claim, encoding)[1 + pieces :])
                stream.end()
                self.driver.settle()
            assert stream.outcome() == verdict
            return
        self.rules.partials[client] = Partial(claim, encoding, self.offsets_of(claim, messages), stream)
        self.streams[client] = (stream, claim, encoding)
        if pieces:
            self.rules.progress(client)

    @precondition(lambda self: self.streams)
    @rule(data=st.data(), pieces=st.integers(1, 8), end=st.booleans())
    def go_on(self, data, pieces, end):
        """More chunks of an upload in progress, and perhaps its end."""
        client = data.draw(st.sampled_from(sorted(self.streams)))
        stream, claim, encoding = self.streams[client]
        partial = self.rules.partials.get(client)
        mine = partial is not None and partial.stream is stream
        sent = partial.offsets if mine else {}
        messages = self.messages(claim, encoding, starts=sent)[1:][:pieces]
        whole = self.sizes(claim, encoding)
        stream.send(*messages)
        if end:
            stream.end()
        self.driver.settle()
        if not mine:
            del self.streams[client]
            assert stream.outcome() in LOST
            return
        if messages:
            self.rules.progress(client)
        partial.offsets |= {one.chunk.scope: one.chunk.offset + len(one.chunk.data) for one in messages}
        if end:
            del self.streams[client]
            if partial.offsets == whole:
                assert stream.outcome() == "ACCEPTED"
                self.rules.count(claim)
            else:
                assert stream.outcome() == "INVALID_ARGUMENT"  # it ended short: a mistake, and nothing is kept of it
                del self.rules.partials[client]

    @precondition(lambda self: self.streams)
    @rule(data=st.data())
    def break_off(self, data):
        """The connection breaks; what has arrived is kept."""
        client = data.draw(st.sampled_from(sorted(self.streams)))
        stream, _, _ = self.streams.pop(client)
        self.driver.cancel(stream.task)
        partial = self.rules.partials.get(client)
        if partial is not None and partial.stream is stream:
            partial.stream = None

    @precondition(lambda self: self.streams)
    @rule(data=st.data())
    def damage(self, data):
        """A chunk that contradicts its checksum ends the stream; what came before it is kept."""
        client = data.draw(st.sampled_from(sorted(self.streams)))
        stream, claim, encoding = self.streams[client]
        partial = self.rules.partials.get(client)
        mine = partial is not None and partial.stream is stream
        messages = self.messages(claim, encoding, starts=partial.offsets if mine else {})[1:]
        if not messages:
            return
        messages[0].chunk.crc32c ^= 1
        stream.send(messages[0])
        self.driver.settle()
        del self.streams[client]
        if mine:
            assert stream.outcome() == "DATA_LOSS"
            self.rules.progress(client)
            partial.stream = None
        else:
            assert stream.outcome() in LOST

    @rule(client=clients, update_id=update_ids)
    def query(self, client, update_id):
        """What has arrived; it is the caller's to go on with from now on."""
        partial = self.rules.partials.get(client)
        update_id = update_id or (partial.claim.update_id if partial else "none")
        answer = self.driver.ask("QueryUpload", pb.QueryUploadRequest(client_id=client, update_id=update_id))
        expected = partial.offsets if partial and partial.claim.update_id == update_id else {}
        assert {one.scope: one.num_bytes for one in answer.components} == expected
        if expected:
            partial.stream = None

    @precondition(lambda self: self.streams)
    @rule(data=st.data(), goes_on=st.booleans())
    def query_in_vain(self, data, goes_on):
        """Somebody asks for an upload that is in progress: its stream is no longer the one."""
        client = data.draw(st.sampled_from(sorted(self.streams)))
        stream, claim, encoding = self.streams[client]
        partial = self.rules.partials.get(client)
        if partial is None or partial.stream is not stream or partial.offsets == self.sizes(claim, encoding):
            return
        self.query(client, claim.update_id)
        if goes_on:
            stream.send(self.messages(claim, encoding, starts=partial.offsets)[1])
            self.driver.settle()
            del self.streams[client]
            assert stream.outcome() == "UNAVAILABLE"

    @precondition(lambda self: self.rules.partials)
    @rule(data=st.data(), whole=st.booleans(), wrong=st.sampled_from(["", "", "", "start", "encoding", "examples"]))
    def take_up(self, data, whole, wrong):
        """Another stream goes on where one broke, or claims to."""
        client = data.draw(st.sampled_from(sorted(self.rules.partials)))
        partial = self.rules.partials[client]
        if client in self.streams or not any(partial.offsets.values()):
            return
        claim, encoding, starts = partial.claim, partial.encoding, dict(partial.offsets)
        if wrong == "start":
            starts["shared"] = (starts["shared"] + 4) % self.sizes(claim, encoding)["shared"] or 4
        elif wrong == "encoding":
            encoding = "bfloat16" if encoding == "float16" else "float16"
            if any(starts[scope] > size for scope, size in self.sizes(claim, encoding).items()):
                return
        elif wrong == "examples":
            claim = replace(claim, num_examples=claim.num_examples + 1)
        messages = self.messages(claim, encoding, starts=starts)
        verdict = self.rules.verdict(claim)
        if verdict != "OK" or wrong:
            with self.unchanged():
                assert self.driver.push(messages) == ("UNAVAILABLE" if verdict == "OK" else verdict)
            return
        if whole:
            assert self.driver.push(messages) == "ACCEPTED"
            self.rules.progress(client) if len(messages) > 1 else None
            self.rules.count(claim)
            return
        stream = Stream(self.driver)
        stream.send(messages[0])
        self.driver.settle()
        partial.stream = stream
        self.streams[client] = (stream, claim, encoding)

    # Time, and the server's end.

    @rule(seconds=st.sampled_from([TRANSFER_S, TRANSFER_S, GRACE_S, QUORUM_S, DEADLINE_S, 0]))
    def time_passes(self, seconds):
        """Streams that brought nothing for so long are given up. With 0 the server is started again instead."""
        if seconds == 0:
            self.restart()
            return
        self.driver.pass_time(seconds)
        self.rules.pass_time(seconds)
        for client, (stream, _, _) in list(self.streams.items()):
            assert stream.outcome() == "UNAVAILABLE", "a stream without progress is given up"
            del self.streams[client]
            partial = self.rules.partials.get(client)
            if partial is not None and partial.stream is stream:
                partial.stream = None

    def restart(self):
        for stream, _, _ in self.streams.values():
            stream.task.cancel()
        self.driver.settle()
        self.driver.restart(tiny_model(*MIN_CLIENTS))
        self.streams.clear()
        for watch in self.watches.values():
            assert watch.end_code() == "UNAVAILABLE"
        self.watches.clear()
        self.rules.restart()

    # What holds all the time.

    @invariant()
    def the_server_is_where_the_rules_say(self):
        if not hasattr(self, "driver"):
            return
        status = self.status()
        rules = self.rules
        assert pb.Phase.Name(status.phase) == f"PHASE_{rules.phase.upper()}"
        assert status.round == rules.round
        there = {one.client_id: one.task for one in status.clients if one.connected}
        assert there == rules.present
        if rules.phase == "open":
            cohort = {one.client_id: one.reported for one in status.clients if one.in_cohort}
            assert cohort == {client: member.claim is not None for client, member in rules.cohort.items()}

    @invariant()
    def every_commit_counts_each_acknowledged_update_once(self):
        if not hasattr(self, "driver"):
            return
        reports = self.driver.reports
        assert len(reports) == len(self.rules.commits)
        for report, commit in zip(reports, self.rules.commits, strict=True):
            counted = {
                one.scope: sorted((part.client_id, part.num_examples) for part in one.contributions)
                for one in report.components
            }
            assert counted == {
                scope: sorted((claim.client, claim.num_examples) for claim in claims)
                for scope, claims in commit.items()
            }

    @invariant()
    def the_model_is_the_average(self):
        if not hasattr(self, "driver"):
            return
        for scope, component in self.driver.model.components.items():
            got = numbers(component.buffer.numpy().tobytes())
            np.testing.assert_allclose(got, self.rules.parameters[scope], rtol=1e-4, atol=1e-4)

    @invariant()
    def what_is_on_its_way_is_kept_and_nothing_else(self):
        if not hasattr(self, "driver"):
            return
        assert self.driver.on_its_way() == {client: one.offsets for client, one in self.rules.partials.items()}

    @invariant()
    def those_who_watch_know(self):
        if not hasattr(self, "driver"):
            return
        for client, watch in self.watches.items():
            assert watch.end_code() is None
            last = watch.events[-1]
            if self.rules.phase == "finished":
                assert last.kind == pb.ROUND_EVENT_KIND_FINISHED
            if self.rules.phase == "open":
                assert (last.kind, last.round) == (pb.ROUND_EVENT_KIND_OPENED, self.rules.round)
                member = self.rules.cohort.get(client)
                assert last.in_cohort == (member is not None and member.task == watch.asked_as)

    # Helpers.

    def status(self):
        return self.driver.ask("GetStatus", pb.GetStatusRequest())

    def unchanged(self, *, but_uploads=False):
        return _Unchanged(self, but_uploads)

    def one_of_those(self, which):
        """A client that may report, or at 0 and 1 any."""
        ready = sorted(client for client, member in self.rules.cohort.items() if not member.claim)
        everybody = sorted(TASK_OF)
        return ready[which % len(ready)] if which > 1 and ready else everybody[which % len(everybody)]

    def claim(self, client, update_id, n, value, kind):
        """An update for the round in progress, as the client would make it."""
        update_id = update_id or f"new-{next(self.fresh)}"
        kind = "metrics" if self.rules.purpose == "evaluate" else kind
        n = 0 if kind == "metrics" else n
        return Claim(client, TASK_OF[client], self.rules.round, update_id, n, value, kind)

    def sizes(self, claim, encoding):
        return {one.scope: one.num_bytes // (1 if encoding == "float32" else 2) for one in self.layouts[claim.task]}

    def messages(self, claim, encoding, starts=None):
        """An update's header and chunks of 24 bytes."""
        starts = starts or {}
        parts, data = [], {}
        for layout in self.layouts[claim.task] if claim.kind != "metrics" else ():
            component = Component(layout)
            component.buffer.view(torch.float32).fill_(claim.value)
            encoded = encode(component, encoding)
            data[layout.scope] = encoded.numpy().tobytes()
            parts.append(EncodedLayout(layout, encoding, len(encoded), starts.get(layout.scope, 0)))
        header = pb.UpdateHeader(
            run_id=self.driver.run_id,
            client_id=claim.client,
            task=claim.task,
            base_round=max(0, claim.base_round),
            update_id=claim.update_id,
            kind=pb.UpdateKind.Value(f"UPDATE_KIND_{claim.kind.upper()}"),
            num_examples=claim.num_examples,
            num_eval_examples=1,
            received_metrics={"accuracy": 0.5},
            components=[component_to_proto(part) for part in parts],
        )
        pieces = [one for scope, whole in data.items() for one in chunks(scope, whole, 24, starts.get(scope, 0))]
        return [pb.PushUpdateRequest(header=header), *pieces]

    def offsets_of(self, claim, messages):
        offsets = {layout.scope: 0 for layout in self.layouts[claim.task]}
        for one in messages[1:]:
            offsets[one.chunk.scope] = one.chunk.offset + len(one.chunk.data)
        return offsets


def test_any_order_of_calls_is_answered_by_the_rules():
    run_state_machine_as_test(Server, settings=SETTINGS)


# What was found, by itself.


def test_an_upload_is_not_taken_up_in_another_encoding():
    run = Server()
    run.begin("a")
    claim = run.claim("a", "u1", 1, 1.0, "parameters")
    stream = Stream(run.driver)
    stream.send(*run.messages(claim, "float16")[:2])
    run.driver.settle()
    run.driver.cancel(stream.task)
    for encoding, answer in (("bfloat16", "UNAVAILABLE"), ("float16", "ACCEPTED")):
        assert run.driver.push(run.messages(claim, encoding, starts={"shared": 24})) == answer
    run.rules.count(claim)
    run.the_model_is_the_average()
    run.teardown()


def test_an_update_that_counted_long_ago_does_not_take_the_place_of_one_on_its_way():
    run = Server()
    run.begin("a")
    for update_id in ("u1", "u2"):
        run.whole(run.claim("a", update_id, 1, 1.0, "parameters"), "float32")
    claim = run.claim("a", "u3", 1, 1.0, "parameters")
    stream = Stream(run.driver)
    stream.send(*run.messages(claim, "float32")[:2])
    run.driver.settle()
    run.driver.cancel(stream.task)
    assert run.driver.push(run.messages(run.claim("a", "u1", 1, 1.0, "parameters"), "float32")) == "ABORTED"
    assert run.driver.push(run.messages(claim, "float32", starts={"shared": 24})) == "ACCEPTED"
    run.rules.count(claim)
    run.the_model_is_the_average()
    run.teardown()


def test_a_client_that_came_back_with_another_task_is_waited_for_as_one_that_left():
    run = Server()
    run.begin("a")
    run.watch("a", "qqp")
    run.time_passes(GRACE_S)
    run.the_server_is_where_the_rules_say()
    run.teardown()


def test_a_run_that_is_over_is_in_its_last_round_after_a_restart_too():
    run = Server()
    run.begin("a")
    while run.rules.phase != "finished":
        run.whole(run.claim("a", "", 1, 1.0, "parameters"), "float32")
    run.restart()
    run.the_server_is_where_the_rules_say()
    assert run.status().round == NUM_ROUNDS + 1
    run.get_slice("sst2")
    run.teardown()
