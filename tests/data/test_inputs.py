"""Rows of every supported type are read as the same rows."""

import itertools
import math
import re
from collections import UserDict
from decimal import Decimal
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from softprompt.data.inputs import iterate_rows, to_table
from softprompt.errors import DataError

ROWS = [
    {"text": "Moving and funny.", "label": "good", "stars": 4, "share": 0.5, "seen": True},
    {"text": "Dull.", "label": "bad", "stars": 1, "share": 0.25, "seen": False},
    {"text": "", "label": "bad", "stars": 0, "share": 1.0, "seen": True},
]
TEXTS = [row["text"] for row in ROWS]


def classes():
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["good", "bad"]),
            "stars": datasets.Value("int64"),
            "share": datasets.Value("float64"),
            "seen": datasets.Value("bool"),
        }
    )
    numbered = [row | {"label": ["good", "bad"].index(row["label"])} for row in ROWS]
    return datasets.Dataset.from_list(numbered, features=features)


def columns():
    return {name: [row[name] for row in ROWS] for name in ROWS[0]}


def polars():
    return pytest.importorskip("polars")


class Foreign:
    """A table of a library that is not known, with Arrow's stream interface."""

    def __arrow_c_stream__(self, requested_schema=None):
        return pa.table(columns()).__arrow_c_stream__(requested_schema)


SHAPES = {
    "list": lambda: ROWS,
    "tuple": lambda: tuple(ROWS),
    "generator": lambda: (row for row in ROWS),
    "own mappings": lambda: [UserDict(row) for row in ROWS],
    "numpy scalars": lambda: [
        {k: v if isinstance(v, str) else np.array([v])[0] for k, v in row.items()} for row in ROWS
    ],
    "pandas": lambda: pd.DataFrame(ROWS),
    "pandas with an index": lambda: pd.DataFrame(ROWS, index=[7, 7, 9]),
    "pandas of categories": lambda: pd.DataFrame(ROWS).astype({"label": "category"}),
    "pandas of nullable types": lambda: pd.DataFrame(ROWS).convert_dtypes(),
    "rows of pandas": lambda: [row for _, row in pd.DataFrame(ROWS).iterrows()],
    "polars": lambda: polars().DataFrame(ROWS),
    "polars of categories": lambda: polars().DataFrame(
        ROWS, schema_overrides={"label": polars().Categorical}
    ),
    "datasets": lambda: datasets.Dataset.from_list(ROWS),
    "datasets of classes": classes,
    "datasets as numpy": lambda: classes().with_format("numpy"),
    "datasets chosen": lambda: classes().select([2, 1, 0]).select([2, 1, 0]),
    "datasets stream": lambda: classes().to_iterable_dataset(),
    "pyarrow": lambda: pa.table(columns()),
    "pyarrow batch": lambda: pa.RecordBatch.from_pylist(ROWS),
    "pyarrow in pieces": lambda: pa.concat_tables(
        [pa.table(columns())[:1], pa.table(columns())[1:]]
    ),
    "foreign": Foreign,
}
COLUMNS = {
    "list": lambda: TEXTS,
    "generator": lambda: (text for text in TEXTS),
    "numpy": lambda: np.array(TEXTS),
    "numpy objects": lambda: np.array(TEXTS, dtype=object),
    "pandas": lambda: pd.Series(TEXTS),
    "pandas of a frame": lambda: pd.DataFrame(ROWS)["text"],
    "polars": lambda: polars().Series(TEXTS),
    "datasets": lambda: datasets.Dataset.from_list(ROWS)["text"],
    "pyarrow": lambda: pa.array(TEXTS),
    "pyarrow in pieces": lambda: pa.chunked_array([TEXTS[:1], TEXTS[1:]]),
}


def kinds(rows):
    return [{name: type(value) for name, value in row.items()} for row in rows]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_type_has_the_rows_of_the_list(shape):
    found = list(iterate_rows(SHAPES[shape](), fields=["text"]))
    assert found == ROWS
    assert kinds(found) == kinds(ROWS)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_type_makes_the_same_table(shape):
    table = to_table(SHAPES[shape]())
    assert table.to_list() == ROWS
    assert kinds(table) == kinds(ROWS)


