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
    """How much more an arm gets right than the best control.

    Args:
        control: its name.
        mean: of the share of right rows.
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
        mean: accuracy on the test rows.
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
    def trained(self) -> bool:
        """Whether it is no control."""
        return self.outcomes[0].seed is not None


def summaries(outcomes: Sequence[Outcome]) -> list[Summary]:
    """One summary an arm, in the order of their first outcomes.

    Raises:
        DataError: the outcomes are not of the same test rows.
    """
    rows = {len(outcome.right) for outcome in outcomes}
    if len(rows) > 1:
        msg = f"the outcomes are of {sorted(rows)} test rows. Compare what answered the same rows."
        raise DataError(msg)
    by_arm: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_arm.setdefault(outcome.arm, []).append(outcome)
    controls = [o for o in outcomes if o.seed is None]
    best = max(controls, key=lambda o: o.accuracy, default=None)
    return [_summary(found, best) for found in by_arm.values()]


def _summary(outcomes: Sequence[Outcome], control: Outcome | None) -> Summary:
    shares = [outcome.accuracy for outcome in outcomes]
    trained = outcomes[0].seed is not None
    return Summary(
        arm=outcomes[0].arm,
        seeds=len(outcomes),
        mean=statistics.fmean(shares),
        spread=statistics.stdev(shares) if len(shares) > 1 else None,
        difference=_difference(outcomes, control) if trained and control is not None else None,
        outcomes=tuple(outcomes),
    )


def _difference(outcomes: Sequence[Outcome], control: Outcome) -> Difference:
    """The paired bootstrap over test rows (Efron & Tibshirani 1993), percentile interval.

    A row's value is the share of seeds that get it right, less whether the control does.
    """
    own = np.mean([outcome.right for outcome in outcomes], axis=0)
    by_row = own - np.asarray(control.right, dtype=float)
    mean = float(by_row.mean())
    if len(by_row) < 2 or np.ptp(by_row) == 0:  # noqa: PLR2004  # nothing to resample
        return Difference(control.arm, mean, mean, mean)
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
    return Difference(control.arm, mean, float(interval.low), float(interval.high))
