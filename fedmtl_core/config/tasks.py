"""Tasks, and where their rows are."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from fedmtl_core import plugins
from fedmtl_core.config.section import UINT32, Section, not_text, require_no_password, require_reference, shown
from fedmtl_core.errors import ConfigError
from fedmtl_core.tasks.glue import PRESETS
from fedmtl_core.tasks.spec import BUILT_IN, METRICS, TaskSpec, Traits

MAX_LABELS = 10_000


def _column_name(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


ColumnName = Annotated[str, BeforeValidator(_column_name)]
"""A column's name, or its number where there is no header."""


class DataConfig(Section):
    """Where a task's rows are: `builtin`, `hub` (with `subset`), `plugin`, or the files `train` and `validation`."""

    builtin: str | None = Field(None, description="A generated task of the toy language: `sst2`, `qqp` or `stsb`")
    plugin: str | None = Field(None, description="`module:Name`, a class of your own that gives the rows")
    options: dict[str, object] | None = Field(None, description="What that class is made with")
    hub: str | None = Field(None, description="A data set on the hub")
    subset: str | None = Field(None, description="Its configuration there")
    train: str | None = Field(
        None,
        description="Training rows: a TSV, CSV, JSON or Parquet file, a folder or a pattern of such files, or their "
        "URL; with `hub`, the split's name",
    )
    validation: str | None = Field(None, description="Evaluation rows, as for `train`")
    quoting: Literal["auto", "none", "minimal"] = Field(
        "auto",
        description="Quotes around the cells of a CSV or TSV file: `minimal` if they are part of the format (quotes "
        "inside are doubled), `none` if they are part of the text. `auto` is `minimal` for CSV; for TSV it is decided "
        "from the file and logged",
    )
    header: Literal["first_row", "none"] = Field(
        "first_row",
        description="Column names of a CSV or TSV file; with `none`, `text_columns` and `label_column` are column "
        "numbers, from 1",
    )
    drop_labels: list[str] = Field(
        [],
        description="Rows with one of these cells in the label column are left out: `['-']` for rows of MNLI and SNLI "
        "that have no label, `['']` for empty cells. Cells are compared by value",
    )
    out_of_range: Literal["refuse", "drop"] = Field(
        "refuse",
        description="What becomes of rows whose score is outside the regression's `value_range`: an error that names "
        "the first one, or they are left out",
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
            raise ValueError("`builtin` takes no other key that says where the rows are")
        if self.plugin and (self.builtin or self.hub or self.subset or self.train or self.validation):
            raise ValueError("`plugin` takes no other key but `options` that says where the rows are")
        if self.options and not self.plugin:
            raise ValueError("`options` needs `plugin`")
        if self.subset and not self.hub:
            raise ValueError("`subset` needs `hub`")
        if not (self.builtin or self.hub or self.plugin or (self.train and self.validation)):
            raise ValueError("expected `builtin`, or `hub`, or `plugin`, or both files `train` and `validation`")
        for key in ("quoting", "header"):
            if getattr(self, key) != type(self).model_fields[key].default and (self.builtin or self.hub or self.plugin):
                raise ValueError(f"`{key}` is for the files `train` and `validation`")
        return self

    @field_validator("train", "validation")
    @classmethod
    def _without_password(cls, address: str | None) -> str | None:
        return address and require_no_password(address, "~/.netrc, or where the storage's own tools look for it")

    @field_validator("plugin")
    @classmethod
    def _names_a_class(cls, plugin: str | None) -> str | None:
        return plugin and require_reference(plugin)

    def require_fit_for(self, spec: TaskSpec) -> None:
        """Check that a task has what the settings for leaving out rows go by.

        Raises:
            ConfigError: its rows have no label, or it has no range of values.
        """
        key = f"tasks.{spec.name}"
        if self.drop_labels and not spec.is_labelled:
            raise ConfigError(f"{key}.data.drop_labels: the rows of a {spec.kind} have no label")
        if self.out_of_range == "drop" and spec.value_range is None:
            raise ConfigError(f"{key}.data.out_of_range: drop needs {key}.value_range, such as [0, 5]")


class AuxiliaryConfig(Section):
    """A task that shapes the encoder and is waited for by nobody. docs/auxiliary.md says when that is wanted."""

    weight: float = Field(
        1.0,
        ge=0,
        le=1e6,
        description="With it the task is auxiliary (`auxiliary: true` for the defaults): it counts neither for quorum "
        "nor for early stopping, and in the encoder's average an example of it counts so many times",
    )
    decay: float = Field(1.0, gt=0, le=1, description="From round to round the weight is multiplied with it")


class TaskConfig(Section):
    """One task. For a GLUE task (sst2, qqp, stsb, mrpc, cola, rte, qnli, mnli) every key is optional."""

    type: str | None = Field(
        None,
        description="Kind of problem: `classification`, `regression`, `masked_lm` (words of a text, no labels), or "
        "`module:Name`, a class of your own, which the server and the task's clients need alike",
    )
    labels: list[str] | int | None = Field(None, description="Names of the classes by number, or how many there are")
    value_range: tuple[float, float] | None = Field(
        None,
        description="Of a regression: its lowest and highest value, such as `[0, 5]`. Its head begins in the middle; "
        "if not given, at 0, and the first steps of training go into getting there",
    )
    text_columns: list[ColumnName] | None = Field(
        None, description="One column of text, or two that are read as a pair"
    )
    label_column: ColumnName | None = Field(None, description="Column of the label; none for `masked_lm`")
    metrics: list[str] | None = Field(
        None, description=f"Of {', '.join(METRICS)}; the first is the main one. f1 is for two labels"
    )
    min_clients: int = Field(1, ge=0, description="Clients of this task that a round needs; 0 if it may have none")
    deadline_s: float | None = Field(None, gt=0, description="Its clients' deadline, instead of `rounds.deadline_s`")
    local_epochs: int | None = Field(
        None,
        ge=1,
        le=UINT32,
        description="Passes over its clients' rows in a round, instead of `training.local_epochs`",
    )
    train_samples: int | None = Field(None, ge=1, lt=2**63, description="Rows a client trains on, at most")
    val_samples: int | None = Field(None, ge=1, lt=2**63, description="Rows a client evaluates on, at most")
    max_examples: int | None = Field(
        None,
        ge=1,
        lt=2**53,
        description="Examples that an update of it counts as, at most, however many its client says; no limit but "
        "`robustness.max_client_share` if not given",
    )
    data: DataConfig | None = Field(None, description="Where the rows are; for a GLUE task the hub if not given")
    auxiliary: AuxiliaryConfig | None = None

    @field_validator("auxiliary", mode="before")
    @classmethod
    def _yes_or_no(cls, auxiliary: object) -> object:
        if isinstance(auxiliary, bool):
            return {} if auxiliary else None
        if auxiliary is not None and not isinstance(auxiliary, (dict, AuxiliaryConfig)):
            raise ValueError("expected true, false, or what it counts for, such as {weight: 0.5, decay: 0.9}")
        return auxiliary

    @model_validator(mode="before")
    @classmethod
    def _needed_by_no_round(cls, values: object) -> object:
        """An auxiliary task's quorum is 0, however it is given."""
        if not isinstance(values, dict) or values.get("auxiliary") in (None, False):
            return values
        if values.get("min_clients", 0) != 0:
            raise ValueError(
                "`min_clients` and `auxiliary` don't go together: no round needs an auxiliary task's clients, "
                f"got min_clients: {shown(values['min_clients'])}"
            )
        return values | {"min_clients": 0}

    @field_validator("type")
    @classmethod
    def _known_type(cls, type_: str | None) -> str | None:
        if type_ is not None and type_ not in BUILT_IN:
            return require_reference(type_, f"{', '.join(BUILT_IN)}, or a class of your own as {plugins.FORM}")
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
        """The task this section describes.

        Raises:
            ConfigError: something is missing or doesn't fit.
        """
        preset = PRESETS.get(name)
        kind = self.type or (preset.type if preset else "classification")
        traits = _traits_of(name, kind)
        if preset is None:
            for key in ("type", "text_columns", *(["label_column"] if traits.is_labelled else [])):
                if getattr(self, key) is None:
                    raise ConfigError(
                        f"tasks.{name}.{key}: needed, since {name!r} is not one of the GLUE tasks {', '.join(PRESETS)}"
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
    """The traits of a task's type. Only a plug-in's have its class and PyTorch imported."""
    if type_ in BUILT_IN:
        return BUILT_IN[type_]
    from fedmtl_core.tasks.registry import traits_of

    return traits_of(task, type_)
