"""The base that a client downloads: it takes the place of the model's own, and is never there twice."""

from types import SimpleNamespace

import pytest
import torch

from fedmtl_client.base import BaseSource, ModelBase
from fedmtl_core.errors import ChecksumError, UnavailableError
from fedmtl_core.model.modeling import TOY_MODEL, MultiTaskModel, load_encoder
from fedmtl_core.tasks.adapters import AdapterSettings
from fedmtl_core.wire.layout import Component, digest_of
from tests.support import specs

SERVER_SEED, CLIENT_SEED = 7, 8


def new_model(seed):
    encoder, size = load_encoder(TOY_MODEL, weights=False, seed=seed)
    adapters = AdapterSettings(rank=2, alpha=4.0, a_is_frozen=True, seed=3)
    return MultiTaskModel(encoder, specs("sst2"), hidden_size=size, adapters=adapters)


def servers_base():
    return Component.pack(
        "frozen", {name: one.detach() for name, one in new_model(SERVER_SEED).base()["frozen"].items()}
    )


def slice_of(component):
    return SimpleNamespace(task="sst2", base_digest=component.digest(), stacks={}, stack_base_digest=b"")


def test_a_downloaded_base_becomes_the_models_own_without_a_copy():
    model, base = new_model(CLIENT_SEED), servers_base()
    before = digest_of(model.base()["frozen"])
    ModelBase(model, is_own=False, source="x").require(slice_of(base), BaseSource(dict, lambda own: {"frozen": base}))
    assert digest_of(model.base()["frozen"]) == base.digest() != before
    start, end = base.buffer.data_ptr(), base.buffer.data_ptr() + base.buffer.nbytes
    assert all(start <= one.data_ptr() < end for one in model.base()["frozen"].values())
    assert not any(one.requires_grad for one in model.base()["frozen"].values())


def test_the_models_own_values_are_freed_before_the_download():
    model, base, sizes = new_model(CLIENT_SEED), servers_base(), []

    def download(own):
        sizes.extend(one.untyped_storage().nbytes() for one in model.base()["frozen"].values())
        return {"frozen": base}

    ModelBase(model, is_own=False, source="x").require(slice_of(base), BaseSource(dict, download))
    assert set(sizes) == {4}  # one element for each tensor


def test_a_failed_download_leaves_the_base_that_the_model_has():
    model, base = new_model(CLIENT_SEED), servers_base()
    other = Component(base.layout, base.buffer.clone())
    other.views()["encoder.embeddings.word_embeddings.weight"].add_(1)
    own = ModelBase(model, is_own=False, source="x")
    own.require(slice_of(base), BaseSource(dict, lambda own: {"frozen": base}))

    def fail(own):
        raise UnavailableError("gone")

    with pytest.raises(UnavailableError):
        own.require(slice_of(other), BaseSource(dict, fail))
    with pytest.raises(ChecksumError):
        own.require(slice_of(other), BaseSource(dict, lambda own: {"frozen": base}))
    own.require(slice_of(base), BaseSource(dict, fail))  # nothing is downloaded
    assert digest_of(model.base()["frozen"]) == base.digest()
    words = model.base()["frozen"]["encoder.embeddings.word_embeddings.weight"]
    assert torch.equal(words, new_model(SERVER_SEED).base()["frozen"]["encoder.embeddings.word_embeddings.weight"])
