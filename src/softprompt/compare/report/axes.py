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


# At 72 dots per inch a pixel is a point, the unit in which labels are placed.
_DPI = 72
# Sizes in inches: of the axes, and of a line of the legend.
_WIDTH, _HEIGHT, _LEGEND_LINE = 5.0, 3.5, 0.2

# Sizes in points: of the labels' font, of a marker from its center, of a bar from its center.
_FONT_SIZE, _MARKER_RADIUS, _BAR_RADIUS = 9.5, 5.0, 2.0
# The height of a label relative to the size of its font.
_LINE_HEIGHT = 1.25
# Distances of a label from its point, in points, and the greatest without a line between the two.
_DISTANCES = (7.0, 11.0, 16.0, 23.0, 32.0, 44.0, 60.0)
_MAX_UNCONNECTED = 12.0
_DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))
# An overlap is worse than any distance, and to leave the frame is worse than an overlap.
_OVERLAP_COST, _OUTSIDE_COST = 10.0, 100.0

# Smaller numbers are written in full.
_MIN_SHORTENED = 1e4
# An axis is logarithmic if the greatest cost is more than so many times the least; below the second
# ratio it has ticks at 1, 2 and 5.
_LOG_RATIO, _FINE_TICKS_RATIO = 8.0, 300.0
# First points are cropped if they are more than so many times as high as all later ones.
_CROP_RATIO = 1.5
# The least half height of a score axis, and its height relative to that of the points.
_MIN_HALF_HEIGHT, _MARGIN = 0.02, 1.4


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
    """A place for a label.

    Args:
        box: that the label fills.
        distance: of the label from its point or line.
    """

    box: Box
    distance: float

    @property
    def far(self) -> bool:
        """Whether a line must connect the label with its point."""
        return self.distance > _MAX_UNCONNECTED


def list_candidates_around(x: float, y: float, *, width: float, size: float) -> Iterator[Spot]:
    """Places around a point, the nearest first. All sizes are in points.

    Args:
        x: of the point.
        y: of the point.
        width: of the label.
        size: of its font.
    """
    height = _LINE_HEIGHT * size
    for distance, (across, up) in product(_DISTANCES, _DIRECTIONS):
        step = distance if 0 in (across, up) else 0.75 * distance
        left = x + across * step - width * (1 - across) / 2
        low = y + up * step - height * (1 - up) / 2
        yield Spot(Box(left, low, left + width, low + height), distance)


def list_candidates_along(y: float, frame: Box, *, width: float, size: float) -> Iterator[Spot]:
    """Places above and below a line across a frame: at its right end first.

    Args:
        y: of the line.
        frame: that the line crosses.
        width: of the label.
        size: of its font.
    """
    height, room = _LINE_HEIGHT * size, frame.right - frame.left - width
    for share, low in product((1.0, 0.0, 0.5, 0.75, 0.25), (y + 1, y - 1 - height)):
        left = frame.left + share * room
        yield Spot(Box(left, low, left + width, low + height), _DISTANCES[0])


def place_labels(
    choices: Sequence[Sequence[Spot]], *, taken: Sequence[Box], frame: Box
) -> list[Spot]:
    """One spot for each label, one label after the other: where it covers least.

    Args:
        choices: the spots for each label.
        taken: boxes that should not be covered.
        frame: that no label should leave.
    """
    occupied, placed = list(taken), list[Spot]()
    for spots in choices:
        best = min(spots, key=lambda spot: _compute_cost(spot, occupied, frame))
        placed.append(best)
        occupied.append(best.box)
    return placed


def _compute_cost(spot: Spot, occupied: Sequence[Box], frame: Box) -> float:
    covered = sum(spot.box.measure_overlap(other) for other in occupied)
    outside = spot.box.area - spot.box.measure_overlap(frame)
    return _OVERLAP_COST * covered + _OUTSIDE_COST * outside + spot.distance


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
        """The mean minus the deviation."""
        return tuple(m - s for m, s in zip(self.mean, self.spread, strict=True))

    @property
    def high(self) -> tuple[float, ...]:
        """The mean plus the deviation."""
        return tuple(m + s for m, s in zip(self.mean, self.spread, strict=True))


def average_curves(curves: Sequence[Curve]) -> Band:
    """The mean of curves and its band; curves are interpolated linearly.

    A curve that ends early is not part of the mean after its end.

    Args:
        curves: one for each seed, with points of step and value in the order of steps.
    """
    mean, spread = list[float](), list[float]()
    grid = sorted({step for curve in curves for step, _ in curve})
    for step in grid:
        values = [_interpolate(curve, step) for curve in curves if _covers(curve, step)]
        mean.append(float(np.mean(values)))
        spread.append(float(np.std(values, ddof=1)) if len(values) > 1 else 0.0)
    return Band(tuple(grid), tuple(mean), tuple(spread))


def _covers(curve: Curve, step: float) -> bool:
    return bool(curve) and curve[0][0] <= step <= curve[-1][0]


def _interpolate(curve: Curve, step: float) -> float:
    steps, values = zip(*curve, strict=True)
    return float(np.interp(step, steps, values))


@dataclass(frozen=True)
class Point:
    """A variant in a figure of scores.

    Args:
        style: with its label.
        x: its cost; None for a line across the figure.
        y: its score.
        spread: the standard deviation of the score over seeds.
    """

    style: Style
    x: float | None
    y: float
    spread: float


