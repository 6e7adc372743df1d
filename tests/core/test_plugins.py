"""Plug-ins: found, checked, and blamed with the setting that names them."""

from __future__ import annotations

import itertools
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from fedmtl.v1 import federation_pb2 as pb
from torch import nn

from fedmtl_client.client import Client
from fedmtl_client.data import RowSource, load_task_data
from fedmtl_client.trainer import Trainer
from fedmtl_core import config, plugins
from fedmtl_core.config import Config, DataConfig
from fedmtl_core.errors import ConfigError, DataError, InvalidRequestError
from fedmtl_core.tasks.glue import PRESETS
from fedmtl_core.tasks.kinds import EncoderInfo, TaskKind, measure, new_head
from fedmtl_core.tasks.registry import kind_of
from fedmtl_core.tasks.spec import TaskSpec
from fedmtl_core.wire.messages import plan_from_proto, plan_to_proto

_numbers = itertools.count()

KIND = """
import torch
from torch import nn
from fedmtl_core.tasks.kinds import TaskKind

class Count(TaskKind):
    metrics = ("closeness",)
    has_labels = False
    def head(self, encoder, dropout): return nn.Linear(encoder.hidden_size, 1)
    def loss(self, outputs, targets, reduction="mean"): return nn.functional.poisson_nll_loss(
        outputs[:, 0], targets, reduction=reduction)
    def measure(self, outputs, targets): return {"closeness": -abs(outputs[:, 0] - targets).mean()}
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module into the working folder; returns its name, a new one each time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])

    def write(text: str) -> str:
        name = f"written_{next(_numbers)}"
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


def rows_of(reference: str, **options: Any):
    return load_task_data(PRESETS["sst2"], DataConfig(plugin=reference, options=options))


def task_of(reference: str, **fields: Any) -> Config:
    section = {"type": reference, "text_columns": ["a"], "label_column": "b", **fields}
    return config.resolve({"tasks": {"visits": section}})


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        (
            None,
            "Rows",
            r"^key: there is no module 'no_such_module', neither in the working directory \(.*\) nor inst",
        ),
        (
            "import no_such_library",
            "Rows",
            r"can't be imported: ModuleNotFoundError: .*'no_such_library' .*line 1\)",
        ),
        ("x = 1 +", "Rows", r"can't be imported: SyntaxError: invalid syntax \(.*written_\d+\.py, line 1\)"),
        ("\nraise KeyError('a')", "Rows", r"can't be imported: KeyError: 'a' \(.*written_\d+\.py, line 2\)"),
        ("import sys\nsys.exit(3)", "Rows", r"can't be imported: SystemExit: 3 \(.*written_\d+\.py, line 2\)"),
        ("", "Rows", r"has no 'Rows'; expected a subclass of fedmtl_client\.data\.RowSource of that name"),
        (
            "from fedmtl_client.data import RowSource\nclass Rows(RowSource): ...",
            "Row",
            "has no 'Row'; it has Rows",
        ),
        ("Rows = 3", "Rows", r"expected a subclass of fedmtl_client\.data\.RowSource; .*:Rows is of the type int"),
        ("class Rows: ...", "Rows", r"expected a subclass of .*; .*:Rows is the class Rows"),
        (
            "from fedmtl_client.data import RowSource\nclass Rows(RowSource):\n  def train(self): ...",
            "Rows",
            "Rows lacks the methods validation of RowSource",
        ),
    ],
)
def test_what_is_no_plugin_is_told_with_the_setting_and_what_was_expected(module, text, name, message):
    where = "no_such_module" if text is None else module(text)
    with pytest.raises(ConfigError, match=message) as caught:
        plugins.load("key", f"{where}:{name}", RowSource)
    assert str(caught.value).startswith("key: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "tasks: {sst2: {type: grading}}",
            r"tasks\.sst2\.type: expected classification, regression, masked_lm, or your own class .*gr",
        ),
        ("tasks: {sst2: {type: 'a b:C'}}", r"tasks\.sst2\.type: expected classification"),
        (
            "tasks: {sst2: {data: {plugin: rows}}}",
            r"tasks\.sst2\.data\.plugin: expected your own class as mod",
        ),
        ("training: {trainer: proximal.py}", r"training\.trainer: expected your own class as module:Name"),
        ("tasks: {sst2: {data: {plugin: 'a:B', builtin: sst2}}}", "`plugin` can't be combined with `builtin`"),
        (
            "tasks: {sst2: {data: {builtin: sst2, options: {a: 1}}}}",
            "`options` needs `plugin`|`builtin` takes no",
        ),
        ("tasks: {sst2: {type: 'no_such_module:A', labels: 2}}", r"tasks\.sst2\.type: there is no module 'no_such_mod"),
    ],
)
def test_a_setting_that_names_no_class_is_refused(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        config.load(tmp_path / "c.yaml")


ROWS = "from fedmtl_client.data import RowSource\nclass Rows(RowSource):\n"
GIVES = "  def train(self): return {}\n  def validation(self): return self.train()\n"


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ("[]", DataError, r"^tasks\.sst2\.data\.plugin: written_\d+:Rows: train\(\) returned no rows"),
        ("[3]", DataError, r"train\(\): row 1: expected a mapping of columns, got a int"),
        (
            "[{'sentence': 'a', 'label': 1}, {'label': 1}]",
            DataError,
            r"train\(\): row 2 has no 'sentence', which row 1 ",
        ),
        (
            "[{'text': 'a', 'label': 1}]",
            DataError,
            r"sst2, train rows: there is no column 'sentence'; the columns are",
        ),
        (
            "[{'sentence': 'a', 'label': 7}]",
            DataError,
            r"sst2, train rows: row 1: label: expected one of negative",
        ),
        ("1 / 0", ConfigError, r"written_\d+:Rows raised ZeroDivisionError: division by zero \(.*\.py, line 3\)"),
    ],
)
def test_rows_that_are_none_are_told_with_their_place(module, value, error, message):
    with pytest.raises(error, match=message):
        rows_of(module(ROWS + GIVES.format(value)) + ":Rows")


def test_options_reach_the_class_and_unknown_ones_are_told(module):
    name = module(
        ROWS + "  def __init__(self, spec, *, word): super().__init__(spec); self.word = word\n"
        "  def train(self): yield {'sentence': self.word, 'label': 'positive', 'more': None}\n"
        "  def validation(self): return list(self.train())\n"
    )
    data = rows_of(f"{name}:Rows", word="fine")
    assert (data.train.texts, data.train.labels) == ([("fine",)], [1])
    with pytest.raises(ConfigError, match=r"raised TypeError: .*unexpected keyword argument 'wrod'"):
        rows_of(f"{name}:Rows", wrod="fine")
    with pytest.raises(ConfigError, match="Rows has no option 'word'"):
        rows_of(module(ROWS + GIVES.format("[]")) + ":Rows", word="fine")


def test_a_kind_of_ones_own_is_the_tasks_in_every_place(module):
    loaded = task_of(f"{module(KIND)}:Count")
    spec = loaded.tasks["visits"].spec("visits")
    assert (spec.kind, spec.metrics, spec.main_metric) == ("Count", ("closeness",), "closeness")
    assert isinstance(new_head(kind_of(spec), EncoderInfo(4), 0.0), nn.Linear)
    assert measure(kind_of(spec), torch.tensor([[3.0], [5.0]]).numpy(), torch.tensor([4.0, 5.0]).numpy()) == {
        "closeness": -0.5
    }
    sent = plan_to_proto(loaded.plan("visits"))
    assert (sent.task_type, sent.task_kind) == (pb.TASK_TYPE_CUSTOM, "Count")
    assert plan_from_proto(sent).task_type == "Count"
    assert config.resolve(config.Config.model_validate(loaded.model_dump(mode="json", exclude_none=True))) == loaded


def test_a_kind_that_contradicts_itself_is_told(module):
    kind = module(KIND)
    with pytest.raises(ConfigError, match=r"tasks\.visits: a Count task has no labels, got \['a', 'b'\]"):
        task_of(f"{kind}:Count", labels=["a", "b"])
    with pytest.raises(ConfigError, match="metric 'accuracy' doesn't fit a Count task; expected one of closeness"):
        task_of(f"{kind}:Count", metrics=["accuracy"])
    with pytest.raises(ConfigError, match="expected `name` to differ from the built-in types, got 'regression'"):
        task_of(module(KIND.replace("metrics =", "name = 'regression'\n    metrics =")) + ":Count")
    with pytest.raises(ConfigError, match="expected `metrics` to be a tuple of names, got 'closeness'"):
        task_of(module(KIND.replace('("closeness",)', '"closeness"')) + ":Count")
    with pytest.raises(ConfigError, match="expected `sees` to be 'text' or 'tokens', got 'words'"):
        task_of(module(KIND.replace("metrics =", "sees = 'words'\n    metrics =")) + ":Count")
    with pytest.raises(ConfigError, match="name: expected 1 to 64 letters"):
        task_of(module(KIND.replace("metrics =", "name = 'a b'\n    metrics =")) + ":Count")


def test_a_kind_whose_methods_give_nothing_of_use_is_told(module):
    spec = task_of(
        module(KIND.replace("return nn.Linear(encoder.hidden_size, 1)", "return None")) + ":Count"
    ).task_specs()[0]
    with pytest.raises(
        ConfigError, match=r"tasks\.visits\.type: .*: head\(\) must return a torch\.nn\.Module .* got None"
    ):
        new_head(kind_of(spec), EncoderInfo(4), 0.0)
    for given, told in (
        ('"closeness": float("inf")', "a finite number or NaN for 'closeness', got inf"),
        ('"nearness": 1.0', "a finite number or NaN for 'closeness', got nothing"),
        ('"closeness": 0.5', "a number from -10 to 0 for 'closeness', got 0.5"),
    ):
        with pytest.raises(ConfigError, match=rf"measure\(\) must return {told}"):
            measure(kind_of(task_that_gives(module, given)), torch.zeros(1, 1).numpy(), torch.zeros(1).numpy())


def task_that_gives(module, measured: str) -> TaskSpec:
    """A task whose kind measures something, and bounds it."""
    text = KIND.replace('"closeness": -abs(outputs[:, 0] - targets).mean()', measured)
    text = text.replace("has_labels", 'metric_bounds = {"closeness": (-10, 0)}\n    has_labels')
    return task_of(module(text) + ":Count").task_specs()[0]


@pytest.mark.parametrize(
    ("given", "reason"),
    [("float('nan')", "it is nan"), ("__import__('fedmtl_core').tasks.evaluation.Undefined('no visits')", "no visits")],
)
def test_a_kind_may_say_that_a_metric_is_undefined_and_why(module, given, reason):
    spec = task_that_gives(module, f'"closeness": {given}')
    measured = measure(kind_of(spec), torch.zeros(1, 1).numpy(), torch.zeros(1).numpy())
    assert (dict(measured), measured.undefined) == ({}, {"closeness": reason})


@pytest.mark.parametrize("bounds", ['{"closeness": (0,)}', '{"closeness": (1, 0)}', '{"closeness": (0, "a")}', "3"])
def test_bounds_of_metrics_that_are_none_are_told(module, bounds):
    text = KIND.replace("has_labels", f"metric_bounds = {bounds}\n    has_labels")
    with pytest.raises(ConfigError, match="expected `metric_bounds` to map metric names to"):
        task_of(module(text) + ":Count")


def test_a_kind_derived_from_a_built_in_one_sends_no_sums_as_its_metrics_may_be_others(module):
    text = """
