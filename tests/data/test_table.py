# A message is easiest to check on one line.
# ruff: noqa: E501

import math
import tomllib
from collections import Counter

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softprompt.data.labels import check_labels, collect_labels, describe_labels
from softprompt.data.table import list_text_columns, map_values, to_text
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


def test_a_number_is_the_same_label_whatever_its_column_has():
    """2 in a column with 2.5 or a gap is a float, and still the label 2."""
    known = collect_labels(rows(1, 2, 2.5), "label")
    assert known == ("1", "2", "2.5")
    check_labels(rows(1, 2), "label", known=known, split="test")
    check_labels(rows("2", "2.5"), "label", known=known, split="test")
    with pytest.raises(DataError, match=r"'2\.50' .1 row"):
        check_labels(rows("2.50"), "label", known=known, split="test")


@pytest.mark.parametrize("value", [None, math.nan])
def test_a_missing_value_has_no_text(value):
    with pytest.raises(DataError, match="no value"):
        to_text(value)


@given(st.one_of(st.integers(), st.floats(allow_nan=False), st.booleans()))
def test_the_text_of_a_number_stands_for_it(value):
    text = to_text(value)
    assert text == str(value) if isinstance(value, bool) else float(text) == float(value)
    assert to_text(text) == text


def test_columns_of_numbers_are_not_texts():
    columns = {
        "text": ["a", "1"],
        "n": ["1", None],
        "x": ["1e3", ".5"],
        "code": ["007", "+1"],
        "gaps": [None, None],
        "i": [1, 2],
    }
    assert list_text_columns(datasets.Dataset.from_dict(columns)) == ["text"]


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
        "'positive' (2 rows), 'positive ' (1 row). Write all of them as 'positive', or join them in "
        'the recipe: data.value_map = { "label" = { "negative" = "negative", '
        '"positive" = "positive", "positive " = "positive" } }'
    )


VARIANTS = {
    "case": ["Good", "good", "good"],
    "inner space": ["very  good", "very good", "very good"],
    "non-breaking space": ["very\u00a0good", "very good", "very good"],
    "accent": ["re\u0301el", "r\u00e9el", "r\u00e9el"],
    "sharp s": ["GROSS", "gro\u00df", "gro\u00df"],
    "column": ["A", "a", "a"],
}


@pytest.mark.parametrize("kind", VARIANTS)
@pytest.mark.parametrize("column", ["label", "my label"])
def test_labels_that_differ_in_case_or_spacing_are_told_with_the_map_that_joins_them(kind, column):
    first, second, _ = labels = VARIANTS[kind]
    table = datasets.Dataset.from_dict({column: [*labels, "other"], "text": list("abcd")})
    assert len(collect_labels(table, column)) == 3
    (note,) = describe_labels(Counter(table[column]), column)
    assert "differ only in case or spacing: " in note
    assert f"{first!r} (1 row)" in note
    assert f"{second!r} (2 rows)" in note
    line = note.partition("join them in the recipe: ")[2]
    value_map = tomllib.loads(line)["data"]["value_map"]
    assert collect_labels(map_values(table, value_map, where="t"), column) == tuple(
        sorted(["other", second])
    )


def test_labels_that_look_like_missing_values_are_told():
    (note,) = describe_labels({"nan": 3, "good": 5, "N/A": 1}, "label")
    assert note.startswith(
        "labels in column 'label' look like missing values: 'nan' (3 rows), 'N/A'"
    )
    assert describe_labels({"good": 5, "better": 1}, "label") == []


def test_of_many_labels_only_the_changes_are_listed():
    counts = {f"l{n}": 1 for n in range(300)} | {"L7": 1}
    (note,) = describe_labels(counts, "label")
    assert note.endswith('{ "label" = { "l7" = "L7", and every other label as it is } }')


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
