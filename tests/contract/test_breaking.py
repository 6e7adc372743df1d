"""`make proto-breaking` on copies of the proto: what it lets pass, and what it doesn't."""

import re
import shutil
import subprocess

import pytest

from tests.buf import ROOT, buf

PROTO = "protos/fedmtl/v1/federation.proto"
RELEASED = "protos/released.binpb"


def breaking(folder, change):
    """What `buf breaking` says of a copy of the contract with one line changed."""
    shutil.copytree(ROOT / "protos", folder / "protos")
    shutil.copy(ROOT / "buf.yaml", folder)
    proto = folder / PROTO
    pattern, replacement = change
    text, count = re.subn(pattern, replacement, proto.read_text(), count=1)
    assert count == 1, "the proto no longer has what this test changes"
    proto.write_text(text)
    command = [*buf(), "breaking", "--against", RELEASED]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


def test_the_contract_as_it_is_breaks_nothing(tmp_path):
    done = breaking(tmp_path, ("", ""))
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_a_new_field_breaks_nothing(tmp_path):
    addition = (r"message StagedComponent \{", r"message StagedComponent {\n  bytes checksum = 900;")
    assert breaking(tmp_path, addition).returncode == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ((r"uint64 offset = 2;", "uint64 offset = 7;"), 'field "2" with name "offset" on message "Chunk"'),
        ((r"fixed32 crc32c = 4;", "uint32 crc32c = 4;"), 'Field "4" with name "crc32c" on message "Chunk"'),
        ((r"ENCODING_TOPK = 5;", "ENCODING_TOPK = 6;"), 'enum value "5" on enum "Encoding"'),
        ((r"rpc QueryUpload\(", "rpc AskUpload("), 'RPC "QueryUpload"'),
        ((r"\(stream PushUpdateRequest\)", "(PushUpdateRequest)"), 'RPC "PushUpdate"'),
    ],
    ids=["a field's number", "a field's type", "an enum's number", "a call's name", "a call's shape"],
)
def test_what_clients_rely_on_cannot_change(tmp_path, change, said):
    done = breaking(tmp_path, change)
    assert done.returncode == 100, done.stderr
    assert said.lower() in done.stdout.lower()


def test_what_it_compares_with_is_of_this_contract():
    """The image is read without buf here, so that an empty or foreign one can't pass everything."""
    from google.protobuf.descriptor_pb2 import FileDescriptorSet

    (file,) = FileDescriptorSet.FromString((ROOT / RELEASED).read_bytes()).file
    assert file.package == "fedmtl.v1"
    assert {method.name for method in file.service[0].method} >= {"GetSlice", "PushUpdate", "WatchRounds", "GetStatus"}