@pytest.mark.parametrize("shape", COLUMNS)
def test_texts_are_values_of_the_only_field(shape):
    found = list(iterate_rows(COLUMNS[shape](), fields=["text", "text"]))
    assert found == [{"text": text} for text in TEXTS]
    assert {type(row["text"]) for row in found} == {str}


@pytest.mark.parametrize("text", ["Dull.", np.str_("Dull.")])
def test_a_text_is_one_row(text):
    (row,) = iterate_rows(text, fields=["review"])
    assert row == {"review": "Dull."}
    assert type(row["review"]) is str


def test_a_mapping_is_one_row():
    assert list(iterate_rows(ROWS[0])) == [ROWS[0]]
    assert list(iterate_rows(pd.DataFrame(ROWS).iloc[0], fields=["text"])) == [ROWS[0]]
    assert to_table(ROWS[1]).to_list() == [ROWS[1]]


def test_texts_and_mappings_may_be_mixed():
    assert list(iterate_rows(["a", {"text": "b"}], fields=["text"])) == [
        {"text": "a"},
        {"text": "b"},
    ]


MISSING = {
    "None": lambda: [{"text": None, "stars": 1}],
    "nan": lambda: [{"text": math.nan, "stars": 1}],
    "numpy": lambda: [{"text": np.float32("nan"), "stars": np.int8(1)}],
    "not a time": lambda: [{"text": np.datetime64("NaT"), "stars": 1}],
    "decimal": lambda: [{"text": Decimal("NaN"), "stars": 1}],
    "pandas.NA": lambda: [{"text": pd.NA, "stars": 1}],
    "pandas.NaT": lambda: [{"text": pd.NaT, "stars": 1}],
    "pandas object": lambda: pd.DataFrame({"text": pd.Series([None], dtype=object), "stars": [1]}),
    "pandas text": lambda: pd.DataFrame({"text": pd.Series([None], dtype="string"), "stars": [1]}),
    "pandas number": lambda: pd.DataFrame({"text": [math.nan], "stars": [1]}),
    "pandas category": lambda: pd.DataFrame({"text": pd.Categorical([None], ["a"]), "stars": [1]}),
    "polars": lambda: polars().DataFrame({"text": [None], "stars": [1]}),
    "polars nan": lambda: polars().DataFrame({"text": [math.nan], "stars": [1]}),
    "pyarrow": lambda: pa.table({"text": pa.array([None], pa.string()), "stars": [1]}),
    "class": lambda: datasets.Dataset.from_dict(
        {"text": [-1], "stars": [1]},
        datasets.Features(
            {"text": datasets.ClassLabel(names=["a"]), "stars": datasets.Value("int64")}
        ),
    ),
}


@pytest.mark.parametrize("shape", MISSING)
def test_missing_values_are_none(shape):
    assert list(iterate_rows(MISSING[shape]())) == [{"text": None, "stars": 1}]


@pytest.mark.parametrize("make", [pd.Series, pa.array, lambda cells: polars().Series(cells)])
def test_a_missing_text_of_a_column_is_none(make):
    found = list(iterate_rows(make(["a", None]), fields=["text"]))
    assert found == [{"text": "a"}, {"text": None}]


def test_a_field_that_a_row_lacks_is_none_in_the_table():
    assert to_table([{"a": 1}, {"b": "x"}]).to_list() == [
        {"a": 1, "b": None},
        {"a": None, "b": "x"},
    ]


def test_a_stream_is_read_lazily():
    read = []
    stream = ({"n": n} for n in itertools.count() if read.append(n) is None)
    assert list(itertools.islice(iterate_rows(stream), 2)) == [{"n": 0}, {"n": 1}]
    assert read == [0, 1]


def test_column_names_become_text():
    assert list(iterate_rows(pd.DataFrame([["a", "b"]]))) == [{"0": "a", "1": "b"}]


