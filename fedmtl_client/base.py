"""The base of a client's model with adapters: the encoder's parameters that a run leaves as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedmtl_client.slices import Slice
from fedmtl_core.errors import ChecksumError, ConfigError, MalformedStreamError
from fedmtl_core.identifiers import name_some
from fedmtl_core.logs import get_logger
from fedmtl_core.model.modeling import MultiTaskModel
from fedmtl_core.model.scopes import FROZEN
from fedmtl_core.runtime.allocator import give_back_freed_blocks
from fedmtl_core.wire.layout import Component, Layout, digest_of, digests_of


@dataclass(frozen=True)
class BaseSource:
    """Asks the server for its base."""

    digests: Callable[[], Mapping[str, bytes]]
    """Returns the SHA-256 of each tensor's bytes by name, without the tensors."""
    download: Callable[[], Component]
    """Returns the whole base."""


class ModelBase:
    """The base of one model, which must be the server's before the model is used.

    Args:
        model: the model. Its base is either the client's own, on CPU when this object is made, or has no meaning yet.
        is_own: whether the base was loaded from the client's own files.
        source: the name or folder of these files, for messages.
    """

    def __init__(self, model: MultiTaskModel, *, is_own: bool, source: str):
        self._model = model
        self._is_own = is_own
        self._source = source
        self._digest = digest_of(model.base()) if is_own else b""

    def require(self, slice_: Slice, server: BaseSource | None) -> None:
        """Make sure that the model has the base that a slice needs: compare the client's own, or download the server's.

        Args:
            slice_: a slice of a run with adapters.
            server: asks the server; None if the caller can't.

        Raises:
            ConfigError: the client's own base differs; the message names the first tensor that does.
            MalformedStreamError: the slice doesn't say which base it needs.
            LayoutMismatchError: the server's base doesn't fit the client's model.
            ChecksumError: the received base isn't the one that the slice needs.
        """
        if len(slice_.base_digest) == 0:
            raise MalformedStreamError("the plan has adapters, but the slice's header has no base_digest")
        if self._digest == slice_.base_digest:
            return
        if self._is_own or server is None:
            raise self._differs(server)
        base, self._digest = self._model.base(), b""
        _empty(base)
        received = server.download()
        Layout.of(FROZEN, base).require_same(received.layout)
        if received.digest() != slice_.base_digest:
            raise ChecksumError("the received base isn't the one that the slice's header announced")
        for name, view in received.views().items():
            base[name].data = view.to(base[name].device)
        self._digest = slice_.base_digest
        get_logger().info("base.received", task=slice_.task, bytes_received=received.layout.num_bytes)

    def _differs(self, server: BaseSource | None) -> ConfigError:
        theirs = server.digests() if server is not None else {}
        mine = digests_of(self._model.base())
        differing = [name for name in dict.fromkeys([*mine, *theirs]) if mine.get(name) != theirs.get(name)]
        where = f"{differing[0]} is the first of {len(differing)} tensors that differ" if differing and theirs else ""
        if missing := [name for name in theirs if name not in mine]:
            where = f"it lacks {name_some(missing, 2)}"
        return ConfigError(
            f"model.client_model: the weights of {self._source} aren't those that the server's adapters were made for"
            + (f": {where}" if where else "")
            + ". Name the same model as the server's model.server_model, or set client.fetch_base to true to download "
            "the weights from the server once"
        )


def _empty(base: Mapping[str, Tensor]) -> None:
    """Free the memory of tensors that get other values, so that a base is never in memory twice; keep their shapes."""
    for tensor in base.values():
        tensor.data = torch.zeros((), dtype=tensor.dtype, device=tensor.device).expand(tensor.shape)
    give_back_freed_blocks()
