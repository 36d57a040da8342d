"""Axes, bands and point labels that the figures share."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from softprompt.compare.report.style import FAINT, Style, use_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_HEIGHT = 1.25
_FAR = 12.0
_DISTANCES = (7.0, 11.0, 16.0, 23.0, 32.0, 44.0, 60.0)
_DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))
# An overlap is worse than any distance, and to leave the frame is worse than an overlap.
_OVERLAP, _OUTSIDE = 10.0, 100.0


@dataclass(frozen=True)
class Box:
    """A rectangle.

    Args:
        left: its least x.
        low: its least y.
        right: its greatest x.
        high: its greatest y.
    """

    left: float
    low: float
    right: float
    high: float

    @property
    def area(self) -> float:
        """Of the rectangle."""
        return (self.right - self.left) * (self.high - self.low)

    def measure_overlap(self, other: "Box") -> float:
        """The area that it has in common with another."""
        wide = min(self.right, other.right) - max(self.left, other.left)
        tall = min(self.high, other.high) - max(self.low, other.low)
        return max(0.0, wide) * max(0.0, tall)


@dataclass(frozen=True)
class Spot:
    """Where a label may stand.

    Args:
        box: that it fills.
        distance: from what it names.
    """

    box: Box
    distance: float

    @property
    def far(self) -> bool:
        """Whether a line must connect it with what it names."""
        return self.distance > _FAR


def list_candidates_around(x: float, y: float, *, width: float, size: float) -> Iterator[Spot]:
    """Places around a point, the nearest first.

    Args:
        width: of the label.
        size: of its font.
    """
    tall = _HEIGHT * size
    for distance, (across, up) in product(_DISTANCES, _DIRECTIONS):
        step = distance if 0 in (across, up) else 0.75 * distance
        left = x + across * step - width * (1 - across) / 2
        low = y + up * step - tall * (1 - up) / 2
        yield Spot(Box(left, low, left + width, low + tall), distance)


def list_candidates_along(y: float, frame: Box, *, width: float, size: float) -> Iterator[Spot]:
    """Places on and under a line across a frame: at its right end first.

    Args:
        y: of the line.
        width: of the label.
        size: of its font.
    """
    tall, room = _HEIGHT * size, frame.right - frame.left - width
    for share, low in product((1.0, 0.0, 0.5, 0.75, 0.25), (y + 1, y - 1 - tall)):
        left = frame.left + share * room
        yield Spot(Box(left, low, left + width, low + tall), _DISTANCES[0])


def place_labels(
    choices: Sequence[Sequence[Spot]], *, taken: Sequence[Box], frame: Box
) -> list[Spot]:
    """One spot for each label, one label after the other: where it covers least.

    Args:
        choices: for each label.
        taken: what should not be covered.
        frame: that no label should leave.
    """
    full, found = list(taken), list[Spot]()
    for spots in choices:
        best = min(spots, key=lambda spot: _cost(spot, full, frame))
        found.append(best)
        full.append(best.box)
    return found


def _cost(spot: Spot, taken: Sequence[Box], frame: Box) -> float:
    covered = sum(spot.box.measure_overlap(other) for other in taken)
    outside = spot.box.area - spot.box.measure_overlap(frame)
    return _OVERLAP * covered + _OUTSIDE * outside + spot.distance


Curve = Sequence[tuple[float, float]]
Curves = Mapping[str, Sequence[Curve]]


@dataclass(frozen=True)
class Band:
    """The mean of curves, and its standard deviation.

    Args:
        steps: at which any curve has a point.
        mean: at each step, of the curves that cover it.
        spread: their standard deviation; 0 for a single curve.
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


def average_curves(curves: Sequence[Curve]) -> Band:
    """The mean of curves and its band; curves are interpolated linearly.

    A curve that ends early does not count after its end.

    Args:
        curves: one for each seed, with points of step and value in the order of steps.
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


# At 72 dots per inch a pixel is a point, the unit in which labels are placed.
_DOTS, _WIDE, _TALL, _LINE = 72, 5.0, 3.5, 0.2
_FONT, _REACH, _BAR = 9.5, 5.0, 2.0
_LONG, _DECADES = 1e4, 300.0
_MUCH, _STEEP, _LEAST, _MARGIN = 8.0, 1.5, 0.02, 1.4


@dataclass(frozen=True)
class Point:
    """A variant in a figure of scores.

    Args:
        style: with its label.
        x: its cost; None for none.
        y: its score.
        spread: of the score over seeds.
    """

    style: Style
    x: float | None
    y: float
    spread: float


@contextmanager
def make_axes(*, tall: float = _TALL, legend: int = 0) -> Iterator[tuple["Figure", "Axes"]]:
    """An empty figure, in the report's style while the block runs.

    Args:
        tall: the height of the axes in inches.
        legend: the number of entries of a legend in two columns below.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415  # slow to import, and only needed here

    with use_style():
        size = (_WIDE, tall + _LINE * ((legend + 1) // 2))
        figure = Figure(figsize=size, dpi=_DOTS, layout="constrained")
        axes = figure.subplots()
        axes.grid(visible=True)
        axes.set_axisbelow(True)
        yield figure, axes


def format_short(value: float) -> str:
    """A number in a few characters.

    >>> [format_short(value) for value in (1200, 20_000, 1.5e6, 0.3)]
    ['1,200', '20k', '1.5M', '0.3']
    """
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= max(unit, _LONG):
            return f"{value / unit:g}{name}"
    return f"{value:,g}"


def use_percent(axes: "Axes") -> None:
    """Label fractions as percentages."""
    from matplotlib.ticker import PercentFormatter  # noqa: PLC0415  # slow to import

    axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def use_log_scale(axes: "Axes", prices: Sequence[float]) -> None:
    """Make the horizontal axis logarithmic if costs differ much, with margins for labels."""
    if prices and min(prices) > 0 and max(prices) > _MUCH * min(prices):
        from matplotlib.ticker import LogLocator, NullLocator  # noqa: PLC0415  # slow to import

        axes.set_xscale("log")
        narrow = max(prices) < _DECADES * min(prices)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,)))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: format_short(value))
    axes.margins(x=0.18)
    if not prices:
        axes.set_xticks([])