from fedmtl_core.tasks.kinds import Classification

class Macro(Classification):
    name = "macro"
    def measure(self, outputs, targets): return {"f1": 0.25}
"""
    spec = task_of(module(text) + ":Macro", labels=["a", "b", "c"], metrics=["f1"]).task_specs()[0]
    measured = measure(kind_of(spec), torch.eye(3).numpy(), torch.arange(3).numpy())
    assert (dict(measured), measured.sums) == ({"f1": 0.25}, None)


def test_a_server_that_names_a_kind_badly_is_refused():
    message = plan_to_proto(Config.model_validate({"tasks": {"sst2": {}}}).plan("sst2"))
    message.task_type = pb.TASK_TYPE_CUSTOM
    with pytest.raises(InvalidRequestError, match=r"plan\.task_kind: expected 1 to 64 letters"):
        plan_from_proto(message)


def test_a_trainer_of_ones_own_is_made_with_its_options(module):
    name = module(
        "from fedmtl_client.trainer import Trainer\nclass Mine(Trainer):\n"
        "  def __init__(self, spec, plan, device, *, mu): super().__init__(spec, plan, device); self.mu = mu\n"
    )
    settings = {"trainer": f"{name}:Mine", "trainer_options": {"mu": 3}}
    given = {"training": settings, "tasks": {"sst2": {"data": {"builtin": "sst2"}}}}
    plan = config.resolve(given).plan("sst2")
    made = Client(given, task="sst2")._settings().trainer(PRESETS["sst2"], plan, torch.device("cpu"))
    assert isinstance(made, Trainer)
    assert made.mu == 3
    settings["trainer_options"] = {"nu": 3}
    with pytest.raises(ConfigError, match=r"training\.trainer: .*:Mine raised TypeError: .*'nu'"):
        Client(given, task="sst2")._settings().trainer(PRESETS["sst2"], plan, torch.device("cpu"))
    settings["trainer"] = f"{module(KIND)}:Count"
    with pytest.raises(ConfigError, match=r"training\.trainer: expected a subclass of fedmtl_client\.trainer\.Trainer"):
        Client(given, task="sst2")._settings()


def test_nothing_but_a_task_kind_is_one(module):
    with pytest.raises(
        ConfigError, match=r"tasks\.visits\.type: expected a subclass of fedmtl_core\.tasks\.kinds\.TaskKind"
    ):
        task_of(module(ROWS + GIVES.format("[]")) + ":Rows")
    assert TaskKind.__abstractmethods__ == {"head", "loss", "measure"}


def test_many_threads_load_plugins_at_once(module, monkeypatch):
    """As clients of one process do. Folders that aren't there are what `importlib.invalidate_caches` forgets."""
    num_threads, names = 8, [module(KIND) for _ in range(8)]
    monkeypatch.setattr("sys.path_importer_cache", sys.path_importer_cache.copy())
    absent = {f"/nowhere/{number}": None for number in range(20_000)}
    together = threading.Barrier(num_threads, action=lambda: sys.path_importer_cache.update(absent))

    def load(name: str) -> list[type]:
        loaded = []
        for _ in range(30):
            together.wait(timeout=60)
            loaded.append(plugins.load("key", f"{name}:Count", TaskKind))
        return loaded

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(num_threads) as threads:
            futures = [threads.submit(load, name) for name in names]
            for future in futures:
                future.add_done_callback(lambda done: together.abort() if done.exception() else None)
            loaded = [future.result() for future in futures]
    finally:
        sys.setswitchinterval(before)
    assert [{kind.__module__ for kind in kinds} for kinds in loaded] == [{name} for name in names]
