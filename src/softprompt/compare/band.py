"""Curves of several seeds as one: their mean, and how far they are apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Curve = Sequence[tuple[float, float]]
Curves = Mapping[str, Sequence[Curve]]


@dataclass(frozen=True)
class Band:
    """The mean of curves with its band.

    Args:
        steps: where any curve has a point.
        mean: there, of the curves that go that far.
        spread: their standard deviation; 0 where there is one alone.
    """

    steps: tuple[float, ...]
    mean: tuple[float, ...]
    spread: tuple[float, ...]

    @property
    def low(self) -> tuple[float, ...]:
        """The mean less the deviation."""
        return tuple(m - s for m, s in zip(self.mean, self.spread, strict=True))

    @property
    def high(self) -> tuple[float, ...]:
        """The mean and the deviation."""
        return tuple(m + s for m, s in zip(self.mean, self.spread, strict=True))


def band(curves: Sequence[Curve]) -> Band:
    """The mean curve and its band; between two points of its own a curve is straight.

    A curve that ends early is left out from there on.

    Args:
        curves: one a seed, of steps in order with a value each.
    """
    mean, spread = list[float](), list[float]()
    grid = sorted({step for curve in curves for step, _ in curve})
    for step in grid:
        there = [_at(curve, step) for curve in curves if _covers(curve, step)]
        mean.append(float(np.mean(there)))
        spread.append(float(np.std(there, ddof=1)) if len(there) > 1 else 0.0)
    return Band(tuple(grid), tuple(mean), tuple(spread))


def _covers(curve: Curve, step: float) -> bool:
    return bool(curve) and curve[0][0] <= step <= curve[-1][0]


def _at(curve: Curve, step: float) -> float:
    steps, values = zip(*curve, strict=True)
    return float(np.interp(step, steps, values))
