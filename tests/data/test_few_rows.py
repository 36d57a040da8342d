"""Intervals of shares, against the equation that Wilson solves and against scipy."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from softprompt.data.few_rows import MIN_ROWS, compute_wilson_interval, describe_few_rows
from softprompt.errors import DataError


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_is_scipys_and_solves_wilsons_equation(pair) -> None:
    right, rows = pair
    low, high = compute_wilson_interval(right / rows, rows)
    wanted = binomtest(right, rows).proportion_ci(0.95, method="wilson")
    assert (low, high) == pytest.approx((wanted.low, wanted.high), abs=1e-9)
    for end in (low, high):  # the score test at the end of the interval is exactly at 5 %
        if 1e-9 < end < 1 - 1e-9:
            distance = abs(right / rows - end) / math.sqrt(end * (1 - end) / rows)
            assert distance == pytest.approx(1.959964, abs=1e-4)


def test_one_row_says_next_to_nothing() -> None:
    low, high = compute_wilson_interval(1.0, 1)
    assert (round(low, 2), high) == (0.21, 1.0)


@pytest.mark.parametrize(
    ("counts", "named"),
    [
        ({"train": 10, "validation": 1, "test": 1}, "1 validation row to choose the best prompt"),
        ({"train": 900, "validation": MIN_ROWS, "test": MIN_ROWS - 1}, "few rows: 49 test rows to"),
        ({"train": 900, "validation": 12}, "few rows: 12 validation rows to choose the best"),
        ({"train": 3}, None),
        ({"train": 900, "validation": MIN_ROWS, "test": 900}, None),
    ],
)
def test_few_rows_are_named_with_their_interval(counts, named) -> None:
    messages = [*describe_few_rows(counts)]
    assert len(messages) == (named is not None)
    if named is not None:
        assert named in messages[0]
        assert "(95 % interval)" in messages[0]


def test_the_example_is_the_interval_of_the_smallest_split() -> None:
    (message,) = describe_few_rows({"validation": 40, "test": 12})
    assert (
        "With 9 of 12 answers right, the share of right answers is between 47% and 91%" in message
    )


def test_no_rows_have_no_interval() -> None:
    with pytest.raises(DataError, match="no rows to score"):
        compute_wilson_interval(0.5, 0)
