"""Means, spreads and differences are those of the numbers themselves."""

import math
import statistics

import numpy as np
import pytest
from scipy.stats import norm

from softprompt.compare import Cost, RunResult, format_markdown, summarize_variants
from softprompt.compare.results import Failed, SearchResult, as_line, from_line
from softprompt.errors import DataError


def result(variant: str, seed: int | None, right: str, **more) -> RunResult:
    scores = tuple(float(digit) for digit in right)
    return RunResult(variant, seed, scores, **{"is_baseline": seed is None} | more)


def test_mean_and_spread_over_seeds():
    summaries = summarize_variants(
        [
            result("majority", None, "1100"),
            result("a", 1, "1110", rate=0.1),
            result("b", 1, "1000", rate=0.1),
            result("a", 2, "1111", rate=0.1),
        ]
    )
    assert [s.variant for s in summaries] == ["majority", "a", "b"]
    baseline, a, b = summaries
    assert (baseline.mean, baseline.spread, baseline.difference) == (0.5, None, None)
    assert a.mean == pytest.approx(0.875)
    assert a.spread == pytest.approx(statistics.stdev([0.75, 1.0]))
    assert a.difference.mean == pytest.approx(0.375)
    assert b.difference.mean == pytest.approx(-0.25)
    assert baseline.is_baseline
    assert not a.is_baseline


def test_the_difference_is_from_the_best_baseline():
    summaries = summarize_variants(
        [
            result("majority", None, "1000"),
            result("hard prompt", None, "1110"),
            result("a", 1, "1111", rate=0.1),
        ]
    )
    assert summaries[-1].difference.baseline == "hard prompt"
    assert summarize_variants([result("a", 1, "1111", rate=0.1)])[0].difference is None


def test_the_interval_is_the_normal_one_where_rows_are_many():
    """For a mean of independent rows the percentile interval is ±1.96 standard errors."""
    generator = np.random.default_rng(3)
    ours, theirs = (generator.random(2000) < share for share in (0.8, 0.7))
    summaries = summarize_variants(
        [
            RunResult("baseline", None, tuple(theirs.astype(float)), is_baseline=True),
            RunResult("a", 1, tuple(ours.astype(float)), rate=0.1),
        ]
    )
    difference = summaries[1].difference
    by_row = ours.astype(float) - theirs
    half = norm.ppf(0.975) * by_row.std(ddof=1) / math.sqrt(len(by_row))
    assert difference.low == pytest.approx(by_row.mean() - half, abs=0.002)
    assert difference.high == pytest.approx(by_row.mean() + half, abs=0.002)


def test_pairing_matters():
    """Both are wrong on the same rows, so the difference is certain."""
    summaries = summarize_variants(
        [result("baseline", None, "1100" * 9), result("a", 1, "1100" * 9)]
    )
    assert (summaries[1].difference.low, summaries[1].difference.high) == (0.0, 0.0)


def test_a_baseline_with_seeds_counts_by_its_mean():
    """By hand: the mean of 3/4 and 1/2, against a baseline of 1/2 and 1, whose mean is 3/4."""
    summaries = summarize_variants(
        [
            result("tuned", 1, "1100", is_baseline=True),
            result("tuned", 2, "1111", is_baseline=True),
            result("majority", None, "1100"),
            result("a", 1, "1110"),
            result("a", 2, "1010"),
        ]
    )
    assert summaries[-1].difference.baseline == "tuned"
    assert summaries[-1].difference.mean == pytest.approx(0.625 - 0.75)
    assert summaries[0].difference is None


def test_results_of_other_rows_are_not_compared():
    with pytest.raises(DataError, match=r"of \[2, 3\] test rows"):
        summarize_variants([result("a", 1, "11"), result("b", 1, "111")])


@pytest.mark.parametrize(
    "event",
    [
        result("a", 3, "0110", rate=0.1, cost=Cost(7, 90, 9, 1.5, 4, 2.5, 1000), run="a-3"),
        result("majority", None, "0"),
        RunResult("a", 3, (0.25, 1.0), metrics={"chrf": 62.5}),
        SearchResult("a", {0.3: -0.5, 1.0: -0.25}, 1.0, 0.1, "m"),
        SearchResult("a", {0.3: -0.5, 1.0: -0.25}, 1.0, 0.1, "m", 60.0, 240),
        SearchResult("a", {}, 1.0, 0.1, "m"),
        Failed("a", 3, "no"),
    ],
)
def test_an_event_is_written_and_read(event):
    assert from_line(as_line(event)) == event


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({}, "unknown event None"),
        ({"event": "run_result"}, r"the keys of the event 'run_result' are not valid \('scores'\)"),
        ({"event": "failed", "variant": "a"}, "event 'failed' are not valid .*'seed' and 'error'"),
    ],
)
def test_a_damaged_line_is_refused(line, message):
    with pytest.raises(DataError, match=message):
        from_line(line)


def test_the_table_has_the_best_first():
    table = format_markdown(
        summarize_variants(
            [
                result("majority", None, "1100"),
                result("a", 1, "1110", rate=0.1, cost=Cost(1234, 20_000, 5_100, 2.0)),
                result("a", 2, "1111", rate=0.1, cost=Cost(1234, 20_000, 5_100, 4.0)),
            ]
        ),
        measure="accuracy",
    ).splitlines()
    assert table[2].startswith("| a | 87.5 ± 17.7 % | 2 | +37.5 (")
    assert "| 1,234 | 6.170% | 5.1 kB | 3 |" in table[2]
    assert table[3].startswith("| *majority* | 50.0 % |")
