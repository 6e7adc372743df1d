"""What is fuzzed: functions of bytes that raise nothing, unless FedMTL does what it must not.

Each takes what a stranger can send (or a person can write into a configuration), and checks that nothing but a
declared error comes of it, that what is refused changes nothing, that what is accepted is what it says, and that no
more memory is taken than the layout, or the input, is large. `tests/fuzz/__main__.py` has them run with atheris, and
`test_targets.py` with the seeds, and with inputs that were found to do harm.
"""

from __future__ import annotations

import itertools
import json
import math
import struct
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # torch imports it when an operation first needs it: in a target it would be time and memory
import yaml
from fedmtl.v1 import federation_pb2 as pb
from google.protobuf.message import DecodeError
from torch.utils._python_dispatch import TorchDispatchMode

from fedmtl_core import config
from fedmtl_core.errors import ConfigError, RequestError
from fedmtl_core.tasks.evaluation import TaskMetric, task_metrics
from fedmtl_core.tasks.glue import PRESETS
from fedmtl_core.tasks.paired import PairedLoss
from fedmtl_core.tasks.spec import TaskSpec
from fedmtl_core.wire.chunks import MAX_CHUNK_BYTES, Assembler, Chunk, read_message
from fedmtl_core.wire.encoded import EncodedLayout
from fedmtl_core.wire.encodings import decode, encode, require_encoded_size, require_valid
from fedmtl_core.wire.formats import ENCODINGS, Encoding
from fedmtl_core.wire.layout import DTYPES, Component, Layout
from fedmtl_core.wire.messages import component_from_proto, component_to_proto
from fedmtl_core.wire.update_headers import components_from_header, update_from_bytes, update_from_header
from fedmtl_core.wire.updates import Update

VECTORS = Path(__file__).parents[1] / "vectors"
CONFIGS = Path(__file__).parents[2] / "configs"
MIB = 2**20


@dataclass(frozen=True)
class Target:
    """One thing that is fuzzed."""

    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    """Inputs to start from."""
    max_bytes: int
    """Longer inputs are not tried."""


class _Cursor:
    """Takes an input apart; past its end there are zeros."""

    def __init__(self, data: bytes):
        self._data = data
        self._position = 0

    def byte(self) -> int:
        return (self.take(1) or b"\0")[0]

    def take(self, size: int) -> bytes:
        start, self._position = self._position, self._position + size
        return self._data[start : self._position]

    def rest(self) -> bytes:
        return self._data[self._position :]


# Memory.


@contextmanager
def _within(limit: int) -> Iterator[None]:
    """Check that no more than so many bytes are taken at a time by Python and NumPy, and by any tensor."""
    was_tracing = tracemalloc.is_tracing()
    if not was_tracing:
        tracemalloc.start()
    try:
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        with _Tensors() as tensors:
            yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        if not was_tracing:
            tracemalloc.stop()
    taken = max(peak - before, tensors.largest)
    assert taken <= limit, f"{taken} bytes were taken, at most {limit} are right"


