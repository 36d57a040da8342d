"""What the pictures of a comparison have in common: the frame, the scales, the names of points."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from softprompt.compare.band import Band
from softprompt.compare.labels import Box, Spot, along, around, placed
from softprompt.compare.looks import Look
from softprompt.compare.vector import FAINT, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# At 72 dots an inch a pixel is a point, which labels are placed in.
_DOTS, _WIDE, _TALL, _LINE = 72, 5.0, 3.5, 0.2
_FONT, _REACH, _BAR = 9.5, 5.0, 2.0
_LONG, _DECADES = 1e4, 300.0
_MUCH, _STEEP, _LEAST, _MARGIN = 8.0, 1.5, 0.02, 1.4


@dataclass(frozen=True)
class Point:
    """An arm in a picture of scores.

    Args:
        look: with its label.
        x: what it took; None for nothing.
        y: its score.
        spread: of the score over seeds.
    """

    look: Look
    x: float | None
    y: float
    spread: float


@contextmanager
def framed(*, tall: float = _TALL, legend: int = 0) -> Iterator[tuple["Figure", "Axes"]]:
    """An empty figure in the report's style, as long as it is drawn on.

    Args:
        tall: in inches.
        legend: how many lines it will name, in two columns under it.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415  # slow to import, and only needed here

    with styled():
        size = (_WIDE, tall + _LINE * ((legend + 1) // 2))
        figure = Figure(figsize=size, dpi=_DOTS, layout="constrained")
        axes = figure.subplots()
        axes.grid(visible=True)
        axes.set_axisbelow(True)
        yield figure, axes


def short(value: float) -> str:
    """A number as an axis has room for it.

    >>> short(1200), short(20_000), short(1.5e6), short(0.3)
    ('1,200', '20k', '1.5M', '0.3')
    """
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= max(unit, _LONG):
            return f"{value / unit:g}{name}"
    return f"{value:,g}"


def in_percent(axes: "Axes") -> None:
    """Write shares of 1 as percent."""
    from matplotlib.ticker import PercentFormatter  # noqa: PLC0415  # slow to import

    axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def spread_out(axes: "Axes", prices: Sequence[float]) -> None:
    """Make the horizontal axis logarithmic where prices differ much, and leave room for names."""
    if prices and min(prices) > 0 and max(prices) > _MUCH * min(prices):
        from matplotlib.ticker import LogLocator, NullLocator  # noqa: PLC0415  # slow to import

        axes.set_xscale("log")
        narrow = max(prices) < _DECADES * min(prices)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,)))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: short(value))
    axes.margins(x=0.18)
    if not prices:
        axes.set_xticks([])


def without_starts(axes: "Axes", bands: Sequence[Band]) -> None:
    """Cut off first points that lie far above everything after them."""
    later = [end for found in bands for ends in (found.low, found.high) for end in ends[1:]]
    starts = [found.mean[0] for found in bands]
    if later and max(starts) > _STEEP * max(later):
        room = 0.08 * (max(later) - min(later))
        axes.set_ylim(min(later) - room, max(later) + room)


def without_far(axes: "Axes", points: Sequence[Point]) -> list[Point]:
    """Leave lines out of the frame that would press all points together, and say so in it.

    Returns:
        What is in the frame.
    """
    dots = [point for point in points if point.x is not None]
    ends = [end for p in dots for end in (p.y - p.spread, p.y + p.spread)]
    room = max(_LEAST, max(ends) - min(ends)) if ends else 1.0
    kept = [p for p in points if not ends or min(ends) - room <= p.y <= max(ends) + room]
    ends += [point.y for point in kept]
    middle, half = (max(ends) + min(ends)) / 2, max(_LEAST, max(ends) - min(ends)) / 2
    axes.set_ylim(middle - _MARGIN * half, middle + _MARGIN * half)
    away = ", ".join(f"{p.look.label} {100 * p.y:.1f} %" for p in points if p not in kept)
    if away:
        axes.set_title(f"out of the frame: {away}", fontsize=_FONT, color=FAINT, loc="left")
    return kept


def name_all(figure: "Figure", axes: "Axes", *, points: Sequence[Point]) -> None:
    """Write the names beside points and on lines, so that none lies on another."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    inside = axes.get_window_extent()
    frame = Box(inside.x0, inside.y0, inside.x1, inside.y1)
    dots = sorted((p for p in points if p.x is not None), key=lambda p: (-p.y, p.x or 0.0))
    lines = sorted((p for p in points if p.x is None), key=lambda p: -p.y)
    taken = [box for point in dots for box in _filled(axes, point)]
    taken += [Box(frame.left, y - 0.6, frame.right, y + 0.6) for y in _heights(axes, lines)]
    choices = [_choices(figure, axes, point=point, frame=frame) for point in [*dots, *lines]]
    found = placed(choices, taken=taken, frame=frame)
    for point, spot in zip([*dots, *lines], found, strict=True):
        _write(axes, point, spot=spot)


def _choices(figure: "Figure", axes: "Axes", *, point: Point, frame: Box) -> list[Spot]:
    width = _width(figure, point.look.label)
    if point.x is None:
        [y] = _heights(axes, [point])
        return [*along(y, frame, width=width, size=_FONT)]
    x, y = axes.transData.transform((point.x, point.y))
    return [*around(float(x), float(y), width=width, size=_FONT)]


def _width(figure: "Figure", text: str) -> float:
    written = figure.text(0, 0, text, fontsize=_FONT)
    extent = written.get_window_extent()
    written.remove()
    return float(extent.width)


def _heights(axes: "Axes", points: Sequence[Point]) -> list[float]:
    return [float(axes.transData.transform((0, point.y))[1]) for point in points]


def _filled(axes: "Axes", point: Point) -> Iterator[Box]:
    """The mark of a point, and its bar."""
    ends = [(point.x or 0.0, y) for y in (point.y - point.spread, point.y, point.y + point.spread)]
    (x, low), (_, y), (_, high) = axes.transData.transform(ends).tolist()
    yield Box(x - _REACH, y - _REACH, x + _REACH, y + _REACH)
    yield Box(x - _BAR, low, x + _BAR, high)


def _write(axes: "Axes", point: Point, *, spot: Spot) -> None:
    """The label in its box; a thin line leads to a point that is not next to it."""
    turn = axes.transData.inverted()
    middle = ((spot.box.left + spot.box.right) / 2, (spot.box.low + spot.box.high) / 2)
    leads = point.x is not None and spot.far
    axes.annotate(
        point.look.label,
        xy=(point.x, point.y) if leads else tuple(turn.transform(middle)),
        xytext=tuple(turn.transform(middle)),
        fontsize=_FONT,
        ha="center",
        va="center",
        arrowprops={"arrowstyle": "-", "color": point.look.colour, "linewidth": 0.6}
        if leads
        else None,
    )
