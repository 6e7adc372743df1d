"""Whole federations in which a metric is undefined for one client: the task's is that of all rows together."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from scipy import stats
from sklearn import metrics as sk
from structlog.testing import capture_logs

from fedmtl_client import Client
from fedmtl_core.model import toy
from fedmtl_core.model.modeling import load_tokenizer
from fedmtl_server import Server
from fedmtl_server.saved_runs import load_model, open_run

SCORES = {"type": "regression", "text_columns": ["sentence1", "sentence2"], "metrics": ["pearson", "spearman"]}
OPINIONS = {
    "type": "classification",
    "text_columns": ["sentence"],
    "labels": ["bad", "good"],
    "metrics": ["matthews", "f1"],
}
NUM_ROUNDS = 2


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def config_of(task, section, train, validation):
    section = {**section, "label_column": "label", "min_clients": 2, "data": {"train": train, "validation": validation}}
    return {
        "model": {"server_model": "builtin:toy"},
        "training": {"num_rounds": NUM_ROUNDS, "local_epochs": 1, "max_length": 48, "learning_rate": 2e-3},
        "server": {"port": 0},
        "client": {"num_threads": 1},
        "tasks": {task: section},
    }


def run(tmp_path, task, section, train, evaluation_rows):
    """A federation of a client for each set of evaluation rows.

    Returns: the task's result, what each client did, and the log's lines.
    """
    train = written(tmp_path / "train.jsonl", train)
    configs = [
        config_of(task, section, train, written(tmp_path / f"dev-{number}.jsonl", rows))
        for number, rows in enumerate(evaluation_rows)
    ]
    with capture_logs() as logs, ThreadPoolExecutor() as pool, Server(configs[0], tmp_path / "run") as server:
        runs = [
            pool.submit(Client(config, task=task, client_id=f"client-{number}", server=server.address).run)
            for number, config in enumerate(configs)
        ]
        clients = [run.result(timeout=120) for run in runs]
        return server.wait()[task], clients, logs


def outputs_of(tmp_path, task, columns, rows):
    """What the last model says of rows, computed without FedMTL's evaluation: `(rows, outputs)`."""
    model = load_model(open_run(tmp_path / "run"), NUM_ROUNDS).module_for(task).eval()
    tokenizer = load_tokenizer("builtin:toy")
    texts = [[row[column] for row in rows] for column in columns]
    with torch.inference_mode():
        return model(task, dict(tokenizer(*texts, padding=True, return_tensors="pt"))).double().numpy()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("second", ["constant scores", "one row"])
def test_a_correlation_is_that_of_all_rows_though_a_client_has_none(second, tmp_path):
    rows, train = toy.rows("stsb")[1], toy.rows("stsb")[0][:128]
    mine, others = list(rows[:40]), [row | {"label": 3.0} for row in rows[40:70]]
    others = others[:1] if second == "one row" else others
    result, clients, logs = run(tmp_path, "scores", SCORES, train, [mine, others])
    predictions = outputs_of(tmp_path, "scores", SCORES["text_columns"], mine + others)[:, 0]
    targets = [row["label"] for row in mine + others]
    assert result.last == pytest.approx(stats.pearsonr(targets, predictions)[0], abs=1e-5)
    assert (result.measured[NUM_ROUNDS].is_pooled, result.measured[NUM_ROUNDS].num_undefined) == (True, 1)
    assert result.measured[NUM_ROUNDS].num_eval_examples == 40 + len(others)
    work = clients[1].rounds[NUM_ROUNDS]
    assert work.received_metrics.keys() == work.trained_metrics.keys() - {"train_loss"} == {"loss"}
    last = open_run(tmp_path / "run").metrics["scores"][NUM_ROUNDS]
    assert last["spearman"] == pytest.approx(stats.spearmanr(targets[:40], predictions[:40])[0], abs=1e-5)
    reason = "all targets are the same" if second == "constant scores" else "a correlation takes at least 2 rows"
    told = [line["undefined"] for line in logs if line["event"] == "update.sent" and "undefined" in line]
    assert told == [{"pearson": reason, "spearman": reason}] * NUM_ROUNDS


def test_f1_and_matthews_are_those_of_all_rows_though_a_client_has_negatives_alone(tmp_path):
    words = [("great", 1), ("superb", 1), ("lovely", 1), ("awful", 0), ("terrible", 0), ("poor", 0)]
    nouns = ["film", "movie", "meal", "dinner", "song", "tune", "book", "novel"]
    rows = [{"sentence": f"the {noun} was {word}", "label": label} for noun in nouns for word, label in words]
    mine = [*rows[:15], *(row | {"label": 1 - row["label"]} for row in rows[15:18])]
    negatives = [row for row in rows[18:] if row["label"] == 0]
    result, _, _ = run(tmp_path, "opinions", OPINIONS, rows * 4, [mine, negatives])
    predictions = outputs_of(tmp_path, "opinions", ["sentence"], mine + negatives).argmax(axis=1)
    targets = [row["label"] for row in mine + negatives]
    last = open_run(tmp_path / "run").metrics["opinions"][NUM_ROUNDS]
    assert last["matthews"] == result.last == pytest.approx(sk.matthews_corrcoef(targets, predictions), abs=1e-12)
    assert last["f1"] == pytest.approx(sk.f1_score(targets, predictions), abs=1e-12)
    assert result.measured[NUM_ROUNDS].num_eval_examples == len(targets)
