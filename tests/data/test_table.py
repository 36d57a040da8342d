# A message is easiest to check on one line.
# ruff: noqa: E501

import datasets
import pytest

from softprompt.data.table import check_labels, collect_labels
from softprompt.errors import DataError


def rows(*labels):
    return datasets.Dataset.from_dict({"label": list(labels)})


def test_labels_are_distinct_and_sorted():
    assert collect_labels(rows("rotten", "fresh", "rotten"), "label") == ("fresh", "rotten")


@pytest.mark.parametrize(
    ("values", "labels"), [([1, 0, 1], ("0", "1")), ([True, False], ("False", "True"))]
)
def test_numbers_become_their_text(values, labels):
    assert collect_labels(rows(*values), "label") == labels


def message(call, *args, **kwargs):
    with pytest.raises(DataError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


def test_one_class_only():
    assert message(collect_labels, rows("fresh", "fresh", "fresh"), "label") == (
        "all 3 rows of the training data have the label 'fresh' in column 'label'. "
        "At least two different labels are needed."
    )


def test_labels_that_differ_only_in_whitespace():
    data = rows("positive", "positive ", "negative", "positive")
    assert message(collect_labels, data, "label") == (
        "labels in column 'label' differ only in whitespace: "
        "'positive' (2 rows), 'positive ' (1 row). Write all of them as 'positive'."
    )


def test_whitespace_is_reported_before_one_class():
    assert "only in whitespace" in message(collect_labels, rows("a", "a "), "label")


def test_a_missing_label():
    assert message(collect_labels, rows("a", None, "b"), "label").startswith(
        "1 row has no value in column 'label' of the training data (3 rows); the first is row 1"
    )


def test_a_label_unseen_in_training():
    data = rows("fresh", "stale", "odd", "stale")
    assert message(check_labels, data, "label", known=["fresh", "rotten"], split="validation") == (
        "column 'label' of the validation data has labels that the training data does not have: "
        "'odd' (1 row), 'stale' (2 rows). Known labels: fresh, rotten. "
        "Correct them, leave those rows out, or split the data again."
    )


def test_known_labels_need_not_all_occur():
    assert check_labels(rows(1, 1), "label", known=["0", "1"], split="test") is None


def test_a_missing_label_column_suggests_a_similar_name():
    text = message(collect_labels, rows("a", "b"), "lable")
    assert (
        text
        == "the training data has no column 'lable'. It has: label. Did you mean 'label' for 'lable'?"
    )
