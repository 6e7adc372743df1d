"""The components of the model that a client has in memory from round to round."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fedmtl_core.wire.layout import Component, Layout


class ComponentCache:
    """A client's components by scope, and which version each of them is.

    A component's memory is used again for its next version, a version that the cache has isn't sent again, and a
    difference between two versions is added to the earlier one.
    """

    def __init__(self) -> None:
        self._components: dict[str, Component] = {}
        self._digests: dict[str, bytes] = {}

    def versions(self) -> Mapping[str, bytes]:
        """By scope, the SHA-256 digests of the components that are whole and unchanged since they were received."""
        return self._digests

    def invalidate(self, scopes: Iterable[str] | None = None) -> None:
        """Keep the memory of components that are about to change, but report no version of them any more.

        Args:
            scopes: which components; unknown ones are ignored. None for all.
        """
        for scope in list(self._digests) if scopes is None else scopes:
            self._digests.pop(scope, None)

    def clear(self) -> None:
        """Remove all components."""
        self._components.clear()
        self._digests.clear()

    def component(self, layout: Layout) -> Component:
        """The component of a layout with the bytes that it has now; a new one, all zeros, if there is none."""
        component = self._components.get(layout.scope)
        if component is None or component.layout != layout:
            component = self._components[layout.scope] = Component(layout)
            self._digests.pop(layout.scope, None)
        return component

    def num_bytes(self, scope: str) -> int:
        """The size in bytes of a component that the cache has."""
        return self._components[scope].layout.num_bytes

    def is_version(self, scope: str, digest: bytes) -> bool:
        """Whether a component is whole, unchanged, and of the version with this digest."""
        return self._digests.get(scope) == digest

    def set_version(self, scope: str, digest: bytes) -> None:
        """Record that a component is whole, and of the version with this digest."""
        self._digests[scope] = digest