SPLITS = {"train": ROWS, "test": ROWS}
REFUSED = {
    "number": (lambda: 7, "of type int. Give one text, one mapping of fields, a list"),
    "nothing": (lambda: None, "of type NoneType. Give one text"),
    "bytes": (lambda: b"Dull.", "of type bytes. Decode them to a text first"),
    "set": (lambda: {"Dull."}, "of type set. A set has no order for its answers. Give sorted"),
    "path": (lambda: Path("reviews.csv"), "Read the file first, for example with pandas.read_csv"),
    "scalar": (lambda: np.array("Dull."), "ndarray. Give one text"),
    "lazy polars": (lambda: polars().LazyFrame(ROWS), "LazyFrame. Give rows.collect()"),
    "splits": (
        lambda: datasets.DatasetDict({"train": classes(), "test": classes()}),
        "(train, test), but one table is needed here. Give one of them, such as rows['train']",
    ),
    "lists of splits": (lambda: SPLITS, "mapping of tables (train, test)"),
    "frames of splits": (lambda: {"test": pd.DataFrame(ROWS)}, "mapping of tables (test)"),
    "columns": (
        lambda: {"text": ["a", "b"], "label": ["x", "y"]},
        "(text, label), but a mapping is one row. Give datasets.Dataset.from_dict(rows)",
    ),
    "arrays": (lambda: {"text": np.array(["a", "b"])}, "mapping of columns (text)"),
    "numbers": (lambda: [1, 2], "row 0 (counted from 0) is of type int, but a row is a mapping"),
    "none within": (lambda: ["a", None], "row 1 (counted from 0) is of type NoneType"),
    "bytes within": (lambda: [b"a"], "row 0 (counted from 0) is of type bytes"),
    "pairs": (lambda: [("a", "b")], '{"text": …}, or a text'),
    "table of numbers": (lambda: np.ones((2, 2)), "row 0 (counted from 0) is of type ndarray"),
    "equal names": (
        lambda: pd.DataFrame([["a", "b"]], columns=["text", "text"]),
        "two columns called 'text'. Rename one of them",
    ),
    "equal names of arrow": (
        lambda: pa.table([["a"], ["b"]], names=["text", "text"]),
        "two columns called 'text'. Rename one of them",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_types_are_refused(case):
    make, said = REFUSED[case]
    with pytest.raises(DataError) as caught:
        list(iterate_rows(make(), fields=["text"]))
    assert said in str(caught.value)


@pytest.mark.parametrize("given", [7, b"a", {"text": ["a"]}, pd.Series(["a"])])
def test_a_wrong_type_is_refused_at_the_call(given):
    with pytest.raises(DataError):
        iterate_rows(given, fields=["one", "two"])


def test_a_text_needs_a_single_field():
    said = (
        "a row has the fields one, two, but a single text was given. "
        'Give all of them: {"one": …, "two": …}.'
    )
    with pytest.raises(DataError, match=f"^{re.escape(said)}$"):
        list(iterate_rows("a", fields=["one", "two"]))
    with pytest.raises(DataError, match=r"several fields .one, two.. Give a data frame"):
        iterate_rows(pd.Series(["a"]), fields=["one", "two"])
    with pytest.raises(DataError, match=r"row 0 .counted from 0. is a text, which has no column"):
        to_table(["a"])
    with pytest.raises(DataError, match=r"rows need names for their columns. Give a data frame\."):
        to_table(pd.Series(["a"]))


@pytest.mark.parametrize("rows", [[], pd.DataFrame({"text": []}), classes().select([])])
def test_a_table_without_rows_is_refused(rows):
    with pytest.raises(DataError, match=r"the data has no rows. Give at least one"):
        to_table(rows)


def test_a_column_of_mixed_types_is_refused():
    rows = [{"label": 1}, {"label": "good"}]
    with pytest.raises(DataError, match=r"column 'label' of the data mixes int \(row 0\), str"):
        to_table(rows)


@pytest.mark.parametrize("make", [list, pd.DataFrame, classes, datasets.Dataset.from_list])
def test_only_the_requested_columns_are_returned(make):
    given = make() if make is classes else make(ROWS)
    found = to_table(given, columns=["label", "stars", "label"]).to_list()
    assert found == [{"label": row["label"], "stars": row["stars"]} for row in ROWS]


def test_other_columns_may_have_any_values():
    rows = [{"text": "a", "more": object()}, {"text": "b", "more": {3, 4}}]
    assert to_table(rows, columns=["text"]).to_list() == [{"text": "a"}, {"text": "b"}]


def test_missing_columns_and_values_are_refused():
    with pytest.raises(DataError, match=r"It has: text, txet\. Did you mean 'text' for 'texts'\?"):
        to_table([{"text": "a"}, {"txet": "a"}], columns=["texts"])
    with pytest.raises(DataError, match=r"1 row has no value in column 'text' of the film data"):
        to_table(pd.DataFrame({"text": ["a", None]}), columns=["text"], where="the film data")
