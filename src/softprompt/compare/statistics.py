"""Means over seeds, and differences from the best baseline with confidence intervals."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import bootstrap

from softprompt.compare.results import RunResult
from softprompt.errors import DataError

_LEVEL = 0.95
_RESAMPLES = 9999


@dataclass(frozen=True)
class Difference:
    """The difference in score between a prompt and the baseline with the highest score.

    Args:
        baseline: its name.
        mean: the difference, -1 to 1; above 0 if the prompt is better.
        low: the lower end of the 95 % interval, by a paired bootstrap over test rows.
        high: the upper end.
    """

    baseline: str
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Summary:
    """The results of a variant over its seeds.

    Args:
        variant: its name.
        seeds: the number of results.
        mean: of the scores on the test rows, 0 to 1.
        spread: their standard deviation over seeds; None for a single result.
        difference: from the best baseline; None for a baseline, and without baselines.
        results: one for each seed.
    """

    variant: str
    seeds: int
    mean: float
    spread: float | None
    difference: Difference | None
    results: tuple[RunResult, ...]

    @property
    def is_baseline(self) -> bool:
        """Whether it is a baseline, which prompts are compared with."""
        return self.results[0].is_baseline


def summarize_variants(results: Sequence[RunResult]) -> list[Summary]:
    """One summary for each variant, in the order of their first results.

    Args:
        results: of variants and baselines, on the same test rows.

    Raises:
        DataError: the results are not of the same test rows.
    """
    rows = {len(result.scores) for result in results}
    if len(rows) > 1:
        msg = f"the results are of {sorted(rows)} test rows. Compare results on the same rows."
        raise DataError(msg)
    by_variant: dict[str, list[RunResult]] = {}
    for result in results:
        by_variant.setdefault(result.variant, []).append(result)
    baselines = [group for group in by_variant.values() if group[0].is_baseline]
    best = max(baselines, key=_mean, default=None)
    return [_summarize(group, best) for group in by_variant.values()]


def _mean(results: Sequence[RunResult]) -> float:
    return statistics.fmean(result.score for result in results)


def _summarize(results: Sequence[RunResult], baseline: Sequence[RunResult] | None) -> Summary:
    scores = [result.score for result in results]
    if results[0].is_baseline:
        baseline = None
    return Summary(
        variant=results[0].variant,
        seeds=len(results),
        mean=_mean(results),
        spread=statistics.stdev(scores) if len(scores) > 1 else None,
        difference=None if baseline is None else _compare(results, baseline),
        results=tuple(results),
    )


def _compare(results: Sequence[RunResult], baseline: Sequence[RunResult]) -> Difference:
    """The difference, with the percentile interval of a paired bootstrap over test rows.

    The value of a row is its mean score over the seeds of the prompt, minus that of the baseline
    (Efron & Tibshirani 1993).
    """
    ours, theirs = (np.mean([r.scores for r in group], axis=0) for group in (results, baseline))
    by_row = ours - theirs
    mean, name = float(by_row.mean()), baseline[0].variant
    if len(by_row) < 2 or np.ptp(by_row) == 0:  # noqa: PLR2004  # nothing to resample
        return Difference(name, mean, mean, mean)
    result = bootstrap(
        (by_row,),
        np.mean,
        n_resamples=_RESAMPLES,
        confidence_level=_LEVEL,
        method="percentile",
        rng=np.random.default_rng(0),
        batch=100,
    )
    interval = result.confidence_interval
    return Difference(name, mean, float(interval.low), float(interval.high))
