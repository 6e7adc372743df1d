"""GLUE's metrics, against values worked out by hand."""

import numpy as np
import pytest

from fedmtl_core.kinds import measure
from fedmtl_core.tasks import PRESETS


def logits(*classes: int) -> np.ndarray:
    return np.eye(2)[list(classes)]


def test_accuracy_and_f1():
    values = measure(PRESETS["qqp"], logits(1, 1, 0, 0), np.array([1.0, 0.0, 1.0, 0.0]))
    assert values == {"accuracy": 0.5, "f1": 0.5}  # 2 of 4; precision 1/2, recall 1/2


def test_matthews_of_a_perfect_and_of_an_inverted_classifier():
    targets = np.array([0.0, 1.0, 1.0, 0.0])
    assert measure(PRESETS["cola"], logits(0, 1, 1, 0), targets)["matthews"] == pytest.approx(1.0)
    assert measure(PRESETS["cola"], logits(1, 0, 0, 1), targets)["matthews"] == pytest.approx(-1.0)


def test_pearson_and_spearman():
    values = measure(PRESETS["stsb"], np.array([[1.0], [2.0], [9.0]]), np.array([0.0, 1.0, 2.0]))
    assert values["spearman"] == pytest.approx(1.0)
    assert values["pearson"] == pytest.approx(8 / np.sqrt(2 * 38))  # cov 8, variances 2 and 38, times n


@pytest.mark.parametrize("outputs", [[[1.0], [1.0]], [[1.0], [float("nan")]], [[1.0]]])
def test_an_undefined_correlation_is_zero(outputs):
    values = measure(PRESETS["stsb"], np.array(outputs), np.arange(len(outputs), dtype=float))
    assert values == {"pearson": 0.0, "spearman": 0.0}
