"""Texts that are training rows and evaluation rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fedmtl_core.runtime.doctor import Finding, warn


def shared_texts(
    train: Sequence[tuple[str, ...]], validation: Sequence[tuple[str, ...]], check: str
) -> Iterator[Finding]:
    """Warn if evaluation rows have the texts of training rows."""
    known = set(train)
    count = sum(texts in known for texts in validation)
    if count:
        yield warn(
            check,
            f"{count:,} of {len(validation):,} evaluation rows have the texts of training rows",
            "remove them from one of the files: metrics are better on texts of training rows than on new texts",
        )
