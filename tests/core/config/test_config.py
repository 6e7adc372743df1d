"""The configuration: what is accepted, and what a wrong one is told."""

import re
from pathlib import Path

import pytest
import yaml

from fedmtl_core import config
from fedmtl_core.config import documents
from fedmtl_core.errors import ConfigError

CONFIGS = Path(__file__).parents[3] / "configs"


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
        ("training: {batch_size: 8}", r"training\.batch_size: .*did you mean 'per_device_train_batch_size'\?"),
        (
            "training: {per_device_train_batch_size: 0}",
            r"training\.per_device_train_batch_size: .*greater than or equal to 1 \(got 0\)",
        ),
        ("training: {learning_rate: fast}", r"training\.learning_rate: .*valid number.* \(got 'fast'\)"),
        ("training: {learning_rate: .inf}", r"training\.learning_rate: .*finite.* \(got \.inf\)"),
        ("training: {device: gpu}", r"training\.device: expected auto, cpu, cuda, cuda:N or mps \(got 'gpu'\)"),
        ("server: {port: 70000}", r"server\.port: .*65535 \(got 70000\)"),
        ("tasks: {sst2: {data: {train: a.tsv}}}", r"tasks\.sst2\.data: expected `builtin`, `hub`"),
        ("tasks: {sst2: {data: {builtin: sst2, hub: x}}}", "`builtin` can't be combined with `hub`"),
        ("tasks: {sst2: {data: {hub: x, header: none}}}", "`header` applies only to the files `train` and `val"),
        ("tasks: {sst2: {data: {builtin: sst2, quoting: none}}}", "`quoting` applies only to the files"),
        (
            "tasks: {sst2: {data: {train: 'https://me:hidden@x/a.csv', validation: b.csv}}}",
            r"tasks\.sst2\.data\.train: a password in the URL would be stored .*; give the password in ~/\.netrc[^(]*$",
        ),
        ("tasks: {sst2: {text_columns: [true]}}", r"tasks\.sst2\.text_columns\[0\]: "),
        ("tasks: {sst2: {min_client: 2}}", r"tasks\.sst2\.min_client: unknown key; did you mean 'min_clients'\?"),
        ("tasks: {mine: {}}", r"tasks\.mine\.type: required, since 'mine' is not one of the GLUE tasks"),
        ("tasks: {sst2: {metrics: [pearson]}}", "metric 'pearson' doesn't fit a classification"),
        ("tasks: {a.b: {}}", "can't have a '.'"),
        (
            "server_optimizer: {name: fedadm}",
            r"server_optimizer\.name: did you mean 'fedadam'\? expected .*module:Name for your own class "
            r"\(got 'fedadm'\)",
        ),
        ("server_optimizer: {beta_1: 1}", r"server_optimizer\.beta_1: .*less than 1 \(got 1\)"),
        ("server_optimizer: {tau: 0}", r"server_optimizer\.tau: .*greater than 0 \(got 0\)"),
        ("server_optimizer: {beta1: 0.9}", r"server_optimizer\.beta1: unknown key; did you mean 'beta_1'\?"),
        ("aggregation: {task_weighting: uniforme}", r"did you mean 'uniform'\? expected examples, uniform, .*module:N"),
        ("aggregation: {task_weighting: fixed}", "`task_weighting: fixed` needs `task_weights`, a weight for every"),
        ("aggregation: {task_weights: {a: 1}}", "`task_weights` needs `task_weighting: fixed`, got 'examples'"),
        (
            "aggregation: {task_weighting: fixed, task_weights: {sst2: 0}}",
            "`task_weights`: expected a weight above 0 for 'sst2', got 0",
        ),
        (
            "tasks: {sst2: {}}\naggregation: {task_weighting: fixed, task_weights: {sst2: 1, qqp: 2}}",
            r"aggregation\.task_weights: 'qqp' isn't in `tasks`",
        ),
        (
            "tasks: {sst2: {}, qqp: {}}\naggregation: {task_weighting: fixed, task_weights: {sst2: 1}}",
            r"aggregation\.task_weights: expected a weight for every task, got none for 'qqp'",
        ),
        (
            "aggregation: {scaling: 0}",
            r"aggregation\.scaling: expected `preserve` or a number greater than 0 \(got 0\)",
        ),
        ("aggregation: {scaling: .nan}", r"scaling: expected `preserve` or a number greater than 0 \(got \.nan\)"),
        ("aggregation: {scaling: preserved}", r"scaling: expected `preserve` or a number .* \(got 'preserved'\)"),
        ("aggregation: {scaling: true}", r"aggregation\.scaling: expected a number \(got true\)"),
        ("aggregation: {temperature: 0}", r"aggregation\.temperature: .*greater than 0 \(got 0\)"),
        ("aggregation: {conflict_aversion: 1}", r"aggregation\.conflict_aversion: .*less than 1 \(got 1\)"),
        ("security: {tls: {key: k}}", r"security\.tls: `certificate` and `key` go together, got only a key"),
        (
            "security: {tls: {client_ca: a}}",
            r"security\.tls: `client_ca` needs the server's own `certificate` and `key`",
        ),
        ("security: {tls: {certifcate: c}}", r"security\.tls\.certifcate: unknown key; did you mean 'certificate'\?"),
        ("client: {token: secret}", r"client\.token: unknown key; did you mean 'token_file'\?"),
        ("tasks: {sst2: {}}\nclients: [{client_id: c, task: qqp}]", "client 'c' has the task 'qqp'"),
        ("tasks: {sst2: {}}\nclients: [{client_id: c d, task: sst2}]", r"clients\[0\]\.client_id"),
        ("tasks: {sst2: {}}\nclients: [{client_id: c, task: sst2, shard: 3/2}]", r"clients\[0\]\.shard: .*K/N"),
        ("training: {local_epochs: 99999999999}", r"training\.local_epochs: .*4294967295"),
        ("training: {device: 'cuda:'}", r"training\.device: expected auto"),
        ("training: {}\ntraining: {}", "the key 'training' is given twice"),
        ("tasks: {1: {}}", "a task's name must be text; put quotes around 1"),
        ("tasks: {sst2: {labels: [no, yes]}}", r"tasks\.sst2\.labels: expected names; put quotes around no$"),
        ("tasks: {sst2: {labels: ['no', Yes]}}", r"tasks\.sst2\.labels: expected names; put quotes around Yes$"),
        ("tasks: {sst2: {labels: [1.0, 2.0]}}", r"tasks\.sst2\.labels: expected names; put quotes around 1\.0$"),
        ("tasks: {off: {}}", "a task's name must be text; put quotes around off$"),
        ("clients: [{client_id: 17, task: a}]", r"client_id: .*valid string \(got 17\); put quotes around text"),
        ("client: {token_file: off}", r"client\.token_file: .* \(got off\)"),
        ('server: {runs_dir: "a\\0b"}', r"server\.runs_dir: expected text without a NUL character"),
        ("server: {host: ~}", r"server\.host: .*valid string \(got ~\)$"),
        ("server: {host: }", r"server\.host: .*valid string \(got nothing\)$"),
        ("tasks: {sst2: {labels: 1000000000}}", r"tasks\.sst2\.labels: expected a list of names, or a number from 2"),
        ("tasks: {sst2: {labels: [a, a]}}", r"tasks\.sst2: labels must differ"),
        ("rounds: {on_missing_quorum: wait}", r"rounds\.on_missing_quorum: .*'commit', 'extend' or 'fail' .*'wait'"),
        ("rounds: {max_extensions: 0}", r"rounds\.max_extensions: .*greater than or equal to 1 \(got 0\)"),
        ("rounds: {cohort: some}", r"rounds\.cohort: .*'all', 'fraction' or 'over_select' \(got 'some'\)"),
        ("rounds: {cohort_fraction: 0}", r"rounds\.cohort_fraction: .*greater than 0 \(got 0\)"),
        ("rounds: {cohort_fraction: 1.5}", r"rounds\.cohort_fraction: .*less than or equal to 1 \(got 1\.5\)"),
        ("rounds: {cohort_size: 0}", r"rounds\.cohort_size: .*greater than or equal to 1 \(got 0\)"),
        ("rounds: {cohort_extra: -1}", r"rounds\.cohort_extra: .*greater than or equal to 0 \(got -1\)"),
        ("rounds: {mode: both}", r"rounds\.mode: .*'sync' or 'async' \(got 'both'\)"),
        ("rounds: {buffer_size: 0}", r"rounds\.buffer_size: .*greater than or equal to 1 \(got 0\)"),
        ("rounds: {staleness_exponent: -0.5}", r"rounds\.staleness_exponent: .*equal to 0 \(got -0\.5\)"),
        ("rounds: {max_staleness: -1}", r"rounds\.max_staleness: .*greater than or equal to 0 \(got -1\)"),
        ("rounds: {rejoin_grace_s: -1}", r"rounds\.rejoin_grace_s: .*greater than or equal to 0 \(got -1\)"),
        ("tasks: {sst2: {deadline_s: 0}}", r"tasks\.sst2\.deadline_s: .*greater than 0 \(got 0\)"),
        ("early_stopping: {patience: 0}", r"early_stopping\.patience: .*greater than or equal to 1 \(got 0\)"),
        ("early_stopping: {threshold: -1}", r"early_stopping\.threshold: .*greater than or equal to 0 \(got -1\)"),
        ("tasks: {sst2: {}}\nearly_stopping: {watch: [qqp]}", r"early_stopping\.watch: 'qqp' isn't in `tasks`"),
        ("store: {durability: disk}", r"store\.durability: .*'memory', 'process' or 'power' \(got 'disk'\)"),
        ("store: {keep_checkpoints: 0}", r"store\.keep_checkpoints: .*greater than or equal to 1 \(got 0\)"),
        ("store: {uri: x}", r"store\.uri: unknown key; did you mean 'url'\?"),
        ("limits: {request_bytes: 3000000}", r"limits: `request_bytes` can't be more than `message_bytes` \(2228224\)"),
        ("limits: {message_bytes: 2097152}", r"limits\.message_bytes: .*equal to 2162688 \(got 2097152\)"),
        ("limits: {stall_s: 0}", r"limits\.stall_s: .*greater than 0 \(got 0\)"),
        ("limits: {upload: 1}", r"limits\.upload: unknown key; did you mean 'uploads'\?"),
        ("client: {server: foo}", r"client\.server: expected HOST:PORT, such as 127\.0\.0\.1:50051, got 'foo'$"),
        ("client: {tls_ca: 3}", r"client\.tls_ca: expected a path \(got 3\)"),
        ("[1, 2]", "expected sections such as `training:`, got list"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_wrong_value_is_told_its_path_itself_and_what_is_allowed(text, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        config.load(write(tmp_path, text))


NUMBERS = [
    *(one.key for one in config.reference() if re.fullmatch(r"[0-9e-]+(\.[0-9]+)?", one.default)),
    *("server.metrics_port", "client.num_threads", "server_optimizer.learning_rate", "early_stopping.patience"),
]
"""Keys of a number."""


@pytest.mark.parametrize("key", [key for key in NUMBERS if not key.startswith(("tasks.", "clients["))])
def test_a_number_is_neither_a_boolean_nor_what_could_be_meant_in_another_base(key, tmp_path):
    for text in ("true", "False", "no", "on"):
        with pytest.raises(ConfigError, match=rf"^--set {key}: expected a number \(got {text}\)$"):
            config.load(None, [f"{key}={text}"])
    section, _, name = key.partition(".")
    for text in ("0777", "'0777'", "08", "+012", "0_1", "12:30"):
        given = f"{{{name.replace('.', ': {')}: {text}{'}' * key.count('.')}"
        for load in (
            lambda given=given: config.load(write(tmp_path, f"{section}: {given}")),
            lambda text=text: config.load(None, [f"{key}={text}"]),
            lambda text=text: config.resolve({section: sections_of(name, text.strip("'"))}),
        ):
            with pytest.raises(
                ConfigError, match=r"in base (8|60), |without leading zeros|unable to parse string as a|or a number"
            ):
                load()


def sections_of(key: str, value: str) -> dict[str, object]:
    first, _, rest = key.partition(".")
    return {first: sections_of(rest, value) if rest else value}


@pytest.mark.parametrize(
    ("text", "value"), [("50051", 50051), ("'50051'", 50051), ("0x1F", 31), ("1_000", 1000), ("0", 0), ("80.0", 80)]
)
def test_a_number_that_can_be_read_one_way_alone_is_taken(text, value, tmp_path):
    assert config.load(write(tmp_path, f"server: {{port: {text}}}")).server.port == value


@pytest.mark.parametrize(("text", "value"), [("2e-3", 0.002), ("'0.5'", 0.5), ("00.5", 0.5), (".5", 0.5)])
def test_a_fraction_is_taken_as_people_write_it(text, value, tmp_path):
    assert config.load(write(tmp_path, f"training: {{learning_rate: {text}}}")).training.learning_rate == value


def test_what_stands_in_a_list_or_a_mapping_of_numbers_is_a_number_too():
    with pytest.raises(ConfigError, match=r"tasks\.a\.value_range: expected a number \(got \[no, 5\]\)"):
        config.load(None, ["tasks={a: {type: regression, value_range: [no, 5]}}"])
    with pytest.raises(ConfigError, match=r"aggregation\.task_weights: expected a number"):
        config.load(None, ["aggregation={task_weighting: fixed, task_weights: {sst2: yes}}"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training:\n  seed: 1\nserver:\n\n  port: x\n", r"c\.yaml:5: server\.port: "),
        ("training:\n  seed: 1\n  sed: 2\n", r"c\.yaml:3: training\.sed: unknown key"),
        (
            "training: {}\nserver: {}\n\ntraining: {}\n",
            r"c\.yaml:4: the key 'training' is given twice, on lines 1 and 4$",
        ),
        ("tasks:\n  a: {b: 1, b: 2}\n", r"c\.yaml:2: the key 'b' is given twice on line 2$"),
        ("server:\n  host: a\n  port: 12:30\n", r"c\.yaml:3: YAML reads 12:30 as a number in base 60, 750; write 750 "),
        ("server:\n  port: 0777\n", r"c\.yaml:2: YAML reads 0777 as a number in base 8, 511; write 511 "),
        ("x:\n- 2024-13-45\n", r"c\.yaml:2: '2024-13-45' can't be read as YAML's timestamp; put quotes around text$"),
        ("tasks:\n\n  no: {}\n", r"c\.yaml:3: tasks: a task's name must be text; put quotes around no$"),
        ("clients:\n- client_id: a\n  task: b\n- task: b\n", r"c\.yaml:4: clients\[1\]\.client_id: required, but not"),
        ("a: b\nc: {d\n", r"c\.yaml:3: not valid YAML: while parsing a flow mapping: expected ',' or '}'"),
        ("a: b\nc: \x01\n", r"c\.yaml:2: not valid YAML: the character '\\x01'$"),
        (
            "tasks:\n  a: &few\n    train_samples: no\n  b: {<<: *few}\n",
            r"c\.yaml:3: tasks\.a\.train_samples: .*got no",
        ),
    ],
)
def test_what_is_wrong_in_a_file_is_told_with_its_line(text, message, tmp_path):
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


def test_a_path_that_cannot_be_is_told_in_words_and_cut(tmp_path):
    with pytest.raises(ConfigError, match=r"^x{140}…x{140}: can't read the configuration: File name too long$"):
        config.load(Path("x" * 5000))
    with pytest.raises(ConfigError, match=r"c\.yaml/d: can't read the configuration: Not a directory$"):
        config.load(write(tmp_path, "") / "d")
    with pytest.raises(ConfigError, match=r"can't read the configuration: embedded null byte$"):
        config.load(Path("a\0b"))


def test_an_override_wins_over_the_file(tmp_path):
    loaded = config.load(write(tmp_path, "training: {num_rounds: 3}"), ["training.num_rounds=5", "server.host=::1"])
    assert loaded.training.num_rounds == 5
    assert loaded.server.host == "::1"


@pytest.mark.parametrize("key", ["host", "metrics_host"])
def test_an_ipv6_address_to_listen_on_may_have_brackets(key):
    assert getattr(config.resolve({"server": {key: "[::1]"}}).server, key) == "::1"


@pytest.mark.parametrize(
    ("overrides", "named", "message"),
    [
        (["server.port=70000"], {}, r"^--set server\.port: .*65535 \(got 70000\)"),
        (["server.port=70000"], {"server.port": "--port"}, r"^--port: .*65535 \(got 70000\)"),
        (["trainin.seed=3"], {}, r"^--set trainin\.seed: unknown key; did you mean 'training'"),
        (["training.sed=3"], {}, r"^--set training\.sed: unknown key; did you mean 'seed'"),
        (
            ["training={per_device_train_batch_size: 0}"],
            {},
            r"^--set training\.per_device_train_batch_size: .*greater than or equal to 1",
        ),
        (["server.port=no"], {}, r"^--set server\.port: expected a number \(got no\)$"),
        (["clients=[{client_id: a b, task: c}]"], {}, r"^--set clients\[0\]\.client_id: .*, got 'a b'$"),
        (["server.port=1", "server={port: off}"], {}, r"^--set server\.port: expected a number \(got off\)$"),
        (["training.seed=1"], {}, r"c\.yaml:1: training\.num_rounds: .*greater than or equal to 1"),
    ],
)
def test_a_wrong_value_is_blamed_on_the_option_it_came_from(overrides, named, message, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("training: {num_rounds: 0}" if overrides == ["training.seed=1"] else "")
    with pytest.raises(ConfigError, match=message):
        config.load(path, overrides, named)


def test_an_override_without_a_value_is_refused():
    with pytest.raises(ConfigError, match="expected KEY=VALUE"):
        config.load(None, ["training.num_rounds"])


def test_a_task_of_ones_own_needs_type_and_columns(tmp_path):
    text = "tasks: {news: {type: classification, labels: 3, text_columns: [title, body], label_column: topic}}"
    (spec,) = config.load(write(tmp_path, text)).task_specs()
    assert spec.num_outputs == 3
    assert spec.text_columns == ("title", "body")
    assert spec.metrics == ("accuracy",)


def test_columns_may_be_numbers_without_quotes_around_them(tmp_path):
    (spec,) = config.load(write(tmp_path, "tasks: {cola: {text_columns: [4], label_column: 2}}")).task_specs()
    assert (spec.text_columns, spec.label_column) == (("4",), "2")


def test_the_reference_names_every_key_with_its_default():
    settings = {setting.key: setting.default for setting in config.reference()}
    assert settings["training.per_device_train_batch_size"] == "32"
    assert settings["tasks.NAME.min_clients"] == "1"
    assert settings["tasks.NAME.data.builtin"] == ""
    assert all(setting.description for setting in config.reference())


@pytest.mark.parametrize("text", ["0/1", "2/1", "1", "a/b", "1/2/3", "-1/2", "1/²"])
def test_a_shard_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="expected K/N"):
        config.parse_shard(text)


def test_the_new_rules_are_read_and_unless_given_rounds_are_as_they_always_were(tmp_path):
    plain = config.load(write(tmp_path, "tasks: {sst2: {}}"))
    assert (plain.rounds.mode, plain.rounds.cohort, plain.rounds.on_missing_quorum) == ("sync", "all", "commit")
    assert (plain.early_stopping.patience, plain.tasks["sst2"].deadline_s, plain.store.url) == (None, None, None)
    text = """
rounds: {on_missing_quorum: extend, max_extensions: 2, cohort: over_select, cohort_size: 3, cohort_extra: 1}
early_stopping: {patience: 4, threshold: 0.01, watch: [sst2]}
tasks: {sst2: {deadline_s: 90}}
"""
    given = config.load(write(tmp_path, text))
    assert (given.rounds.on_missing_quorum, given.rounds.max_extensions) == ("extend", 2)
    assert (given.rounds.cohort, given.rounds.cohort_size, given.rounds.cohort_extra) == ("over_select", 3, 1)
    assert (given.early_stopping.patience, given.early_stopping.watch) == (4, ["sst2"])
    assert given.tasks["sst2"].deadline_s == 90


@pytest.mark.parametrize("cohort", ["fraction", "over_select"])
def test_asynchronous_rounds_are_for_all_clients(cohort):
    message = f"rounds\\.cohort: `mode: async` needs `cohort: all`, got '{cohort}'"
    with pytest.raises(ConfigError, match=message):
        config.load(None, ["rounds.mode=async", f"rounds.cohort={cohort}"])
    assert config.load(None, ["rounds.mode=async", "rounds.cohort=all"]).rounds.mode == "async"


@pytest.mark.parametrize(
    ("mode", "update", "asked_for"),
    [("sync", "parameters", "parameters"), ("sync", "delta", "delta"), ("async", "parameters", "delta")],
)
def test_an_asynchronous_run_asks_for_deltas_whatever_else_is_said(mode, update, asked_for):
    loaded = config.load(None, [f"rounds.mode={mode}", f"training.update={update}", "tasks.sst2={}"])
    assert loaded.plan("sst2").update == asked_for


def test_a_tasks_own_number_of_passes_wins_over_the_runs():
    loaded = config.load(None, ["training.local_epochs=3", "tasks.sst2.local_epochs=5", "tasks.qqp={}"])
    assert (loaded.plan("sst2").local_epochs, loaded.plan("qqp").local_epochs) == (5, 3)


def given_with(*overrides):
    return config.load(None, ["tasks.sst2={}", "tasks.qqp={}", *overrides])


def test_a_run_can_be_taken_up_with_its_own_configuration():
    assert config.contradictions(given_with(), given_with()) == []


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("training.learning_rate=0.5", "training.learning_rate: the run has 2e-05, got 0.5"),
        ("training.num_rounds=3", "training.num_rounds: the run has 10, got 3"),
        ("model.pooling=mean", "model.pooling: the run has 'cls', got 'mean'"),
        ("rounds.mode=async", "rounds.mode: the run has 'sync', got 'async'"),
        ("rounds.cohort=fraction", "rounds.cohort: the run has 'all', got 'fraction'"),
        ("rounds.cohort_size=3", "rounds.cohort_size: the run has 1, got 3"),
        ("rounds.staleness_exponent=1", "rounds.staleness_exponent: the run has 0.5, got 1.0"),
        ("rounds.on_missing_quorum=fail", "rounds.on_missing_quorum: the run has 'commit', got 'fail'"),
        ("early_stopping.patience=3", "early_stopping.patience: the run has None, got 3"),
        ("tasks.sst2.metrics=[f1]", "tasks.sst2.metrics: the run has None, got ['f1']"),
        ("tasks.sst2.train_samples=9", "tasks.sst2.train_samples: the run has None, got 9"),
    ],
)
def test_a_setting_that_a_run_cannot_be_taken_up_with_is_named_with_both_values(override, told):
    assert config.contradictions(given_with(), given_with(override)) == [told]


