"""Rows by column, as files, the hub and plug-ins give them, before anything is checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Table:
    """Rows as columns, as a source gave them."""

    columns: Mapping[str, Sequence[Any]]
    """The values by column name; all columns have one length."""
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By column name, the class names that the source declares: the column's values are indices into them, or lists of
    indices. Most columns have none."""

    @property
    def num_rows(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    @classmethod
    def of(cls, dataset: Any) -> Table:
        """A `datasets.Dataset` as a table, with the names of its `ClassLabel` columns."""
        features = dataset.features
        declared = {name: _declared_names(features[name]) for name in dataset.column_names}
        return cls(
            columns={name: list(dataset[name]) for name in dataset.column_names},
            class_names={name: names for name, names in declared.items() if names},
        )


def class_names_in(features: Any) -> dict[str, tuple[str, ...]]:
    """By column name, the class names that `datasets.Features` declare; empty for anything else."""
    if not isinstance(features, Mapping):
        return {}
    declared = {name: _declared_names(feature) for name, feature in features.items()}
    return {name: names for name, names in declared.items() if names}


def _declared_names(feature: Any) -> tuple[str, ...]:
    """The class names of a `datasets` feature, or of the items of a list; empty if it has none."""
    while (inner := getattr(feature, "feature", None)) is not None and not isinstance(inner, dict):
        feature = inner
    return tuple(getattr(feature, "names", None) or ())
