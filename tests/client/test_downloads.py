"""What a client holds, and slices on their way there, against a server that errs."""

import pytest
import torch
from fedmtl.v1 import federation_pb2 as pb

from fedmtl_client.component_cache import ComponentCache
from fedmtl_client.downloads import Download
from fedmtl_core.errors import ChecksumError, InvalidRequestError, MalformedStreamError
from fedmtl_core.wire.chunks import ChunkedBytes, read_message
from fedmtl_core.wire.encoded import EncodedLayout
from fedmtl_core.wire.encodings import encode
from fedmtl_core.wire.layout import Component
from fedmtl_core.wire.messages import component_to_proto


def component(*values):
    return Component.pack("shared", {"w": torch.tensor(values)})


def header(source, encoding="float32", start=0, base=b"", digest=None, **fields):
    layout = EncodedLayout(source.layout, encoding, len(encode(source, encoding)), start)
    message = component_to_proto(layout, source.digest() if digest is None else digest, base)
    return pb.SliceHeader(components=[message], **fields)


def receive(download, source, encoding="float32", **fields):
    assembler = download.begin(header(source, encoding, **fields))
    chunks = ChunkedBytes("shared", encode(source, encoding))
    for offset in chunks.offsets():
        assembler.add(read_message(chunks.message(offset), pb.GetSliceResponse))
    return download.finish()


def test_a_component_keeps_its_memory_from_slice_to_slice():
    cache = ComponentCache()
    first = receive(Download(cache), component(1.0, 2.0))["shared"]
    second = receive(Download(cache), component(3.0, 4.0))["shared"]
    assert first is second
    assert second.views()["w"].tolist() == [3.0, 4.0]
    assert cache.versions() == {"shared": component(3.0, 4.0).digest()}


def test_what_is_about_to_change_is_no_version_any_more():
    cache = ComponentCache()
    receive(Download(cache), component(1.0, 2.0))
    assert len(Download(cache).held()) == 1
    cache.invalidate()
    assert Download(cache).held() == []


def test_a_slice_that_breaks_off_leaves_no_version_behind():
    """Its bytes lie where the last version's were."""
    cache = ComponentCache()
    receive(Download(cache), component(1.0, 2.0))
    download = Download(cache)
    download.begin(header(component(3.0, 4.0)))
    with pytest.raises(MalformedStreamError, match="shared: 0 of 8 bytes arrived"):
        download.finish()
    assert cache.versions() == {}


def test_a_difference_is_added_to_the_version_it_starts_from():
    cache = ComponentCache()
    base, step = component(1.0, 2.0), component(0.25, 0.0)
    receive(Download(cache), base)
    got = receive(Download(cache), step, "topk", base=base.digest(), digest=component(1.25, 2.0).digest())
    assert got["shared"].views()["w"].tolist() == [1.25, 2.0]
    assert cache.versions() == {"shared": component(1.25, 2.0).digest()}


def test_a_difference_that_leads_elsewhere_leaves_nothing_to_rely_on():
    cache = ComponentCache()
    receive(Download(cache), component(1.0, 2.0))
    download = Download(cache)
    with pytest.raises(ChecksumError, match="isn't the server's version"):
        receive(download, component(0.25, 0.0), "topk", base=component(1.0, 2.0).digest(), digest=bytes(32))
    assert download.held() == []


def test_a_server_that_contradicts_itself_is_not_followed():
    for message, text in [
        (header(component(1.0), start=4), "continues at byte 4, but this client has only 0 bytes"),
        (header(component(1.0), "topk", base=b"x" * 32), "a difference from a version that this client lacks"),
    ]:
        with pytest.raises(MalformedStreamError, match=text):
            Download(ComponentCache()).begin(message)
    with pytest.raises(InvalidRequestError, match="compression: expected one of none, zstd, got 7"):
        Download(ComponentCache()).begin(header(component(1.0), compression=7))
    unknown = header(component(1.0))
    unknown.components[0].encoding = 77
    with pytest.raises(InvalidRequestError, match="shared: encoding: expected one of"):
        Download(ComponentCache()).begin(unknown)
