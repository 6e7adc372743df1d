"""Rows by column, with the class names that their source declares."""

import datasets
import pytest

from fedmtl_client.tables import Table

NO_YES = datasets.ClassLabel(names=["no", "yes"])


@pytest.mark.parametrize(
    ("values", "feature", "names"),
    [
        ([0, 1, -1], NO_YES, ("no", "yes")),
        ([[0, 1], [1], []], datasets.List(NO_YES), ("no", "yes")),
        ([0, 1, -1], datasets.Value("int64"), None),
        ([[0, 1], [1], []], datasets.List(datasets.Value("int64")), None),
        ([{"a": 0}] * 3, {"a": NO_YES}, None),
        ([[{"a": 0}]] * 3, datasets.List({"a": NO_YES}), None),
    ],
)
def test_a_table_has_the_class_names_that_a_dataset_declares_for_a_column_or_its_lists(values, feature, names):
    features = datasets.Features({"text": datasets.Value("string"), "label": feature})
    table = Table.of(datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": values}, features=features))
    assert table.columns == {"text": ["a", "b", "c"], "label": values}
    assert table.class_names == ({"label": names} if names else {})


def test_only_the_wanted_columns_are_read_and_all_that_there_are_are_named():
    table = Table.of(
        datasets.Dataset.from_dict({"note": ["x"], "label": [1], "text": ["a"]}), ["text", "label", "kind"]
    )
    assert (table.columns, table.available) == ({"label": [1], "text": ["a"]}, ["note", "label", "text"])
    assert Table.of(datasets.Dataset.from_dict({"note": ["x"]}), ["text"]).columns == {}
