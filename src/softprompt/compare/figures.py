"""The pictures of a comparison, as matplotlib figures: curves with bands, scores against costs."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Literal, assert_never

from softprompt.compare.axes import (
    Point,
    framed,
    in_percent,
    name_all,
    short,
    spread_out,
    without_far,
    without_starts,
)
from softprompt.compare.band import Band, Curves, band
from softprompt.compare.looks import Look
from softprompt.compare.outcome import Cost
from softprompt.compare.statistics import Summary
from softprompt.compare.vector import FAINT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Price = Literal["trainable", "seconds"]

_SHARES = {"accuracy", "exact_match", "f1", "macro_f1", "rouge1", "rouge2", "rougeL"}
_LEGEND = 9.5


def draw_curves(curves: Curves, *, looks: Mapping[str, Look], metric: str) -> "Figure":
    """A metric on the validation rows over the steps: a line an arm, a band of ±1 deviation.

    Args:
        curves: by arm, one a seed: points of step and value.
        looks: of the arms.
        metric: its name.
    """
    bands = {arm: band(found) for arm, found in curves.items() if any(found)}
    with framed(legend=len(bands)) as (figure, axes):
        for arm, found in bands.items():
            _draw_band(axes, found, looks[arm])
        axes.set_xlabel("step")
        axes.set_ylabel(f"{metric}, validation rows")
        axes.xaxis.set_major_formatter(lambda value, _: short(value))
        if metric in _SHARES:
            in_percent(axes)
        if metric == "loss":
            without_starts(axes, [*bands.values()])
        figure.legend(
            loc="outside lower center", ncols=2, fontsize=_LEGEND, handlelength=2.8, frameon=False
        )
    return figure


def draw_against(
    found: Sequence[Summary], *, looks: Mapping[str, Look], price: Price, measure: str
) -> "Figure":
    """The score on the test rows against what it took, ±1 deviation over seeds.

    What took nothing is a line across; far from all others it is told of above the frame.

    Args:
        looks: of the arms.
        price: parameters or seconds; the axis is logarithmic where they differ much.
        measure: what a score is called.
    """
    points = [
        Point(looks[s.arm], price_of(s, price), s.mean, 0.0 if s.spread is None else s.spread)
        for s in found
    ]
    with framed() as (figure, axes):
        kept = without_far(axes, points)
        for point in kept:
            _draw_point(axes, point)
        axes.set_xlabel("trained parameters" if price == "trainable" else "seconds of training")
        axes.set_ylabel(f"{measure}, test rows")
        in_percent(axes)
        spread_out(axes, [point.x for point in points if point.x is not None])
        name_all(figure, axes, points=kept)
    return figure


def draw_leads(found: Sequence[Summary], *, looks: Mapping[str, Look]) -> "Figure":
    """How many points arms are above the best control, with their 95 % intervals.

    Args:
        found: those to show, from top to bottom; what has no difference is left out.
        looks: of the arms.
    """
    shown = [(looks[s.arm], s.difference) for s in found if s.difference is not None]
    with framed(tall=max(2.4, 0.9 + 0.38 * len(shown))) as (figure, axes):
        axes.axvline(0, color=FAINT, linewidth=1.2, linestyle="--")
        for at, (look, lead) in enumerate(shown):
            low, mean, high = (100 * value for value in (lead.low, lead.mean, lead.high))
            axes.errorbar(
                [mean],
                [at],
                xerr=[[mean - low], [high - mean]],
                fmt=look.mark,
                color=look.colour,
                capsize=4,
                markersize=7,
            )
        axes.set_yticks(range(len(shown)), [look.label for look, _ in shown])
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("points above the best control")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:+g}" if value else "0")
    return figure


def price_of(summary: Summary, price: Price) -> float | None:
    """What an arm took, the mean over its seeds; None where nothing was trained."""
    costs = [outcome.cost for outcome in summary.outcomes if outcome.cost is not None]
    return fmean(_price(cost, price) for cost in costs) if costs else None


def _price(cost: Cost, price: Price) -> float:
    match price:
        case "trainable":
            return float(cost.trainable)
        case "seconds":
            return cost.seconds
        case _:
            assert_never(price)


def _draw_band(axes: "Axes", found: Band, look: Look) -> None:
    axes.plot(
        found.steps,
        found.mean,
        color=look.colour,
        linestyle=look.line,
        label=look.label,
        marker=look.mark,
        markersize=4,
        markevery=max(1, len(found.steps) // 8),
        markerfacecolor=look.colour if look.filled else "none",
    )
    if any(found.spread):
        axes.fill_between(
            found.steps, found.low, found.high, color=look.colour, alpha=0.16, linewidth=0
        )


def _draw_point(axes: "Axes", point: Point) -> None:
    look = point.look
    if point.x is None:
        axes.axhline(point.y, color=look.colour, linestyle=look.line, linewidth=1.2)
        return
    axes.errorbar(
        [point.x],
        [point.y],
        yerr=[point.spread],
        fmt=look.mark,
        color=look.colour,
        markerfacecolor=look.colour if look.filled else "none",
        markersize=7,
        capsize=4,
        elinewidth=1.2,
    )
