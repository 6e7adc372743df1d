"""Publishes the variants that a round offers to clients.

A variant has the precision of the slice that a client gets, so that the comparison is fair. With an encoding that
rounds, both are rounded alike. Clients that download differences have a version of the model that lags behind it; their
variant is that version plus the variant's exact difference from the model.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

from fedmtl_core.errors import InvalidRequestError, NonFiniteError, StaleRoundError
from fedmtl_core.identifiers import quoted
from fedmtl_core.wire.chunks import MAX_CHUNK_BYTES
from fedmtl_core.wire.formats import DELTA_ENCODINGS, Encoding
from fedmtl_server.aggregation.variants import Variant
from fedmtl_server.transfer.slices import CachedVersion, PublishedComponent, PublishedModel, SlicePart


class PublishedVariant:
    """One variant of one task's slice. Its chunk messages are made once for all clients.

    Args:
        variant: the variant.
        model: the published components of the task's slice, by scope.
    """

    def __init__(self, variant: Variant, model: Mapping[str, PublishedComponent]):
        self.name = variant.name
        self.start_margin = variant.start_margin
        self._exact = [PublishedComponent(one, one.digest()) for one in variant.components]
        self._shifted: dict[Encoding, list[PublishedComponent]] = {}
        self._model = model
        self._lock = threading.Lock()

    def is_ready(self, encoding: Encoding) -> bool:
        """Return whether `parts` may be called with an encoding."""
        if encoding in DELTA_ENCODINGS:
            return encoding in self._shifted
        return all(one.is_ready(encoding) for one in self._exact)

    def prepare(self, encoding: Encoding) -> None:
        """Encode the variant for the clients that use an encoding. This is slow, and may run in any thread.

        The components of the slice must be ready for the encoding.
        """
        if encoding not in DELTA_ENCODINGS:
            for one in self._exact:
                one.prepare(encoding)
            return
        with self._lock:
            if encoding not in self._shifted:
                self._shifted[encoding] = [self._shift(one, encoding) for one in self._exact]

    def parts(
        self, encoding: Encoding, cached: Sequence[CachedVersion], chunk_bytes: int = MAX_CHUNK_BYTES
    ) -> list[SlicePart]:
        """Return the parts of the variant that a client needs, given the versions of any components that it has.

        Args:
            encoding: the encoding that the client asks for; `prepare` must have been called with it.
            cached: the versions that the client has.
            chunk_bytes: the size of the client's chunks in bytes.
        """
        if encoding in DELTA_ENCODINGS:
            return [one.part("float32", cached, chunk_bytes) for one in self._shifted[encoding]]
        return [one.part(encoding, cached, chunk_bytes) for one in self._exact]

    def _shift(self, published: PublishedComponent, encoding: Encoding) -> PublishedComponent:
        """Return a component as clients compare it whose version of the model lags behind the model."""
        versions = {
            name: (version, exact)
            for one in self._model.values()
            if one.version(encoding) is not one.component
            for (name, version), exact in zip(
                one.version(encoding).views().items(), one.component.views().values(), strict=True
            )
        }
        shifted = published.component.clone()
        views = {name: view for name, view in shifted.views().items() if name in versions}
        if not views:
            return published
        for name, view in views.items():
            version, exact = versions[name]
            view.sub_(exact).add_(version)
        try:
            shifted.require_finite()
        except NonFiniteError:  # the difference of two huge numbers can overflow
            return published
        return PublishedComponent(shifted, shifted.digest())


class OfferedVariants:
    """The variants that one round offers, by task.

    Args:
        published: the model that the round's clients download; None if no round is open.
        variants: the variants by task, in the order of the offer.
        scopes: the scopes of each task's slice.
    """

    def __init__(
        self,
        published: PublishedModel | None = None,
        variants: Mapping[str, Sequence[Variant]] = MappingProxyType({}),
        scopes: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ):
        self._published = published
        self._by_task: dict[str, dict[str, PublishedVariant]] = {}
        for task, offered in variants.items():
            model = {scope: published.components[scope] for scope in scopes[task]} if published else {}
            self._by_task[task] = {one.name: PublishedVariant(one, model) for one in offered}

    @property
    def names(self) -> Mapping[str, Sequence[str]]:
        """The names of the variants by task."""
        return {task: list(variants) for task, variants in self._by_task.items()}

    def for_task(self, task: str, published: PublishedModel) -> Mapping[str, PublishedVariant]:
        """Return a task's variants of a published model, by name; empty if they are of another model."""
        return self._by_task.get(task, {}) if published is self._published else {}


def require_offered(task: str, name: str, names: Collection[str]) -> None:
    """Check that a round offers a variant.

    Args:
        task: the task.
        name: the name of the variant.
        names: the names of the task's variants in the round in progress; empty if no round is open.

    Raises:
        StaleRoundError: no round is open that offers variants for the task.
        InvalidRequestError: the round in progress doesn't offer this one.
    """
    if not names:
        raise StaleRoundError(f"no round is open that offers variants for the task {task}, got {quoted(name)}")
    if name not in names:
        raise InvalidRequestError(f"variant: expected one of {', '.join(names)}, got {quoted(name)}", field="variant")


NO_VARIANTS = OfferedVariants()
"""The offer while no round is open."""
