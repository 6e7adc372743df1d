"""The model components that a client keeps in memory between rounds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fedmtl_core.wire.layout import Component, Layout


@dataclass(frozen=True)
class OwnVersion:
    """A version of a component that a client has outside any cache."""

    digest: bytes
    num_bytes: int


class ComponentCache:
    """A client's components and their versions, by scope.

    The next version of a component reuses its memory. A version in the cache isn't downloaded again, and a difference
    between two versions is added to the earlier one.
    """

    def __init__(self) -> None:
        self._components: dict[str, Component] = {}
        self._digests: dict[str, bytes] = {}

    def versions(self) -> Mapping[str, bytes]:
        """Return the SHA-256 digests, by scope, of the components that are complete and unchanged since receipt."""
        return self._digests

    def invalidate(self, scopes: Iterable[str] | None = None) -> None:
        """Keep the memory of components that are about to change, but report their versions no longer.

        Args:
            scopes: the components' scopes; unknown scopes are ignored. None for all components.
        """
        for scope in list(self._digests) if scopes is None else scopes:
            self._digests.pop(scope, None)

    def clear(self) -> None:
        """Remove all components."""
        self._components.clear()
        self._digests.clear()

    def component(self, layout: Layout) -> Component:
        """Return the component of a layout with its present bytes; a new component of zeros if the cache has none."""
        component = self._components.get(layout.scope)
        if component is None or component.layout != layout:
            component = self._components[layout.scope] = Component(layout)
            self._digests.pop(layout.scope, None)
        return component

    def num_bytes(self, scope: str) -> int:
        """Return the size in bytes of a cached component."""
        return self._components[scope].layout.num_bytes

    def is_version(self, scope: str, digest: bytes) -> bool:
        """Whether a component is complete, unchanged, and of the version with this digest."""
        return self._digests.get(scope) == digest

    def find(self, digest: bytes) -> Component | None:
        """Return a component of the version with this digest, whatever its scope; None if the cache has none."""
        scope = next((scope for scope, version in self._digests.items() if version == digest), None)
        return None if scope is None else self._components[scope]

    def set_version(self, scope: str, digest: bytes) -> None:
        """Record that a component is complete, and of the version with this digest."""
        self._digests[scope] = digest
