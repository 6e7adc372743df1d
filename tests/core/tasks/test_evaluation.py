"""A task's metrics from its clients' sums, against scikit-learn's and SciPy's of all rows together."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from fedmtl_core.tasks import metrics
from fedmtl_core.tasks.evaluation import ClassCounts, Evaluation, Moments, TaskMetric, Undefined, task_metrics


@st.composite
def clients_of_classes(draw):
    """A number of classes, and the (target, prediction) pairs of some clients."""
    num_classes = draw(st.integers(2, 5))
    pairs = st.tuples(st.integers(0, num_classes - 1), st.integers(0, num_classes - 1))
    return num_classes, draw(st.lists(st.lists(pairs, min_size=1, max_size=20), min_size=1, max_size=5))


def columns_of(rows):
    return (np.array(column, dtype=float) for column in zip(*rows, strict=True))


@given(clients_of_classes())
def test_class_counts_of_clients_give_scikit_learns_metrics_of_all_rows(case):
    num_classes, clients = case
    counts = [metrics.class_counts(*columns_of(rows), num_classes) for rows in clients]
    total = ClassCounts.total(counts)
    targets, predictions = columns_of([row for rows in clients for row in rows])
    assert total == metrics.class_counts(targets, predictions, num_classes)
    assert total.metric("accuracy") == pytest.approx(sk.accuracy_score(targets, predictions), abs=1e-12)
    matthews = total.metric("matthews")
    if len(set(targets)) > 1 and len(set(predictions)) > 1:
        assert matthews == pytest.approx(sk.matthews_corrcoef(targets, predictions), abs=1e-12)
    else:
        assert math.isnan(matthews)
    assert total.gives("f1") == (num_classes == 2)
    if num_classes == 2 and 1 in {*targets, *predictions}:
        assert total.metric("f1") == pytest.approx(sk.f1_score(targets, predictions), abs=1e-12)
    elif num_classes == 2:
        assert math.isnan(total.metric("f1"))


def condition_of(values):
    """The ratio of mean square to variance, which is what sums of the values themselves cost in precision."""
    return np.square(values).mean() / values.var() if np.ptp(values) else math.inf


VALUES = st.floats(-5, 5, width=32)


@given(st.lists(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=20), min_size=1, max_size=5))
def test_moments_of_clients_give_scipys_correlation_of_all_rows(clients):
    total = Moments.total([metrics.moments(*columns_of(rows)) for rows in clients])
    targets, predictions = columns_of([row for rows in clients for row in rows])
    condition = max(condition_of(targets), condition_of(predictions))
    pearson = total.metric("pearson")
    if len(targets) >= 2 and condition < 1e11:
        precision = max(1e-12, 1e-15 * condition)
        assert pearson == pytest.approx(stats.pearsonr(targets, predictions)[0], abs=precision)
    elif condition > 1e13:
        assert math.isnan(pearson)


@given(st.lists(st.tuples(VALUES, VALUES), min_size=3, max_size=30), st.randoms())
def test_any_split_of_the_rows_over_clients_gives_the_same_correlation(rows, random):
    def split():
        clients = [[] for _ in range(random.randint(1, 6))]
        for row in rows:
            random.choice(clients).append(row)
        return Moments.total([metrics.moments(*columns_of(mine)) for mine in clients if mine])

    one, another = split(), split()
    for total in (one, another):
        assert total.num_examples == len(rows)
    of_x, of_y, _ = one.centered()
    if min(of_x / max(one.sum_xx, 1e-300), of_y / max(one.sum_yy, 1e-300)) > 1e-2:
        assert one.metric("pearson") == pytest.approx(another.metric("pearson"), abs=1e-12)


@pytest.mark.parametrize(("offset", "precision"), [(0.0, 1e-14), (1e4, 1e-7), (-3e5, 1e-4)])
def test_values_far_from_zero_cost_the_precision_that_the_contract_says(offset, precision):
    """The relative error of a variance is 1e-16 times the ratio of mean square to variance."""
    draw = np.random.default_rng(7)
    predictions = offset + draw.uniform(-1, 1, 1000)
    targets = predictions + draw.uniform(-1, 1, 1000)
    pearson = Moments.total(
        [metrics.moments(y, x) for y, x in ((targets[:300], predictions[:300]), (targets[300:], predictions[300:]))]
    )
    assert pearson.metric("pearson") == pytest.approx(stats.pearsonr(targets, predictions)[0], abs=precision)


@pytest.mark.parametrize("deviation", [0.0, 1e-3, 9e-3])
def test_a_variance_below_the_rounding_of_the_sums_is_none(deviation):
    """1e4 ± 9e-3: the mean square is 1.2e12 times the variance."""
    values = 1e4 + deviation * np.resize([-1.0, 1.0], 100)
    for targets, predictions in ((values, np.arange(100.0)), (np.arange(100.0), values)):
        pearson = metrics.moments(targets, predictions).metric("pearson")
        assert isinstance(pearson, Undefined)
        assert pearson.reason in ("all predictions are the same", "all targets are the same")


def evaluation(value=None, num_examples=1, name="pearson", sums=None):
    metric = {} if value is None else {name: value}
    return Evaluation(metric, num_examples, {} if metric else {name: "why"}, sums)


def test_a_mean_leaves_out_the_clients_for_which_the_metric_is_undefined():
    clients = [evaluation(0.9, 30, "spearman"), evaluation(None, 70, "spearman"), evaluation(0.6, 10, "spearman")]
    assert task_metrics(clients) == {"spearman": TaskMetric(pytest.approx((30 * 0.9 + 10 * 0.6) / 40), False, 2, 40, 1)}
    assert task_metrics([evaluation()]) == {"pearson": TaskMetric(None, False, 0, 0, 1)}


def test_rows_of_a_client_for_which_the_metric_is_undefined_count_where_rows_are_pooled():
    """Scores 0 and 1 at one client, 3 alone at another: who is right about all of them has 1 of all rows."""
    first, second = metrics.moments(np.array([0.0, 1.0]), np.array([0.0, 1.0])), Moments(2, 6.0, 6.0, 18.0, 18.0, 18.0)
    clients = [evaluation(1.0, 2, sums=first), evaluation(None, 2, sums=second)]
    assert task_metrics(clients) == {"pearson": TaskMetric(pytest.approx(1.0), True, 2, 4, 1)}


def test_f1_of_clients_with_one_class_each_is_that_of_their_rows_together():
    """The mean would be 0.462, of a model that is right about every row."""
    positives, negatives = ClassCounts((0, 30), (0, 30), (0, 30)), ClassCounts((35, 0), (35, 0), (35, 0))
    clients = [evaluation(1.0, 30, "f1", positives), evaluation(None, 35, "f1", negatives)]
    assert task_metrics(clients)["f1"] == TaskMetric(1.0, True, 2, 65, 1)


def test_one_client_without_sums_makes_it_a_mean_of_those_that_have_a_value():
    with_sums = evaluation(0.5, 10, sums=metrics.moments(np.arange(10.0), np.arange(10.0)))
    assert task_metrics([with_sums, evaluation(0.8, 30)])["pearson"] == TaskMetric(
        pytest.approx((10 * 0.5 + 30 * 0.8) / 40), False, 2, 40, 0
    )
    undefined = evaluation(None, 30)  # such as one whose outputs aren't finite
    assert task_metrics([with_sums, undefined])["pearson"] == TaskMetric(pytest.approx(1.0), True, 1, 10, 1)


def test_a_metric_that_the_sums_do_not_give_stays_a_mean_beside_those_that_they_give():
    counts = ClassCounts((1, 0), (2, 0), (1, 1))
    clients = [Evaluation({"accuracy": 0.5, "loss": loss}, 2, {"f1": "why"}, counts) for loss in (0.25, 0.75)]
    assert task_metrics(clients) == {
        "accuracy": TaskMetric(0.5, True, 2, 4, 0),
        "loss": TaskMetric(0.5, False, 2, 4, 0),
        "f1": TaskMetric(0.0, True, 2, 4, 2),
    }


@pytest.mark.parametrize("scale", [5e-324, 1e-300, 1e-162, 1.0, 1e100, 1e199])
def test_sums_of_any_size_give_a_correlation_or_none(scale):
    """A variance can be a number, and its float 0."""
    root = math.sqrt(scale)
    for moments in (
        Moments(2, root, 0.0, scale, 2.0, 0.0),
        Moments(2, 0.0, 0.0, scale, scale, -scale),
        Moments(3, root, root, 3 * scale, 3 * scale, scale),
        Moments(2, 3.143455569402114e-162, 0.0, 5e-324, 2.0, 0.0),
    ):
        value = moments.metric("pearson")
        assert math.isnan(value) or -1 <= value <= 1
    assert Moments(2, 0.0, 0.0, 2.0, 2.0, -2.0).metric("pearson") == -1.0
