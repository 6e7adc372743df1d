"""The base of a client's model with adapters: the encoder's parameters that clients don't train."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedmtl_client.component_cache import OwnVersion
from fedmtl_client.slices import Slice
from fedmtl_core.errors import ChecksumError, ConfigError, MalformedStreamError
from fedmtl_core.identifiers import name_some
from fedmtl_core.logs import get_logger
from fedmtl_core.model.merging import merge
from fedmtl_core.model.modeling import MultiTaskModel
from fedmtl_core.model.scopes import FROZEN, MERGED
from fedmtl_core.runtime.allocator import give_back_freed_blocks
from fedmtl_core.wire.layout import Component, Layout, digest_of, digests_of, joint_digest, require_scopes


@dataclass(frozen=True)
class BaseSource:
    """Asks the server for its base."""

    digests: Callable[[], Mapping[str, bytes]]
    """Returns the SHA-256 of each tensor's bytes by name, without the tensors."""
    download: Callable[[Mapping[str, OwnVersion]], Mapping[str, Component]]
    """Returns the components of the base by scope, without those of the given versions."""


class ModelBase:
    """The base of one model, which must be the server's before the model is used.

    Args:
        model: the model. Its base is either the client's own, on CPU when this object is made, or has no meaning yet.
        is_own: whether the base was loaded from the client's own files.
        source: the name or folder of these files, for messages.
    """

    def __init__(self, model: MultiTaskModel, *, is_own: bool, source: str):
        self._model = model
        self._is_own = is_own  # until it becomes the server's
        self._source = source
        self._digests = {scope: digest_of(tensors) for scope, tensors in model.base().items()} if is_own else {}

    def require(self, slice_: Slice, server: BaseSource | None) -> None:
        """Make sure that the model has the base that a slice needs.

        If the server has added adapters to the base that the model has, they are added here too. A client whose base
        was never the server's compares its own or downloads the server's. A client that missed a change of the base
        downloads the component that changes.

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
        if self._is_needed(slice_):
            return
        if slice_.stacks and self._digests.get(MERGED) == slice_.stack_base_digest:
            self._add(slice_)
            if self._is_needed(slice_):
                return
            get_logger().warning("base.differs", task=slice_.task, reason="the sum isn't the server's; downloading it")
        if server is None or (self._is_own and self._is_other(slice_, server)):
            raise self._differs(server)
        self._download(slice_, server)

    def _is_needed(self, slice_: Slice) -> bool:
        """Return whether the model has the base that a slice needs."""
        digests = [self._digests.get(scope, b"") for scope in self._model.base()]
        return all(digests) and joint_digest(digests) == slice_.base_digest

    def _add(self, slice_: Slice) -> None:
        """Add a slice's stacks to the base."""
        weights = self._model.base()[MERGED]
        self._is_own = False
        self._digests.pop(MERGED)
        for stacked in slice_.stacks.values():
            merge(weights, stacked)
        self._digests[MERGED] = digest_of(weights)

    def _is_other(self, slice_: Slice, server: BaseSource) -> bool:
        """Return whether the client's own files have another encoder than the server.

        Once the server has added adapters, only the component that never changes can be compared.
        """
        if not slice_.stacks:
            return True
        theirs = server.digests()
        return any(theirs.get(name) != digest for name, digest in digests_of(self._model.base()[FROZEN]).items())

    def _download(self, slice_: Slice, server: BaseSource) -> None:
        """Download the components of the base that differ from the server's, or that the client never had."""
        base = self._model.base()
        layouts = {scope: Layout.of(scope, tensors) for scope, tensors in base.items()}
        own = {scope: OwnVersion(digest, layouts[scope].num_bytes) for scope, digest in self._digests.items()}
        if not own:
            _empty(tensor for tensors in base.values() for tensor in tensors.values())
        received = server.download(own)
        require_scopes([scope for scope in base if scope in received or scope not in own], received)
        for scope, component in received.items():
            layouts[scope].require_same(component.layout)
        digests = {**self._digests, **{scope: component.digest() for scope, component in received.items()}}
        if joint_digest(digests[scope] for scope in base) != slice_.base_digest:
            raise ChecksumError("the received base isn't the one that the slice's header announced")
        for scope, component in received.items():
            for name, view in component.views().items():
                base[scope][name].data = view.to(base[scope][name].device)
        self._digests, self._is_own = digests, False
        num_bytes = sum(component.layout.num_bytes for component in received.values())
        get_logger().info("base.received", task=slice_.task, scopes=list(received), bytes_received=num_bytes)

    def _differs(self, server: BaseSource | None) -> ConfigError:
        theirs = server.digests() if server is not None else {}
        mine = {name: digest for tensors in self._model.base().values() for name, digest in digests_of(tensors).items()}
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


def _empty(tensors: Iterable[Tensor]) -> None:
    """Free the memory of tensors that get other values, so that a base is never in memory twice; keep their shapes."""
    for tensor in tensors:
        tensor.data = torch.zeros((), dtype=tensor.dtype, device=tensor.device).expand(tensor.shape)
    give_back_freed_blocks()
