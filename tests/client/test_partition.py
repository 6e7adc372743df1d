"""Parts of a task's rows with unequal labels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmtl_client.data import load_task_data
from fedmtl_client.partition import NUM_BINS, LabelSkew, groups_of_values, parts_of
from fedmtl_core import config as configuration
from fedmtl_core.config import DataConfig
from fedmtl_core.errors import ConfigError, DataError
from fedmtl_core.tasks.glue import PRESETS

groups = st.lists(st.integers(0, 4), min_size=1, max_size=120)
skews = st.builds(LabelSkew, st.floats(1e-300, 1e6, allow_nan=False, exclude_min=False), st.integers(0, 2**32 - 1))


@settings(deadline=None)
@given(groups, st.integers(1, 9), skews)
def test_parts_are_disjoint_and_complete_and_of_one_size(groups, num_parts, skew):
    if num_parts > len(groups):
        with pytest.raises(DataError, match=f"{num_parts} parts of {len(groups)} rows: at least one would be empty"):
            parts_of(groups, num_parts, skew)
        return
    parts = parts_of(groups, num_parts, skew)
    assert sorted(row for part in parts for row in part) == list(range(len(groups)))
    sizes = [len(part) for part in parts]
    assert len(sizes) == num_parts
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] <= 1
    assert sizes[-1] >= 1


@settings(deadline=None)
@given(groups, skews)
def test_the_same_arguments_give_the_same_parts_and_the_global_random_state_stays(groups, skew):
    before = np.random.get_state()[1].tolist()
    num_parts = min(3, len(groups))
    assert parts_of(groups, num_parts, skew) == parts_of(groups, num_parts, skew)
    assert np.random.get_state()[1].tolist() == before


def test_parts_of_a_known_seed_stay_what_they_are():
    """Clients with other versions of NumPy have to come to the same ones."""
    assert parts_of([0, 0, 0, 0, 1, 1, 1, 1], 2, LabelSkew(0.5, seed=3)) == [[7, 6, 5, 1], [4, 2, 0, 3]]


def _shares(skew, labels=2, rows=3000, num_parts=3):
    """How often label 0 stands in each part."""
    of_rows = [row % labels for row in range(rows)]
    return [sum(of_rows[row] == 0 for row in part) / len(part) for part in parts_of(of_rows, num_parts, skew)]


def test_a_large_concentration_leaves_every_part_the_distribution_of_all_rows():
    for seed in range(5):
        assert all(abs(share - 0.5) < 0.06 for share in _shares(LabelSkew(1e6, seed)))


def test_a_small_concentration_gives_the_first_rows_of_a_part_one_label():
    """Half of the rows are dealt before any label can have run out."""
    of_rows = [row % 2 for row in range(3000)]
    for seed in range(5):
        for part in parts_of(of_rows, 3, LabelSkew(1e-6, seed)):
            assert len({of_rows[row] for row in part[:500]}) == 1


def test_shares_spread_as_the_dirichlet_distribution_does():
    """With p = (1/2, 1/2) the share of label 0 is Beta(a/2, a/2): its variance is 1 / (4 (a + 1)).

    Only the first rows of each part are looked at: later ones depend on what is left.
    """
    of_rows = [row % 2 for row in range(1000)]
    concentration = 2.0
    found = []
    for seed in range(200):
        for part in parts_of(of_rows, 2, LabelSkew(concentration, seed)):
            first = part[:150]
            found.append(np.mean([of_rows[row] for row in first]))
    assert np.mean(found) == pytest.approx(0.5, abs=0.04)
    assert np.var(found) == pytest.approx(1 / (4 * (concentration + 1)), rel=0.2)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=80))
def test_bins_follow_the_order_of_values_and_equal_values_share_one(values):
    bins = groups_of_values(values)
    assert max(bins) < NUM_BINS
    pairs = sorted(zip(values, bins, strict=True))
    assert [bin_ for _, bin_ in pairs] == sorted(bins)
    assert len({value for value, _ in pairs}) == len(set(pairs))


def test_bins_of_distinct_values_hold_equally_many():
    assert np.bincount(groups_of_values([float(value) for value in range(100)])).tolist() == [20] * NUM_BINS


@pytest.mark.parametrize("task", ["sst2", "stsb"])
def test_a_clients_training_rows_are_its_part_and_its_evaluation_rows_its_shard(task):
    source, skew = DataConfig(builtin=task), LabelSkew(0.5, seed=1)
    whole = load_task_data(PRESETS[task], source)
    parts = [load_task_data(PRESETS[task], source, (k, 3), skew) for k in (1, 2, 3)]
    texts = [text for part in parts for text in part.train.texts]
    assert sorted(texts) == sorted(whole.train.texts)
    means = [np.mean(part.train.labels) for part in parts]
    assert max(means) - min(means) > 0.2
    assert [part.validation for part in parts] == [
        load_task_data(PRESETS[task], source, (k, 3)).validation for k in (1, 2, 3)
    ]


def test_more_parts_than_rows_are_refused_with_task_and_numbers(tmp_path):
    for split in ("train", "dev"):
        (tmp_path / f"{split}.tsv").write_text("sentence\tlabel\na\t1\nb\t0\n")
    source = DataConfig(train=str(tmp_path / "train.tsv"), validation=str(tmp_path / "dev.tsv"))
    with pytest.raises(DataError, match="sst2: partition: 3 parts of 2 rows: at least one would be empty"):
        load_task_data(PRESETS["sst2"], source, (1, 3), LabelSkew(0.5))


CLIENTS = """
tasks: {{sst2: {{}}}}
clients:
  - {{client_id: a, task: sst2, shard: 1/2, partition: {{dirichlet: 0.5}}}}
  - {{client_id: b, task: sst2, {second}}}
"""


@pytest.mark.parametrize(
    "second",
    [
        "shard: 2/2",
        "shard: 2/2, partition: {dirichlet: 0.6}",
        "shard: 2/2, partition: {dirichlet: 0.5, seed: 1}",
        "shard: 2/3, partition: {dirichlet: 0.5}",
    ],
)
def test_clients_of_a_task_that_would_not_take_parts_of_the_same_whole_are_refused(second, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(CLIENTS.format(second=second))
    with pytest.raises(
        ConfigError, match=r"all clients of 'sst2' need the same `partition` and the same N.*'a' and 'b' differ"
    ):
        configuration.load(path)


def test_a_partition_that_is_none_is_an_error_that_names_its_key(tmp_path):
    path = tmp_path / "c.yaml"
    for second, message in (
        (
            "shard: 2/2, partition: {dirichlet: 0}",
            r"clients\[1\]\.partition\.dirichlet: input should be greater than 0",
        ),
        ("shard: 2/2, partition: {dirichlett: 1}", r"unknown key; did you mean 'dirichlet'"),
        ("shard: 2/2, partition: {seed: 1}", r"clients\[1\]\.partition\.dirichlet: required, but not given"),
    ):
        path.write_text(CLIENTS.format(second=second))
        with pytest.raises(ConfigError, match=message):
            configuration.load(path)
