"""Settings of tasks and of the data for each task."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from fedmtl_core import plugins
from fedmtl_core.config.section import (
    EVERY_PROGRAM,
    SERVER_AND_CLIENT,
    SERVER_AND_LAUNCHER,
    UINT32,
    Section,
    not_text,
    require_no_password,
    require_reference,
    shown,
)
from fedmtl_core.errors import ConfigError
from fedmtl_core.tasks.glue import PRESETS
from fedmtl_core.tasks.spec import BUILT_IN, METRICS, TaskSpec, Traits

MAX_LABELS = 10_000
_FILES = (
    "a TSV, CSV, JSON or Parquet file, a folder or a pattern of such files, or a URL. With `hub`, the name of a split"
)


def _column_name(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


ColumnName = Annotated[str, BeforeValidator(_column_name)]
"""A column's name, or its number in a file without a header."""


class DataConfig(Section):
    """Source of a task's rows: `builtin`, `hub` (with `subset`), `plugin`, or the files `train` and `validation`."""

    read_by = ("client",)

    builtin: str | None = Field(
        None,
        description="Generated task of the built-in toy language: `sst2`, `qqp` or `stsb`. If not given, the rows come "
        "from another source of this section.",
    )
    plugin: str | None = Field(
        None,
        description="Your own class that provides the rows, as `module:Name`. If not given, the rows come from another "
        "source of this section.",
    )
    options: dict[str, object] | None = Field(
        None, description="Keyword arguments for the class that `plugin` names. If not given, the class gets none."
    )
    hub: str | None = Field(
        None,
        description="Name of a data set on the Hugging Face Hub. If not given, the rows come from another source of "
        "this section; a GLUE task without the section `data` uses its own data set on the Hub.",
    )
    subset: str | None = Field(
        None, description="Subset (configuration) of the data set that `hub` names. If not given, its default subset."
    )
    train: str | None = Field(
        None,
        description=f"Training rows: {_FILES} (`train` if not given). Required without `builtin`, `plugin` and `hub`.",
    )
    validation: str | None = Field(
        None,
        description=f"Evaluation rows: {_FILES} (`validation` if not given, for mnli `validation_matched`). Required "
        "without `builtin`, `plugin` and `hub`.",
    )
    quoting: Literal["auto", "none", "minimal"] = Field(
        "auto",
        description="Quotes around the cells of a CSV or TSV file: `minimal`, `none` or `auto`. With `minimal` quotes "
        "are part of the format (doubled inside a quoted cell), with `none` part of the text. `auto` reads CSV as "
        "`minimal`; for TSV the content of the file decides, and the client logs the decision.",
    )
    header: Literal["first_row", "none"] = Field(
        "first_row",
        description="Column names of a CSV or TSV file: `first_row`, or `none` for a file without a header, where "
        "`text_columns` and `label_column` are column numbers from 1.",
    )
    drop_labels: list[str] = Field(
        [],
        description="Cells of the label column whose rows are left out, compared by value: `['-']` for rows of MNLI "
        "and SNLI without a label, `['']` for empty cells.",
    )
    out_of_range: Literal["refuse", "drop"] = Field(
        "refuse",
        description="Treatment of rows whose score is outside a regression's `value_range`: `refuse` ends with an "
        "error that names the first such row, `drop` leaves the rows out.",
    )

    @field_validator("drop_labels", mode="before")
    @classmethod
    def _texts(cls, labels: object) -> object:
        if not isinstance(labels, list):
            raise ValueError("expected a list, such as ['-']")
        for label in labels:
            if isinstance(label, bool) or not isinstance(label, (str, int, float)):
                raise ValueError(f"expected texts or numbers; put quotes around {str(label).lower()}")
        return [str(label) for label in labels]

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        if self.builtin and (self.hub or self.subset or self.train or self.validation):
            raise ValueError("`builtin` can't be combined with `hub`, `subset`, `train` or `validation`")
        if self.plugin and (self.builtin or self.hub or self.subset or self.train or self.validation):
            raise ValueError("`plugin` can't be combined with `builtin`, `hub`, `subset`, `train` or `validation`")
        if self.options and not self.plugin:
            raise ValueError("`options` needs `plugin`")
        if self.subset and not self.hub:
            raise ValueError("`subset` needs `hub`")
        if not (self.builtin or self.hub or self.plugin or (self.train and self.validation)):
            raise ValueError("expected `builtin`, `hub`, `plugin`, or both files `train` and `validation`")
        for key in ("quoting", "header"):
            if getattr(self, key) != type(self).model_fields[key].default and (self.builtin or self.hub or self.plugin):
                raise ValueError(f"`{key}` applies only to the files `train` and `validation`")
        return self

    @field_validator("train", "validation")
    @classmethod
    def _without_password(cls, address: str | None) -> str | None:
        return address and require_no_password(address, "~/.netrc, or in the credentials of the storage's own tools")

    @field_validator("plugin")
    @classmethod
    def _names_a_class(cls, plugin: str | None) -> str | None:
        return plugin and require_reference(plugin)

    def require_fit_for(self, spec: TaskSpec) -> None:
        """Check that the task has the label or the value range by which these settings drop rows.

        Raises:
            ConfigError: `drop_labels` is given and the rows have no label, or `out_of_range: drop` is given and the
                task has no `value_range`.
        """
        key = f"tasks.{spec.name}"
        if self.drop_labels and not spec.is_labelled:
            raise ConfigError(f"{key}.data.drop_labels: the rows of a {spec.kind} have no label")
        if self.out_of_range == "drop" and spec.value_range is None:
            raise ConfigError(f"{key}.data.out_of_range: drop needs {key}.value_range, such as [0, 5]")


