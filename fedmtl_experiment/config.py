"""An experiment's configuration: methods, rows, encoders and seeds.

Settings of federations are FedMTL's own keys (`fedmtl_core.config`), as sections or as dotted names.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from fedmtl_core.config import TaskConfig, documents, sharing_keys
from fedmtl_core.config.documents import Document
from fedmtl_core.config.section import Section
from fedmtl_core.errors import ConfigError, InvalidRequestError
from fedmtl_core.identifiers import require_identifier

Base = Literal["local", "standard", "mtl", "central"]
"""How a method trains.

`local`: each client alone. `standard`: a single-task federation for each task. `mtl`: one federation of all tasks.
`central`: centralized training on the rows of all clients."""

Settings = dict[str, object]
"""FedMTL settings by key; keys are dotted names or sections."""

_RESERVED_KEYS = (
    *("tasks", "clients", "training.seed", "server.host", "server.port", "server.runs_dir"),
    *("store.url", "security", "early_stopping"),
)
"""Keys that the experiment sets itself, or whose change would make runs incomparable."""


class RowCounts(Section):
    """The number of a task's rows and clients in a setting."""

    train_rows: int | None = Field(
        None, ge=1, description="Training rows of all clients of the task together; all rows of the file if None"
    )
    clients: int = Field(2, ge=1, le=1000, description="Number of the task's clients")
    local_epochs: int | None = Field(None, ge=1, description="Replaces `training.local_epochs` for the task")


class Skew(Section):
    """Label skew between a task's clients; see `clients[].partition` in FedMTL's configuration."""

    dirichlet: float = Field(gt=0)


class Setting(Section):
    """A setting: tasks with their numbers of rows and clients."""

    tasks: dict[str, RowCounts] = Field(min_length=1)
    validation_rows: int = Field(
        400, ge=1, description="Rows of each task's training file that are set aside for validation"
    )
    report_rows: int | None = Field(
        None, ge=1, description="Rows of each task's evaluation file to report on; all if None"
    )
    held_back_rows: int | None = Field(
        None,
        ge=1,
        description="Rows of each task's training file to hold back, besides validation and training rows; none if "
        "None. Metrics on them are stored separately, to confirm a method that was chosen on the validation rows",
    )
    partition: Skew | None = None
    encoders: list[str] | None = Field(None, description="Encoders of the setting; all if None")
    methods: list[str] | None = Field(None, description="Methods of the setting; all if None")
    set: Settings = Field({})
    label: str | None = Field(None, description="The setting's name in tables and plots; its key if None")

    @field_validator("tasks", mode="before")
    @classmethod
    def _empty_tasks(cls, tasks: object) -> object:
        return {name: task or {} for name, task in tasks.items()} if isinstance(tasks, dict) else tasks


class Method(Section):
    """A method: its base, and the settings that differ from those of other methods."""

    base: Base
    only: list[str] | None = Field(
        None,
        min_length=1,
        description="Patterns of SETTING/ENCODER/SEED with * and ? for which the method runs; all if None",
    )
    auxiliary: dict[str, RowCounts] = Field(
        {}, description="Auxiliary tasks added to the setting's tasks; only for `base: mtl`"
    )
    several: bool = Field(
        False,
        description="Every client has rows of all tasks of the setting, and trains one task in each round; only for "
        "`base: mtl`",
    )
    set: Settings = Field({})
    label: str | None = Field(
        None,
        description="The method's name in tables and plots; if None, a name for the first method of each base, and the "
        "key for others",
    )

    @model_validator(mode="after")
    def _only_for_mtl(self) -> Method:
        for key in ("auxiliary", "several"):
            if getattr(self, key) and self.base != "mtl":
                raise ValueError(f"`{key}` is for `base: mtl`, got {self.base!r}")
        return self

    def is_for(self, place: Place) -> bool:
        """Whether the method runs in a place."""
        return self.only is None or any(fnmatchcase(place.id, pattern) for pattern in self.only)


class Place(NamedTuple):
    """A setting, an encoder and a seed, for which methods are compared."""

    setting: str
    encoder: str
    seed: int

    @property
    def id(self) -> str:
        """The place as `SETTING/ENCODER/SEED`."""
        return f"{self.setting}/{self.encoder}/{self.seed}"