@contextmanager
def make_axes(*, height: float = _HEIGHT, legend: int = 0) -> Iterator[tuple["Figure", "Axes"]]:
    """An empty figure, in the report's style while the block runs.

    Args:
        height: of the axes in inches.
        legend: the number of entries of a legend in two columns below.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415  # slow to import, and only needed here

    with use_style():
        size = (_WIDTH, height + _LEGEND_LINE * ((legend + 1) // 2))
        figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
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
        if abs(value) >= max(unit, _MIN_SHORTENED):
            return f"{value / unit:g}{name}"
    return f"{value:,g}"


def use_percent(axes: "Axes") -> None:
    """Label fractions as percentages."""
    from matplotlib.ticker import PercentFormatter  # noqa: PLC0415  # slow to import

    axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def use_log_scale(axes: "Axes", costs: Sequence[float]) -> None:
    """Make the horizontal axis logarithmic if costs differ much, with margins for labels."""
    if costs and min(costs) > 0 and max(costs) > _LOG_RATIO * min(costs):
        from matplotlib.ticker import LogLocator, NullLocator  # noqa: PLC0415  # slow to import

        axes.set_xscale("log")
        has_fine_ticks = max(costs) < _FINE_TICKS_RATIO * min(costs)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if has_fine_ticks else (1,)))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: format_short(value))
    axes.margins(x=0.18)
    if not costs:
        axes.set_xticks([])


def crop_starts(axes: "Axes", bands: Sequence[Band]) -> None:
    """Crop first points that lie far above all later ones."""
    later = [end for band in bands for ends in (band.low, band.high) for end in ends[1:]]
    starts = [band.mean[0] for band in bands]
    if later and max(starts) > _CROP_RATIO * max(later):
        room = 0.08 * (max(later) - min(later))
        axes.set_ylim(min(later) - room, max(later) + room)


def crop_outliers(axes: "Axes", points: Sequence[Point]) -> list[Point]:
    """Crop lines that would compress the scale of the points, and name them above the frame.

    Returns:
        The points and lines in the frame.
    """
    dots = [point for point in points if point.x is not None]
    ends = [end for p in dots for end in (p.y - p.spread, p.y + p.spread)]
    room = max(_MIN_HALF_HEIGHT, max(ends) - min(ends)) if ends else 1.0
    visible = [p for p in points if not ends or min(ends) - room <= p.y <= max(ends) + room]
    ends += [point.y for point in visible]
    middle, half = (max(ends) + min(ends)) / 2, max(_MIN_HALF_HEIGHT, max(ends) - min(ends)) / 2
    axes.set_ylim(middle - _MARGIN * half, middle + _MARGIN * half)
    cropped = ", ".join(f"{p.style.label} {100 * p.y:.1f} %" for p in points if p not in visible)
    if cropped:
        title = f"out of the frame: {cropped}"
        axes.set_title(title, fontsize=_FONT_SIZE, color=FAINT, loc="left")
    return visible


def label_points(figure: "Figure", axes: "Axes", *, points: Sequence[Point]) -> None:
    """Write the names next to points and on lines without overlaps."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    inside = axes.get_window_extent()
    frame = Box(inside.x0, inside.y0, inside.x1, inside.y1)
    dots = sorted((p for p in points if p.x is not None), key=lambda p: (-p.y, p.x or 0.0))
    lines = sorted((p for p in points if p.x is None), key=lambda p: -p.y)
    taken = [box for point in dots for box in _list_boxes(axes, point)]
    for line in lines:
        y = _to_pixels(axes, line)
        taken.append(Box(frame.left, y - 0.6, frame.right, y + 0.6))
    choices = [_list_spots(figure, axes, point=point, frame=frame) for point in [*dots, *lines]]
    spots = place_labels(choices, taken=taken, frame=frame)
    for point, spot in zip([*dots, *lines], spots, strict=True):
        _write_label(axes, point, spot=spot)


def _list_spots(figure: "Figure", axes: "Axes", *, point: Point, frame: Box) -> list[Spot]:
    width = _measure_width(figure, point.style.label)
    if point.x is None:
        y = _to_pixels(axes, point)
        return [*list_candidates_along(y, frame, width=width, size=_FONT_SIZE)]
    x, y = axes.transData.transform((point.x, point.y))
    return [*list_candidates_around(float(x), float(y), width=width, size=_FONT_SIZE)]


def _measure_width(figure: "Figure", text: str) -> float:
    artist = figure.text(0, 0, text, fontsize=_FONT_SIZE)
    extent = artist.get_window_extent()
    artist.remove()
    return float(extent.width)


def _to_pixels(axes: "Axes", point: Point) -> float:
    """The height of a point's score in the figure."""
    return float(axes.transData.transform((0, point.y))[1])


def _list_boxes(axes: "Axes", point: Point) -> Iterator[Box]:
    """The box of a point's marker, and that of its bar."""
    ends = [(point.x or 0.0, y) for y in (point.y - point.spread, point.y, point.y + point.spread)]
    (x, low), (_, y), (_, high) = axes.transData.transform(ends).tolist()
    yield Box(x - _MARKER_RADIUS, y - _MARKER_RADIUS, x + _MARKER_RADIUS, y + _MARKER_RADIUS)
    yield Box(x - _BAR_RADIUS, low, x + _BAR_RADIUS, high)


def _write_label(axes: "Axes", point: Point, *, spot: Spot) -> None:
    """Write a label in its box; a thin line connects it with a distant point."""
    to_data = axes.transData.inverted()
    middle = ((spot.box.left + spot.box.right) / 2, (spot.box.low + spot.box.high) / 2)
    position = tuple(to_data.transform(middle))
    is_connected = point.x is not None and spot.far
    line = {"arrowstyle": "-", "color": point.style.colour, "linewidth": 0.6}
    axes.annotate(
        point.style.label,
        xy=(point.x, point.y) if is_connected else position,
        xytext=position,
        fontsize=_FONT_SIZE,
        ha="center",
        va="center",
        arrowprops=line if is_connected else None,
    )