def test_every_contradiction_is_named():
    told = config.contradictions(given_with(), given_with("training.seed=1", "training.per_device_train_batch_size=8"))
    assert told == [
        "training.per_device_train_batch_size: the run has 32, got 8",
        "training.seed: the run has 42, got 1",
    ]


@pytest.mark.parametrize(
    "override",
    [
        "server.port=1",
        "server.runs_dir=elsewhere",
        "store.durability=memory",
        "store.keep_checkpoints=9",
        "store.url=postgresql+psycopg://me:hunter2@host/db",
        "client.reconnect_s=1",
        "limits.uploads=1",
        "training.device=cpu",
        "rounds.deadline_s=1",
        "rounds.quorum_timeout_s=1",
        "rounds.rejoin_grace_s=1",
        "rounds.transfer_timeout_s=1",
        "rounds.report_interval_s=1",
        "rounds.max_extensions=1",
        "tasks.sst2.deadline_s=1",
        "tasks.sst2.min_clients=2",
        "tasks.sst2.data={builtin: sst2}",
        "clients=[{client_id: c, task: sst2}]",
    ],
)
def test_what_does_not_change_what_a_run_computes_is_free_to_change(override):
    stored, given = given_with(), given_with(override)
    assert given != stored
    assert config.contradictions(stored, given) == []
    assert config.contradictions(given, stored) == []


