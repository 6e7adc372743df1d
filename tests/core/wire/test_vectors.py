"""The golden bytes in `tests/vectors`, which implementations in other languages can be tested against too."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fedmtl.v1 import federation_pb2 as pb

from fedmtl_core.wire.chunks import Assembler, ChunkedBytes, read_message
from fedmtl_core.wire.encodings import decode, encode, require_encoded_size, require_valid
from fedmtl_core.wire.formats import DEFAULT_DENSITY, ENCODINGS
from fedmtl_core.wire.layout import Component, Layout, TensorSpec

VECTORS = Path(__file__).parents[2] / "vectors"
CASES = json.loads((VECTORS / "encodings.json").read_text())["cases"]


def tensor_of(text):
    return torch.from_numpy(np.frombuffer(bytes.fromhex(text), np.uint8).copy())


def hex_of(data):
    return data.numpy().tobytes().hex()


def layout_of(case):
    specs = (TensorSpec(t["name"], getattr(torch, t["dtype"]), tuple(t["shape"]), t["offset"]) for t in case["tensors"])
    return Layout("shared", tuple(specs))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_a_component_is_encoded_and_decoded_to_the_golden_bytes(case):
    layout, encoding = layout_of(case), case["encoding"]
    component = Component(layout, tensor_of(case["component_hex"]))
    assert hex_of(encode(component, encoding, case.get("density", DEFAULT_DENSITY))) == case["encoded_hex"]
    data = tensor_of(case["encoded_hex"])
    require_encoded_size(layout, encoding, len(data))
    require_valid(layout, encoding, data)
    assert hex_of(decode(layout, encoding, data).buffer) == case["decoded_hex"]


def test_golden_tensors_lie_where_a_layout_puts_them():
    for case in CASES:
        layout = layout_of(case)
        tensors = {spec.name: torch.zeros(spec.shape, dtype=spec.dtype) for spec in layout.tensors}
        assert layout == Layout.of("shared", tensors), case["name"]


def test_there_are_golden_bytes_of_every_encoding_and_names_are_used_once():
    assert {case["encoding"] for case in CASES} == set(ENCODINGS)
    assert len({case["name"] for case in CASES}) == len(CASES)


CHUNKS = json.loads((VECTORS / "chunks.json").read_text())["cases"]


@pytest.mark.parametrize("kind", [pb.GetSliceResponse, pb.PushUpdateRequest])
@pytest.mark.parametrize("case", CHUNKS, ids=lambda case: case["name"])
def test_a_golden_message_is_read_as_its_chunk(case, kind):
    chunk = read_message(bytes.fromhex(case["message_hex"]), kind)
    assert (chunk.scope, chunk.offset, chunk.uncompressed_bytes) == (
        case["scope"],
        case["offset"],
        case["uncompressed_bytes"],
    )
    assert (bytes(chunk.data).hex(), f"{chunk.crc32c:08x}") == (case["data_hex"], case["crc32c"])
    target = torch.zeros(case["offset"] + chunk.num_bytes, dtype=torch.uint8)
    assembler = Assembler({case["scope"]: target}, {case["scope"]: case["offset"]}, "zstd")
    assembler.add(chunk)
    assembler.finish()
    assert hex_of(target[case["offset"] :]) == case["encoded_hex"]


@pytest.mark.parametrize("case", [case for case in CHUNKS if not case["uncompressed_bytes"]], ids=lambda c: c["name"])
def test_a_chunk_is_written_as_its_golden_message(case):
    data = torch.cat([torch.zeros(case["offset"], dtype=torch.uint8), tensor_of(case["encoded_hex"])])
    assert ChunkedBytes(case["scope"], data).message(case["offset"]).hex() == case["message_hex"]
