"""The configuration: what is accepted, and what a wrong one is told."""

from pathlib import Path

import pytest

from fedmtl_core import config
from fedmtl_core.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_documented_configuration_is_accepted_as_it_stands():
    loaded = config.load(CONFIGS / "federated_config.yaml")
    assert loaded.training.learning_rate == 2e-5
    assert loaded.model.server_model == "prajjwal1/bert-tiny"
    assert [spec.name for spec in loaded.task_specs()] == ["sst2", "qqp", "stsb"]
    assert loaded.plan("qqp").train_samples == 1000
    assert loaded.plan("qqp").val_samples == 200


@pytest.mark.parametrize("name", ["federated_config", "demo", "real"])
def test_a_dumped_configuration_loads_as_the_same(name, tmp_path):
    loaded = config.load(CONFIGS / f"{name}.yaml")
    assert config.load(write(tmp_path, config.dump(loaded))) == loaded


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {num_round: 3}", r"training\.num_round: unknown key; did you mean 'num_rounds'\?"),
        ("trainin: {}", r"trainin: unknown key; did you mean 'training'\?"),
        ("training: {batch_size: 0}", r"training\.batch_size: .*greater than or equal to 1 \(got 0\)"),
        ("training: {learning_rate: fast}", r"training\.learning_rate: .*valid number.* \(got 'fast'\)"),
        ("training: {learning_rate: .inf}", r"training\.learning_rate: .*finite.* \(got inf\)"),
        ("training: {device: gpu}", r"training\.device: expected auto, cpu, cuda, cuda:N or mps \(got 'gpu'\)"),
        ("server: {port: 70000}", r"server\.port: .*65535 \(got 70000\)"),
        ("tasks: {sst2: {data: {train: a.tsv}}}", r"tasks\.sst2\.data: expected `builtin`, or `hub`"),
        ("tasks: {sst2: {data: {builtin: sst2, hub: x}}}", "`builtin` takes no other key"),
        ("tasks: {sst2: {min_client: 2}}", r"tasks\.sst2\.min_client: unknown key; did you mean 'min_clients'\?"),
        ("tasks: {mine: {}}", r"tasks\.mine\.type: needed, since 'mine' is not one of the GLUE tasks"),
        ("tasks: {sst2: {metrics: [pearson]}}", "metric 'pearson' doesn't fit a classification"),
        ("tasks: {a.b: {}}", "can't have a '.'"),
        ("tasks: {sst2: {}}\nclients: [{client_id: c, task: qqp}]", "client 'c' has the task 'qqp'"),
        ("tasks: {sst2: {}}\nclients: [{client_id: c d, task: sst2}]", r"clients\[0\]\.client_id"),
        ("tasks: {sst2: {}}\nclients: [{client_id: c, task: sst2, shard: 3/2}]", r"clients\[0\]\.shard: .*K/N"),
        ("training: {local_epochs: 99999999999}", r"training\.local_epochs: .*4294967295"),
        ("training: {device: 'cuda:'}", r"training\.device: expected auto"),
        ("training: {}\ntraining: {}", "the key 'training' is there twice"),
        ("tasks: {1: {}}", "a task's name is text; put quotes around 1"),
        ("tasks: {sst2: {labels: [no, yes]}}", r"tasks\.sst2\.labels: expected names; put quotes around false"),
        ("tasks: {sst2: {labels: 1000000000}}", r"tasks\.sst2\.labels: expected a list of names, or a number from 2"),
        ("tasks: {sst2: {labels: [a, a]}}", r"tasks\.sst2: labels must differ"),
        ("[1, 2]", "expected sections such as `training:`, got list"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_wrong_value_is_told_its_path_itself_and_what_is_allowed(text, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        config.load(write(tmp_path, text))


def test_an_empty_section_is_one_of_defaults(tmp_path):
    loaded = config.load(write(tmp_path, "training:\ntasks:\n  sst2:\n"))
    assert loaded.training.num_rounds == 10
    assert list(loaded.tasks) == ["sst2"]


@pytest.mark.parametrize("text", ["127.0.0.1", "http://a:1", "a:0", "a:99999", ":1", "::1:50051", "a b:1"])
def test_an_address_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="expected HOST:PORT"):
        config.parse_address(text)


@pytest.mark.parametrize("text", ["127.0.0.1:50051", "server.example:1", "[::1]:50051"])
def test_an_address_is_taken(text):
    assert config.parse_address(text) == text


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nope\.yaml: can't read the configuration: No such file"):
        config.load(tmp_path / "nope.yaml")


def test_an_override_wins_over_the_file(tmp_path):
    loaded = config.load(write(tmp_path, "training: {num_rounds: 3}"), ["training.num_rounds=5", "server.host=::1"])
    assert loaded.training.num_rounds == 5
    assert loaded.server.host == "::1"


def test_an_override_without_a_value_is_refused():
    with pytest.raises(ConfigError, match="expected KEY=VALUE"):
        config.load(None, ["training.num_rounds"])


def test_a_task_of_ones_own_needs_type_and_columns(tmp_path):
    text = "tasks: {news: {type: classification, labels: 3, text_columns: [title, body], label_column: topic}}"
    (spec,) = config.load(write(tmp_path, text)).task_specs()
    assert spec.num_outputs == 3
    assert spec.text_columns == ("title", "body")
    assert spec.metrics == ("accuracy",)


def test_the_reference_names_every_key_with_its_default():
    settings = {setting.key: setting.default for setting in config.reference()}
    assert settings["training.batch_size"] == "32"
    assert settings["tasks.NAME.min_clients"] == "1"
    assert settings["tasks.NAME.data.builtin"] == ""
    assert all(setting.description for setting in config.reference())


@pytest.mark.parametrize("text", ["0/1", "2/1", "1", "a/b", "1/2/3", "-1/2", "1/²"])
def test_a_shard_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="expected K/N"):
        config.parse_shard(text)