class AuxiliaryConfig(Section):
    """An auxiliary task: it trains the encoder, and no quorum needs its clients. docs/auxiliary.md explains it."""

    read_by = ("server",)

    weight: float = Field(
        1.0,
        ge=0,
        le=1e6,
        description="Weight of an auxiliary task's example in the encoder's average, where other tasks' examples have "
        "1. The section `auxiliary` (or `auxiliary: true`) excludes the task from quorums and early stopping.",
    )
    decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Factor that multiplies an auxiliary task's weight after each round, at most 1.",
    )


class TaskConfig(Section):
    """One task. For a GLUE task (sst2, qqp, stsb, mrpc, cola, rte, qnli, mnli) every key is optional."""

    read_by = ("server",)

    type: Annotated[str | None, EVERY_PROGRAM] = Field(
        None,
        description="Task type: `classification`, `regression`, `masked_lm` (masked words of a text, no labels), or "
        "your own class as `module:Name`, the same for the server and the task's clients. Required unless NAME is a "
        "GLUE task.",
    )
    labels: Annotated[list[str] | int | None, SERVER_AND_CLIENT] = Field(
        None,
        description=f"Names of a classification's classes in the order of their numbers, or the number of classes from "
        f"2 to {MAX_LABELS}. Required for a classification unless NAME is a GLUE task.",
    )
    value_range: Annotated[tuple[float, float] | None, SERVER_AND_CLIENT] = Field(
        None,
        description="Lowest and highest value of a regression, such as `[0, 5]`; its head starts at the middle. If not "
        "given, the head starts at 0, and the first training steps move it to the scores.",
    )
    text_columns: Annotated[list[ColumnName] | None, SERVER_AND_CLIENT] = Field(
        None,
        description="Name of the text column, or of two columns that are read as a pair, as a list. Required unless "
        "NAME is a GLUE task.",
    )
    label_column: Annotated[ColumnName | None, SERVER_AND_CLIENT] = Field(
        None,
        description="Name of the column with the label or score; `masked_lm` has none. Required for other types unless "
        "NAME is a GLUE task.",
    )
    metrics: Annotated[list[str] | None, EVERY_PROGRAM] = Field(
        None,
        description=f"Metrics of the task, the main metric first: {', '.join(METRICS)}, or those "
        "of your own task type. The metric f1 needs two labels. If not given, the GLUE task's metrics or the type's "
        "first metric.",
    )
    min_clients: Annotated[int, SERVER_AND_LAUNCHER] = Field(
        1, ge=0, description="Number of the task's clients that a round needs (quorum); 0 if a round may have none."
    )
    deadline_s: float | None = Field(
        None, gt=0, description="Deadline of the task's clients in seconds. If not given, `rounds.deadline_s` applies."
    )
    local_epochs: int | None = Field(
        None,
        ge=1,
        le=UINT32,
        description="Number of passes over the training rows of the task's clients in one round. If not given, "
        "`training.local_epochs` applies.",
    )
    train_samples: Annotated[int | None, SERVER_AND_CLIENT] = Field(
        None,
        ge=1,
        lt=2**63,
        description="Largest number of rows that each client of the task trains on. If not given, all training rows.",
    )
    val_samples: Annotated[int | None, SERVER_AND_CLIENT] = Field(
        None,
        ge=1,
        lt=2**63,
        description="Largest number of rows that each client of the task evaluates on. If not given, all evaluation "
        "rows.",
    )
    max_examples: int | None = Field(
        None,
        ge=1,
        lt=2**53,
        description="Largest number of examples that an update of the task counts for, whatever number its client "
        "reports. If not given, only `robustness.max_client_share` limits the number.",
    )
    data: DataConfig | None = Field(
        None, description="Source of the rows. If not given, a GLUE task's rows come from the Hugging Face Hub."
    )
    auxiliary: AuxiliaryConfig | None = None

    @field_validator("auxiliary", mode="before")
    @classmethod
    def _yes_or_no(cls, auxiliary: object) -> object:
        if isinstance(auxiliary, bool):
            return {} if auxiliary else None
        if auxiliary is not None and not isinstance(auxiliary, (dict, AuxiliaryConfig)):
            raise ValueError("expected true, false, or a weight and a decay, such as {weight: 0.5, decay: 0.9}")
        return auxiliary

    @model_validator(mode="before")
    @classmethod
    def _needed_by_no_round(cls, values: object) -> object:
        """Set an auxiliary task's quorum to 0.

        Raises:
            ValueError: `min_clients` is given with another value.
        """
        if not isinstance(values, dict) or values.get("auxiliary") in (None, False):
            return values
        if values.get("min_clients", 0) != 0:
            raise ValueError(
                "`min_clients` can't be combined with `auxiliary`: no round needs an auxiliary task's clients, "
                f"got min_clients: {shown(values['min_clients'])}"
            )
        return values | {"min_clients": 0}

    @field_validator("type")
    @classmethod
    def _known_type(cls, type_: str | None) -> str | None:
        if type_ is not None and type_ not in BUILT_IN:
            return require_reference(type_, f"{', '.join(BUILT_IN)}, or your own class as {plugins.FORM}")
        return type_

    @field_validator("labels", mode="before")
    @classmethod
    def _named_labels(cls, labels: object) -> object:
        if isinstance(labels, list):
            for number, label in enumerate(labels):
                if not isinstance(label, str):
                    raise not_text("expected names", label, number)
        elif not isinstance(labels, int) or isinstance(labels, bool) or not 2 <= labels <= MAX_LABELS:
            raise ValueError(f"expected a list of names, or a number from 2 to {MAX_LABELS}")
        return labels

    def spec(self, name: str) -> TaskSpec:
        """The task that this section describes.

        Args:
            name: the task's name, the section's key under `tasks`.

        Raises:
            ConfigError: a required key is missing, or keys contradict one another.
        """
        preset = PRESETS.get(name)
        kind = self.type or (preset.type if preset else "classification")
        traits = _traits_of(name, kind)
        if preset is None:
            for key in ("type", "text_columns", *(["label_column"] if traits.is_labelled else [])):
                if getattr(self, key) is None:
                    raise ConfigError(
                        f"tasks.{name}.{key}: required, since {name!r} is not one of the GLUE tasks "
                        f"{', '.join(PRESETS)}"
                    )
        labels = tuple(map(str, range(self.labels))) if isinstance(self.labels, int) else self.labels
        same_kind = preset is not None and preset.type == kind and labels is None
        spec = TaskSpec(
            name=name,
            type=kind,
            text_columns=tuple(self.text_columns or (preset.text_columns if preset else ())),
            label_column=self.label_column or (preset.label_column if preset and traits.is_labelled else ""),
            labels=tuple(labels or (preset.labels if preset and same_kind else ())),
            value_range=self.value_range or (preset.value_range if preset and same_kind else None),
            metrics=tuple(self.metrics or (preset.metrics if preset and same_kind else ())),
            hub=preset.hub if preset else None,
            hub_splits=preset.hub_splits if preset else ("train", "validation"),
            traits=traits,
        )
        if self.data is not None:
            self.data.require_fit_for(spec)
        return spec


def _traits_of(task: str, type_: str) -> Traits:
    """The traits of a task's type. Only a plug-in's type requires importing its class and PyTorch."""
    if type_ in BUILT_IN:
        return BUILT_IN[type_]
    from fedmtl_core.tasks.registry import traits_of

    return traits_of(task, type_)
