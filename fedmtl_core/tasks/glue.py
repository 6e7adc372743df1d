"""The GLUE tasks (Wang et al. 2019, arXiv:1804.07461)."""

from __future__ import annotations

from fedmtl_core.tasks.spec import TaskSpec


def _glue(
    name: str,
    text_columns: tuple[str, ...],
    labels: tuple[str, ...],
    metrics: tuple[str, ...],
    validation: str,
    value_range: tuple[float, float] | None = None,
) -> TaskSpec:
    return TaskSpec(
        name=name,
        type="classification" if labels else "regression",
        text_columns=text_columns,
        label_column="label",
        labels=labels,
        metrics=metrics,
        hub=("nyu-mll/glue", name),
        hub_splits=("train", validation),
        value_range=value_range,
    )


_PAIR = ("sentence1", "sentence2")

PRESETS: dict[str, TaskSpec] = {
    spec.name: spec
    for spec in (
        _glue("sst2", ("sentence",), ("negative", "positive"), ("accuracy",), "validation"),
        _glue("qqp", ("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1"), "validation"),
        _glue("stsb", _PAIR, (), ("pearson", "spearman"), "validation", (0.0, 5.0)),
        _glue("mrpc", _PAIR, ("not_equivalent", "equivalent"), ("accuracy", "f1"), "validation"),
        _glue("cola", ("sentence",), ("unacceptable", "acceptable"), ("matthews", "accuracy"), "validation"),
        _glue("rte", _PAIR, ("entailment", "not_entailment"), ("accuracy",), "validation"),
        _glue("qnli", ("question", "sentence"), ("entailment", "not_entailment"), ("accuracy",), "validation"),
        _glue(
            "mnli",
            ("premise", "hypothesis"),
            ("entailment", "neutral", "contradiction"),
            ("accuracy",),
            "validation_matched",
        ),
    )
}
"""The GLUE tasks by name."""
