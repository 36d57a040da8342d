"""Rows in two splits, against the sets of their texts."""

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from softprompt.data.duplicates import describe_splits, drop_shared_rows, find_shared_rows
from softprompt.errors import DataError

WORDS = st.sampled_from(
    ["a film", "A Film", " a film ", "a  film", "dull", "Dull", "new", "b\x1fc"]
)
ROWS = st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=8)
SPLITS = ("train", "validation", "test")


def make_tables(*splits: list[tuple[str, ...]]) -> dict[str, Dataset]:
    return {
        name: Dataset.from_list([{"first": row[0], "second": row[-1]} for row in rows])
        for name, rows in zip(SPLITS, splits, strict=False)
    }


def fold(row: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(" ".join(text.split()).casefold() for text in row)


@given(ROWS, ROWS, ROWS)
def test_shared_rows_are_those_of_the_sets(train, validation, test) -> None:
    splits = {"train": train, "validation": validation, "test": test}
    found = {
        (s.split, s.other): s
        for s in find_shared_rows(make_tables(*splits.values()), ("first", "second"))
    }
    for split, other in (("validation", "train"), ("test", "train"), ("test", "validation")):
        known, exact = {*map(fold, splits[other])}, {*splits[other]}
        shared = [index for index, row in enumerate(splits[split]) if fold(row) in known]
        pair = found.get((split, other))
        assert (pair is None) == (not shared)
        if pair is not None:
            assert (pair.count, pair.first, pair.rows) == (
                len(shared),
                shared[0],
                len(splits[split]),
            )
            assert pair.identical == sum(splits[split][index] in exact for index in shared)


@given(ROWS, ROWS, ROWS)
def test_nothing_is_shared_after_dropping_and_the_test_rows_stay(train, validation, test) -> None:
    tables, fields = make_tables(train, validation, test), ("first", "second")
    later, wanted = set[tuple[str, ...]](), dict[str, list[tuple[str, ...]]]()
    for name, rows in zip(SPLITS[::-1], (test, validation, train), strict=True):
        wanted[name] = [row for row in rows if fold(row) not in later]
        later |= {*map(fold, rows)}
    if not all(wanted.values()):
        with pytest.raises(DataError, match=r"data.drop_duplicates would leave none"):
            drop_shared_rows(tables, fields)
        return
    left = drop_shared_rows(tables, fields)
    assert [*left] == [*SPLITS]
    assert {n: [(r["first"], r["second"]) for r in t] for n, t in left.items()} == wanted
    assert find_shared_rows(left, fields) == ()
    assert left["test"] is tables["test"]


def test_other_columns_do_not_count() -> None:
    tables = make_tables([("a", "x")], [("A ", "y")])
    assert len(find_shared_rows(tables, ("first",))) == 1
    assert find_shared_rows(tables, ("first", "second")) == ()
    assert find_shared_rows(tables, ("third",)) == ()
    assert drop_shared_rows(tables, ()) == tables


def test_the_sentence_has_the_counts() -> None:
    rows = [("new",)] * 60
    tables = make_tables(rows, [*[(f"v{i}",) for i in range(58)], ("new",), (" NEW",)])
    (message,) = describe_splits({name: tables[name] for name in reversed(tables)}, ("first",))
    assert message.startswith(
        "2 of 60 validation rows have their text in the train data too, 1 of them in another case "
        "or spacing; the first is row 58 (counted from 0). "
    )
    assert "data.drop_duplicates = true" in message