@pytest.mark.parametrize("cohort", ["fraction", "over_select"])
def test_a_quorum_that_has_a_part_in_drawing_cohorts_is_not_free_to_change(cohort):
    """So many clients of the task are drawn at least."""
    stored = given_with(f"rounds.cohort={cohort}")
    told = config.contradictions(stored, given_with(f"rounds.cohort={cohort}", "tasks.sst2.min_clients=2"))
    assert told == ["tasks.sst2.min_clients: the run has 1, got 2"]
    assert config.contradictions(stored, given_with(f"rounds.cohort={cohort}", "tasks.sst2.deadline_s=2")) == []


def test_a_task_of_ones_own_that_the_run_has_not_is_a_contradiction():
    news = "tasks.news={type: classification, labels: 3, text_columns: [title], label_column: topic}"
    told = config.contradictions(given_with(), given_with(news))
    assert "tasks.news.labels: the run has None, got 3" in told
    assert "tasks.news.labels: the run has 3, got None" in config.contradictions(given_with(news), given_with())


def test_a_glue_task_that_the_run_has_not_is_a_contradiction():
    assert config.contradictions(given_with(), given_with("tasks.rte={}"))


def test_a_task_called_data_is_as_free_as_any_other():
    data = "tasks.data={type: regression, text_columns: [a], label_column: b}"
    assert config.contradictions(given_with(data), given_with(data, "tasks.data.min_clients=2")) == []


def test_keys_that_mean_the_same_have_the_names_of_transformers_training_arguments():
    from transformers import TrainingArguments

    theirs = set(TrainingArguments.__dataclass_fields__)
    ours = set(config.TrainingConfig.model_fields)
    assert ours & theirs == {
        "learning_rate",
        "max_grad_norm",
        "per_device_train_batch_size",
        "seed",
        "train_sampling_strategy",
        "weight_decay",
    }  # it calls a ratio of warm-up steps `warmup_steps` since transformers 5


def test_a_section_may_be_merged_with_another_as_yaml_has_it(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("tasks:\n  sst2: &few {train_samples: 5, val_samples: 6}\n  qqp: {<<: *few, val_samples: 7}\n")
    qqp = config.load(path).tasks["qqp"]
    assert (qqp.train_samples, qqp.val_samples) == (5, 7)


def test_a_merged_section_may_be_merged_with_another_and_replace_its_keys():
    text = "base: &a {x: 1}\ndeep:\n  b: &b {<<: *a, x: 2}\nc: {<<: *b, y: 3}\n"
    assert documents.parse(text).values == yaml.safe_load(text)