class _Tensors(TorchDispatchMode):
    """Notes the largest memory that a tensor has."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(one, torch.Tensor):
                self.largest = max(self.largest, one.untyped_storage().nbytes())
        return result


# Chunks.

_SIZES = {"shared": 4096, "task:sst2": 40}


def fuzz_chunks(data: bytes) -> None:
    """A stream: whether chunks may be compressed, then messages, each behind its length as uint16."""
    cursor = _Cursor(data)
    compression = "zstd" if cursor.byte() % 2 else "none"
    buffers = {scope: torch.full((size,), 0x55, dtype=torch.uint8) for scope, size in _SIZES.items()}
    with _within(4 * MAX_CHUNK_BYTES + 100 * len(data)):
        assembler = Assembler(buffers, compression=compression)  # type: ignore[arg-type]
        received = 0
        while size := int.from_bytes(cursor.take(2), "little"):
            chunk = _read_both_ways(cursor.take(size))
            if chunk is None:
                continue
            before, offsets = {s: b.clone() for s, b in buffers.items()}, dict(assembler.offsets)
            try:
                assembler.add(chunk)
            except RequestError:
                assert assembler.offsets == offsets
                assert all(torch.equal(before[scope], buffers[scope]) for scope in buffers)
                continue
            received += chunk.num_bytes
            end = offsets[chunk.scope] + chunk.num_bytes
            assert assembler.offsets == offsets | {chunk.scope: end}
            assert end <= _SIZES[chunk.scope]
            assert (buffers[chunk.scope][end:] == 0x55).all()
        assert assembler.bytes_received == received == sum(assembler.offsets.values())
        try:
            assembler.finish()
        except RequestError:
            assert not assembler.is_complete
        else:
            assert assembler.is_complete


def _read_both_ways(message: bytes) -> Chunk | None:
    """A message's chunk, if it has one; our reader and protobuf's must agree on it."""
    found = []
    for kind in (pb.PushUpdateRequest, pb.GetSliceResponse):
        try:
            read = read_message(message, kind)
        except RequestError:
            read = None
        try:
            expected = kind.FromString(message)
        except DecodeError:
            expected = None
        assert (read is None) == (expected is None)
        if not isinstance(read, Chunk):
            assert read == expected
            assert read is None or read.WhichOneof("part") != "chunk"
            continue
        assert expected is not None
        part = expected.chunk
        assert expected.WhichOneof("part") == "chunk"
        assert (read.scope, read.offset, read.crc32c) == (part.scope, part.offset, part.crc32c)
        assert (bytes(read.data), read.uncompressed_bytes) == (part.data, part.uncompressed_bytes)
        found.append(read)
    return found[0] if found else None


def _chunk_seeds() -> list[bytes]:
    messages = [bytes.fromhex(case["message_hex"]) for case in _cases("chunks")]
    whole = Component(Layout.of("shared", {"w": torch.zeros(1024)}))
    from fedmtl_core.wire.chunks import ChunkedBytes

    compressed = ChunkedBytes("shared", whole.buffer).message(0, "zstd")
    head = ChunkedBytes("task:sst2", torch.arange(40, dtype=torch.uint8)).message(0)
    return [_stream(0, messages), *(_stream(1, [one]) for one in messages), _stream(1, [compressed, head])]


def _stream(flags: int, messages: Sequence[bytes]) -> bytes:
    return bytes([flags]) + b"".join(struct.pack("<H", len(one)) + one for one in messages)


# Layouts.


def fuzz_layout(data: bytes) -> None:
    """A table of contents."""
    try:
        message = pb.Component.FromString(data)
    except DecodeError:
        return
    with _within(MIB + 500 * len(data)):
        try:
            part = component_from_proto(message)
        except RequestError as error:
            str(error)
            return
        layout = part.layout
        assert layout.num_bytes == message.num_bytes
        assert 0 <= part.start <= part.num_bytes
        assert all(spec.offset >= 0 and spec.end <= max(layout.num_bytes, spec.end) for spec in layout.tensors)
        layout.require_same(layout)
        again = component_from_proto(component_to_proto(part))
        assert again == part
        for other in _layouts():
            try:
                other.require_same(layout)
            except RequestError:
                assert layout != other
            else:
                assert layout == other


def _layout_seeds() -> list[bytes]:
    parts = [EncodedLayout(one, "float32", one.num_bytes) for one in _layouts()]
    return [component_to_proto(part).SerializeToString() for part in parts]


@cache
def _layouts() -> list[Layout]:
    """Of the golden vectors, and one of two tensors."""
    layouts = []
    for case in _cases("encodings"):
        tensors = {
            one["name"]: torch.empty(one["shape"], dtype=getattr(torch, one["dtype"])) for one in case["tensors"]
        }
        layouts.append(Layout.of("shared", tensors))
    return list(dict.fromkeys([*layouts, *_expected()]))


# Encodings.


def fuzz_encodings(data: bytes) -> None:
    """An encoding, a layout of up to four tensors, and encoded bytes; cut or filled up to the right size or not."""
    cursor = _Cursor(data)
    encoding: Encoding = ENCODINGS[cursor.byte() % len(ENCODINGS)]
    layout = _layout_from(cursor)
    encoded = cursor.rest()
    if cursor.byte() % 8:  # most of the time
        encoded = _fitted(layout, encoding, encoded)
    with _within(8 * (layout.num_bytes + 8 * layout.num_elements) + 100 * len(data) + MIB):
        try:
            require_encoded_size(layout, encoding, len(encoded))
        except RequestError:
            return
        buffer = torch.from_numpy(np.frombuffer(encoded, np.uint8).copy())
        before = buffer.clone()
        try:
            require_valid(layout, encoding, buffer)
        except RequestError as error:
            str(error)
            return
        into = Component(layout, torch.full((layout.num_bytes,), 0xFF, dtype=torch.uint8))
        component = decode(layout, encoding, buffer, into)
        assert torch.equal(buffer, before)
        component.require_finite()
        if encoding != "float32":
            assert torch.equal(component.buffer, decode(layout, encoding, buffer).buffer)
            again = encode(component, encoding)
            require_encoded_size(layout, encoding, len(again))
            require_valid(layout, encoding, again)


def _layout_from(cursor: _Cursor) -> Layout:
    tensors = {}
    for number in range(cursor.byte() % 5):
        shape = [cursor.byte() % 7 for _ in range(cursor.byte() % 4)]
        tensors[f"t{number}"] = torch.empty(shape, dtype=DTYPES[cursor.byte() % len(DTYPES)])
    return Layout.of("shared", tensors)


def _fitted(layout: Layout, encoding: Encoding, data: bytes) -> bytes:
    """Bytes of a size that the encoding may have."""
    if encoding == "topk":
        return data[: min(len(data) // 8, (layout.num_elements + 1) // 2) * 8]
    rows = sum(int(np.prod(one.shape[:-1], dtype=int)) for one in layout.tensors if one.num_elements)
    size = {"float32": layout.num_bytes, "int8": 4 * rows + layout.num_elements}.get(encoding, 2 * layout.num_elements)
    return data[:size].ljust(size, b"\0")


def _encoding_seeds() -> list[bytes]:
    seeds = []
    for case in _cases("encodings"):
        if len(case["tensors"]) > 4 or any(max(one["shape"], default=0) > 6 for one in case["tensors"]):
            continue
        described = [len(case["tensors"])]
        for one in case["tensors"]:
            described += [len(one["shape"]), *one["shape"], DTYPES.index(getattr(torch, one["dtype"]))]
        encoding = ENCODINGS.index(case["encoding"])
        seeds.append(bytes([encoding, *described]) + bytes.fromhex(case["encoded_hex"]))
    return seeds


# Headers of updates.


def fuzz_header(data: bytes) -> None:
    """An update's header, from a stream and from a file."""
    try:
        header = pb.UpdateHeader.FromString(data)
    except DecodeError:
        header = None
    with _within(2 * MIB + 1000 * len(data)):
        accepted = False
        if header is not None:
            try:
                update = update_from_header(header, _spec_of(header.task))
                parts = components_from_header(header, () if update.kind == "metrics" else _expected())
            except RequestError as error:
                str(error)
            else:
                accepted = True
                assert [part.layout for part in parts] == ([] if update.kind == "metrics" else _expected())
                assert 0 <= update.num_examples <= 2**53
                assert all(abs(value) <= 1e100 for value in update.received.values())
                assert all(-1 <= one.value <= 1 for one in _pooled_of(update) if one.value is not None)
                assert all(math.isfinite(number) for number in _numbers_of_variants(update))
                assert sum(part.num_bytes for part in parts) <= 2 * sum(one.num_bytes for one in _expected())
        try:
            update_from_bytes(data, lambda update: _expected(), _spec_of)
        except RequestError:
            assert not accepted  # whatever a stream lets in can be read again after a restart