class Experiment(Section):
    """The configuration file of an experiment."""

    results_dir: Path
    seeds: list[int] = Field(min_length=1)
    common: Settings = Field({}, description="FedMTL settings of every run")
    tasks: dict[str, TaskConfig] = Field(min_length=1, description="Tasks, as in FedMTL's configuration")
    encoders: dict[str, Settings] = Field(min_length=1)
    settings: dict[str, Setting] = Field(min_length=1)
    methods: dict[str, Method] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        for what, names in (("encoders", self.encoders), ("settings", self.settings), ("methods", self.methods)):
            for name in names:
                _identifier(name, f"{what}: a name")
        if any(seed < 0 for seed in self.seeds) or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds: expected different integers of at least 0, got {self.seeds}")
        for name, task in self.tasks.items():
            own = ("local_epochs", "train_samples", "val_samples", *(() if task.auxiliary else ("min_clients",)))
            taken = [key for key in own if key in task.model_fields_set]
            if taken:
                raise ValueError(f"tasks.{name}.{taken[0]}: the experiment sets it; see `settings`")
        for name, setting in self.settings.items():
            _require_known(f"settings.{name}.tasks", setting.tasks, self.tasks)
            _require_known(f"settings.{name}.encoders", setting.encoders or (), self.encoders)
            _require_known(f"settings.{name}.methods", setting.methods or (), self.methods)
            if auxiliary := [task for task in setting.tasks if self.tasks[task].auxiliary]:
                raise ValueError(f"settings.{name}.tasks: {auxiliary[0]!r} is auxiliary; a method may add it")
        for name, method in self.methods.items():
            self._require_method(name, method)
        for place, settings in self._all_settings():
            _require_not_reserved(place, settings)
        return self

    def _require_method(self, name: str, method: Method) -> None:
        places = list(self.places())
        for pattern in method.only or ():
            if not any(fnmatchcase(place.id, pattern) for place in places):
                expected = f"a pattern is for SETTING/ENCODER/SEED, such as {places[0].id}"
                raise ValueError(f"methods.{name}.only: {pattern!r} matches nothing; {expected}")
        for setting in dict.fromkeys(place.setting for place in places if method.several and method.is_for(place)):
            if len({one.clients for one in self.settings[setting].tasks.values()}) > 1:
                raise ValueError(f"methods.{name}.several: all tasks of {setting!r} need the same number of clients")
        _require_known(f"methods.{name}.auxiliary", method.auxiliary, self.tasks)
        if others := [task for task in method.auxiliary if not self.tasks[task].auxiliary]:
            raise ValueError(f"methods.{name}.auxiliary: tasks.{others[0]}.auxiliary is not set")

    def places(self) -> Iterator[Place]:
        """Yield each setting with each of its encoders and seeds, ordered by seed."""
        for seed in self.seeds:
            for name, setting in self.settings.items():
                for encoder in setting.encoders or self.encoders:
                    yield Place(name, encoder, seed)

    def _all_settings(self) -> Iterator[tuple[str, Settings]]:
        yield "common", self.common
        yield from ((f"encoders.{name}", settings) for name, settings in self.encoders.items())
        yield from ((f"settings.{name}.set", setting.set) for name, setting in self.settings.items())
        yield from ((f"methods.{name}.set", method.set) for name, method in self.methods.items())


def load(path: Path) -> Experiment:
    """Load an experiment's configuration file.

    Raises:
        ConfigError: the file can't be read, or a key or value is invalid. The message gives the key's path, the value
            and the allowed values.
    """
    document = documents.read(path)
    try:
        experiment = Experiment.model_validate(document.sections)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(error, path, document))) from None
    for name, task in experiment.tasks.items():
        task.spec(name)
    return experiment


def nested(settings: Mapping[str, object]) -> dict[str, object]:
    """Return settings as sections: `{"training.seed": 1}` becomes `{"training": {"seed": 1}}`."""
    return merged({}, settings)


def merged(first: Mapping[str, object], *others: Mapping[str, object]) -> dict[str, object]:
    """Merge settings into sections; for each key, the last value takes precedence.

    A word in place of a section, such as `sharing: auto`, replaces the section; later keys add to it.
    """
    result = {key: merged({}, value) if isinstance(value, Mapping) else value for key, value in first.items()}
    for other in others:
        for dotted, value in other.items():
            key, _, rest = str(dotted).partition(".")
            value = {rest: value} if rest else value
            if isinstance(value, Mapping):
                below = sharing_keys(result.get(key)) if key == "sharing" else result.get(key)
                result[key] = merged(below if isinstance(below, Mapping) else {}, value)
            else:
                result[key] = value
    return result


def flattened(settings: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Return sections as dotted keys."""
    flat: dict[str, object] = {}
    for key, value in settings.items():
        flat |= flattened(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _require_not_reserved(place: str, settings: Settings) -> None:
    for key in flattened(nested(settings)):
        if any(f"{key}.".startswith(f"{own}.") for own in _RESERVED_KEYS):
            raise ValueError(
                f"{place}: {key} can't be set here: the experiment sets it, or it would make runs incomparable"
            )


def _require_known(place: str, names: Iterable[str], known: Mapping[str, object]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{place}: expected some of {', '.join(known)}, got {name!r}")


def _identifier(value: str, what: str) -> str:
    try:
        return require_identifier(what, value)
    except InvalidRequestError as error:
        raise ValueError(str(error)) from None


def _explain(error: ValidationError, path: Path, document: Document) -> Iterator[str]:
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        found = documents.explained(problem, document, problem["loc"])
        text = found.text
        if problem["type"] == "extra_forbidden":
            known = _keys_beside(problem["loc"])
            close = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            text = f"unknown key; {hint}Allowed: {', '.join(known)}"
        yield f"{documents.place_text(str(path), found.line, key)}: {text}"


def _keys_beside(location: tuple[int | str, ...]) -> list[str]:
    """Return the names of the allowed keys in the section of a location."""
    kind: object = Experiment
    for part in location[:-1]:
        kind = _kind_below(kind, str(part))
    return list(kind.model_fields) if _is_section(kind) else []


def _kind_below(kind: object, part: str) -> object:
    """Return the type of a section's field, or of a mapping's values."""
    if not _is_section(kind):
        return typing.get_args(kind)[1]
    annotation: object = kind.model_fields[part].annotation
    return typing.get_args(annotation)[0] if typing.get_origin(annotation) is types.UnionType else annotation


def _is_section(kind: object) -> typing.TypeGuard[type[BaseModel]]:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
