"""What outcomes say together: means over seeds, and differences with their uncertainty."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import bootstrap

from softprompt.compare.outcome import Outcome
from softprompt.errors import DataError

_LEVEL = 0.95
_RESAMPLES = 9999


@dataclass(frozen=True)
class Difference:
    """How much higher an arm scores than the best control.

    Args:
        control: its name.
        mean: of the difference in score.
        low: of the 95 % interval, by resampling test rows in pairs.
        high: likewise.
    """

    control: str
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Summary:
    """An arm over its seeds.

    Args:
        arm: its name.
        seeds: how many outcomes there are.
        mean: score on the test rows.
        spread: its standard deviation over seeds; None for a single outcome.
        difference: from the best control; None for controls, and where there is none.
        outcomes: all of them.
    """

    arm: str
    seeds: int
    mean: float
    spread: float | None
    difference: Difference | None
    outcomes: tuple[Outcome, ...]

    @property
    def control(self) -> bool:
        """Whether it is what prompts must beat."""
        return self.outcomes[0].control


def summaries(outcomes: Sequence[Outcome]) -> list[Summary]:
    """One summary an arm, in the order of their first outcomes.

    Raises:
        DataError: the outcomes are not of the same test rows.
    """
    rows = {len(outcome.scores) for outcome in outcomes}
    if len(rows) > 1:
        msg = f"the outcomes are of {sorted(rows)} test rows. Compare what answered the same rows."
        raise DataError(msg)
    by_arm: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_arm.setdefault(outcome.arm, []).append(outcome)
    controls = [found for found in by_arm.values() if found[0].control]
    best = max(controls, key=_mean, default=None)
    return [_summary(found, best) for found in by_arm.values()]


def _mean(outcomes: Sequence[Outcome]) -> float:
    return statistics.fmean(outcome.score for outcome in outcomes)


def _summary(outcomes: Sequence[Outcome], control: Sequence[Outcome] | None) -> Summary:
    shares = [outcome.score for outcome in outcomes]
    beside = not outcomes[0].control and control is not None
    return Summary(
        arm=outcomes[0].arm,
        seeds=len(outcomes),
        mean=_mean(outcomes),
        spread=statistics.stdev(shares) if len(shares) > 1 else None,
        difference=_difference(outcomes, control) if beside and control is not None else None,
        outcomes=tuple(outcomes),
    )


def _difference(outcomes: Sequence[Outcome], control: Sequence[Outcome]) -> Difference:
    """The paired bootstrap over test rows (Efron & Tibshirani 1993), percentile interval.

    A row's value is its mean score over the arm's seeds, less that over the control's.
    """
    own, theirs = (np.mean([o.scores for o in found], axis=0) for found in (outcomes, control))
    by_row = own - theirs
    mean, name = float(by_row.mean()), control[0].arm
    if len(by_row) < 2 or np.ptp(by_row) == 0:  # noqa: PLR2004  # nothing to resample
        return Difference(name, mean, mean, mean)
    found = bootstrap(
        (by_row,),
        np.mean,
        n_resamples=_RESAMPLES,
        confidence_level=_LEVEL,
        method="percentile",
        rng=np.random.default_rng(0),
        batch=100,
    )
    interval = found.confidence_interval
    return Difference(name, mean, float(interval.low), float(interval.high))