def _spec_of(task: str) -> TaskSpec:
    """A classification or a regression, by the length of its name: what a client says of either is looked at."""
    return PRESETS["stsb" if len(task) % 2 else "qqp"]


def _numbers_of_variants(update: Update) -> Iterator[float]:
    """The figures of an update's variants, and of their sums as if two clients had sent it."""
    for one in update.variants:
        assert one.paired is None or one.paired.num_examples >= 1
        for paired in (one.paired, PairedLoss.pooled([one.paired] * 2)) if one.paired else ():
            yield from (paired.loss, paired.difference, paired.standard_error or 0.0)
        yield from one.evaluation.values()


def _pooled_of(update: Update) -> list[TaskMetric]:
    """A task's metrics of an update's sums, as if two clients had sent it."""
    evaluations = [update.received, update.trained, update.trained]
    names = ("accuracy", "f1", "matthews", "pearson")
    return [one for name, one in task_metrics(evaluations).items() if name in names]


@cache
def _expected() -> list[Layout]:
    return [
        Layout.of("shared", {"encoder.dense.weight": torch.empty(4, 4), "encoder.dense.bias": torch.empty(4)}),
        Layout.of("task:sst2", {"heads.sst2.weight": torch.empty(2, 4), "heads.sst2.bias": torch.empty(2)}),
    ]