def crop_starts(axes: "Axes", bands: Sequence[Band]) -> None:
    """Crop first points that lie far above all later ones."""
    later = [end for found in bands for ends in (found.low, found.high) for end in ends[1:]]
    starts = [found.mean[0] for found in bands]
    if later and max(starts) > _STEEP * max(later):
        room = 0.08 * (max(later) - min(later))
        axes.set_ylim(min(later) - room, max(later) + room)


def crop_outliers(axes: "Axes", points: Sequence[Point]) -> list[Point]:
    """Leave lines out of the frame that would press all points together, and name them above it.

    Returns:
        The points and lines in the frame.
    """
    dots = [point for point in points if point.x is not None]
    ends = [end for p in dots for end in (p.y - p.spread, p.y + p.spread)]
    room = max(_LEAST, max(ends) - min(ends)) if ends else 1.0
    kept = [p for p in points if not ends or min(ends) - room <= p.y <= max(ends) + room]
    ends += [point.y for point in kept]
    middle, half = (max(ends) + min(ends)) / 2, max(_LEAST, max(ends) - min(ends)) / 2
    axes.set_ylim(middle - _MARGIN * half, middle + _MARGIN * half)
    away = ", ".join(f"{p.style.label} {100 * p.y:.1f} %" for p in points if p not in kept)
    if away:
        axes.set_title(f"out of the frame: {away}", fontsize=_FONT, color=FAINT, loc="left")
    return kept


def label_points(figure: "Figure", axes: "Axes", *, points: Sequence[Point]) -> None:
    """Write the names next to points and on lines without overlaps."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    inside = axes.get_window_extent()
    frame = Box(inside.x0, inside.y0, inside.x1, inside.y1)
    dots = sorted((p for p in points if p.x is not None), key=lambda p: (-p.y, p.x or 0.0))
    lines = sorted((p for p in points if p.x is None), key=lambda p: -p.y)
    taken = [box for point in dots for box in _filled(axes, point)]
    taken += [Box(frame.left, y - 0.6, frame.right, y + 0.6) for y in _heights(axes, lines)]
    choices = [_choices(figure, axes, point=point, frame=frame) for point in [*dots, *lines]]
    found = place_labels(choices, taken=taken, frame=frame)
    for point, spot in zip([*dots, *lines], found, strict=True):
        _write(axes, point, spot=spot)


def _choices(figure: "Figure", axes: "Axes", *, point: Point, frame: Box) -> list[Spot]:
    width = _width(figure, point.style.label)
    if point.x is None:
        [y] = _heights(axes, [point])
        return [*list_candidates_along(y, frame, width=width, size=_FONT)]
    x, y = axes.transData.transform((point.x, point.y))
    return [*list_candidates_around(float(x), float(y), width=width, size=_FONT)]


def _width(figure: "Figure", text: str) -> float:
    written = figure.text(0, 0, text, fontsize=_FONT)
    extent = written.get_window_extent()
    written.remove()
    return float(extent.width)


def _heights(axes: "Axes", points: Sequence[Point]) -> list[float]:
    return [float(axes.transData.transform((0, point.y))[1]) for point in points]


def _filled(axes: "Axes", point: Point) -> Iterator[Box]:
    """The marker of a point, and its bar."""
    ends = [(point.x or 0.0, y) for y in (point.y - point.spread, point.y, point.y + point.spread)]
    (x, low), (_, y), (_, high) = axes.transData.transform(ends).tolist()
    yield Box(x - _REACH, y - _REACH, x + _REACH, y + _REACH)
    yield Box(x - _BAR, low, x + _BAR, high)


def _write(axes: "Axes", point: Point, *, spot: Spot) -> None:
    """The label in its box; a thin line leads to a distant point."""
    turn = axes.transData.inverted()
    middle = ((spot.box.left + spot.box.right) / 2, (spot.box.low + spot.box.high) / 2)
    leads = point.x is not None and spot.far
    axes.annotate(
        point.style.label,
        xy=(point.x, point.y) if leads else tuple(turn.transform(middle)),
        xytext=tuple(turn.transform(middle)),
        fontsize=_FONT,
        ha="center",
        va="center",
        arrowprops={"arrowstyle": "-", "color": point.style.colour, "linewidth": 0.6}
        if leads
        else None,
    )