def _header_seeds() -> list[bytes]:
    seeds = []
    for kind, encoding in (("PARAMETERS", "float32"), ("DELTA", "int8"), ("DELTA", "topk"), ("METRICS", None)):
        sizes = {"float32": (80, 40), "int8": (40, 22), "topk": (16, 8), None: (0, 0)}[encoding]
        header = pb.UpdateHeader(
            run_id="run",
            client_id="a",
            task="sst2",
            base_round=1,
            update_id="a-1",
            kind=pb.UpdateKind.Value(f"UPDATE_KIND_{kind}"),
            num_examples=7,
            num_eval_examples=3,
            received_metrics={"accuracy": 0.5},
            trained_metrics={"accuracy": 0.75},
            compression=pb.COMPRESSION_ZSTD,
            components=[
                component_to_proto(EncodedLayout(layout, encoding, size))
                for layout, size in zip(_expected(), sizes, strict=True)
                if encoding
            ],
        )
        seeds.append(header.SerializeToString())
    counts = pb.ClassCounts(correct=[1, 1], predicted=[2, 1], actual=[1, 2])
    header.received_details.CopyFrom(pb.EvaluationDetails(undefined=["f1"], class_counts=counts))
    seeds.append(header.SerializeToString())
    numbers = {"num_examples": 3, "loss": 0.5, "loss_difference": -0.25, "squared_deviations": 0.125}
    details = pb.EvaluationDetails(class_counts=counts)
    own = pb.VariantEvaluation(name="own", metrics={"accuracy": 1.0}, details=details, **numbers)
    header.variants.extend([own, pb.VariantEvaluation(name="bad", diverged=True)])
    seeds.append(header.SerializeToString())
    header.ClearField("variants")
    sums = pb.Moments(num_examples=3, sum_x=6, sum_y=7, sum_xx=14, sum_yy=21, sum_xy=17)
    header.received_details.CopyFrom(pb.EvaluationDetails(moments=sums))
    header.task = "score"
    seeds.append(header.SerializeToString())
    return seeds


# Configurations.


def fuzz_config(data: bytes) -> None:
    """A file, and behind a NUL overrides as `--set` takes them, one a line."""
    text, _, overrides = data.partition(b"\0")
    path = _scratch_file()
    path.write_bytes(text)
    lines = [line.decode("utf-8", "replace") for line in overrides.splitlines()]
    with _within(16 * MIB + 5000 * len(data)):
        try:
            loaded = config.load(path, lines)
        except ConfigError as error:
            shown = str(error)
        else:
            shown = ""
            path.write_text(config.dump(loaded), encoding="utf-8")
            assert config.load(path) == loaded
        assert len(shown) < 10_000 + 500 * len(data), f"a message of {len(shown)} characters"


@cache
def _scratch_file() -> Path:
    return Path(tempfile.mkdtemp(prefix="fedmtl-fuzz-")) / "config.yaml"


def _config_seeds() -> list[bytes]:
    """The sections of the configurations that are there, every key there is, and what YAML makes of odd texts."""
    seeds = []
    for path in sorted(set(CONFIGS.glob("*.yaml")) - set(CONFIGS.glob("experiment*.yaml"))):  # those have another form
        for name, section in config.load(path).model_dump(mode="json", exclude_none=True).items():
            seeds.append(yaml.safe_dump({name: section}, sort_keys=False).encode())
    keys = [one for one in config.reference() if "[]" not in one.key]
    for _, section in itertools.groupby(keys, key=lambda one: one.key.split(".")[0]):
        lines = (f"{one.key.replace('NAME', 'sst2')}={one.default or 'null'}" for one in section)
        seeds.append(b"\0" + "\n".join(lines).encode())
    odd = [
        "2024-13-45",
        "!!int ''",
        "!!timestamp x",
        "!!set x",
        "!!bool x",
        "0x" + "f" * 4000,
        "[" * 300,
        "&a [*a]",
        "1e400",
    ]
    seeds += [f"training: {{seed: {one}}}".encode() for one in odd]
    names = "abcdefgh"
    bomb = "".join(
        f"{after}: &{after} [{', '.join([f'*{before}'] * 9)}]\n" for before, after in itertools.pairwise(names)
    )
    return [*dict.fromkeys(seeds), f"a: &a [x]\n{bomb}training: {{seed: *h}}".encode(), b"<<: {a: 1}\n? [a]\n: 1"]


def _cases(name: str) -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = json.loads((VECTORS / f"{name}.json").read_text())["cases"]
    return cases


TARGETS = {
    "chunks": Target(fuzz_chunks, _chunk_seeds, 8192),
    "layout": Target(fuzz_layout, _layout_seeds, 4096),
    "encodings": Target(fuzz_encodings, _encoding_seeds, 1024),
    "header": Target(fuzz_header, _header_seeds, 4096),
    "config": Target(fuzz_config, _config_seeds, 4096),
}


def fuzz_any(data: bytes) -> None:
    """One of the targets, as the first byte says: all of them in one process, for a short time."""
    if data:
        list(TARGETS.values())[data[0] % len(TARGETS)].run(data[1:])


def _any_seeds() -> list[bytes]:
    return [bytes([number]) + data for number, target in enumerate(TARGETS.values()) for data in target.seeds()]


ANY = Target(fuzz_any, _any_seeds, 4096)
