"""The figures of a comparison: curves with bands, scores against costs, learning rates."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Literal, assert_never

from softprompt.compare.lr_search import TrainedRun
from softprompt.compare.report.axes import (
    Band,
    Curves,
    Point,
    average_curves,
    crop_outliers,
    crop_starts,
    format_short,
    label_points,
    make_axes,
    use_log_scale,
    use_percent,
)
from softprompt.compare.report.style import FAINT, Style
from softprompt.compare.results import Cost
from softprompt.compare.statistics import Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


Price = Literal["trainable", "seconds"]

_SHARES = {"accuracy", "exact_match", "f1", "macro_f1", "rouge1", "rouge2", "rougeL"}
_LEGEND = 9.5


def draw_curves(curves: Curves, *, styles: Mapping[str, Style], metric: str) -> "Figure":
    """Draw a metric on the validation rows over the steps, with a band of ±1 deviation.

    Args:
        curves: by variant, one for each seed: points of step and value.
        styles: of the variants.
        metric: its name.
    """
    bands = {variant: average_curves(found) for variant, found in curves.items() if any(found)}
    with make_axes(legend=len(bands)) as (figure, axes):
        for variant, found in bands.items():
            _draw_band(axes, found, styles[variant])
        axes.set_xlabel("step")
        axes.set_ylabel(f"{metric}, validation rows")
        axes.xaxis.set_major_formatter(lambda value, _: format_short(value))
        if metric in _SHARES:
            use_percent(axes)
        if metric == "loss":
            crop_starts(axes, [*bands.values()])
        figure.legend(
            loc="outside lower center", ncols=2, fontsize=_LEGEND, handlelength=2.8, frameon=False
        )
    return figure


def draw_against(
    found: Sequence[Summary], *, styles: Mapping[str, Style], price: Price, measure: str
) -> "Figure":
    """Draw the score on the test rows against the cost, ±1 deviation over seeds.

    A variant without cost is a horizontal line; one far from all others is named above the frame.

    Args:
        styles: of the variants.
        price: parameters or seconds; the axis is logarithmic if they differ much.
        measure: the name of the score.
    """
    points = [
        Point(styles[s.variant], get_price(s, price), s.mean, 0.0 if s.spread is None else s.spread)
        for s in found
    ]
    with make_axes() as (figure, axes):
        kept = crop_outliers(axes, points)
        for point in kept:
            _draw_point(axes, point)
        axes.set_xlabel("trained parameters" if price == "trainable" else "seconds of training")
        axes.set_ylabel(f"{measure}, test rows")
        use_percent(axes)
        use_log_scale(axes, [point.x for point in points if point.x is not None])
        label_points(figure, axes, points=kept)
    return figure


def draw_leads(found: Sequence[Summary], *, styles: Mapping[str, Style]) -> "Figure":
    """Draw the differences from the best baseline in points, with their 95 % intervals.

    Args:
        found: from top to bottom; those without a difference are left out.
        styles: of the variants.
    """
    shown = [(styles[s.variant], s.difference) for s in found if s.difference is not None]
    with make_axes(tall=max(2.4, 0.9 + 0.38 * len(shown))) as (figure, axes):
        axes.axvline(0, color=FAINT, linewidth=1.2, linestyle="--")
        for at, (style, lead) in enumerate(shown):
            low, mean, high = (100 * value for value in (lead.low, lead.mean, lead.high))
            axes.errorbar(
                [mean],
                [at],
                xerr=[[mean - low], [high - mean]],
                fmt=style.marker,
                color=style.colour,
                capsize=4,
                markersize=7,
            )
        axes.set_yticks(range(len(shown)), [style.label for style, _ in shown])
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("difference from the best baseline, points")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:+g}" if value else "0")
    return figure


def get_price(summary: Summary, price: Price) -> float | None:
    """The mean cost of a variant over its seeds; None where nothing was trained."""
    costs = [result.cost for result in summary.results if result.cost is not None]
    return fmean(_price(cost, price) for cost in costs) if costs else None


def _price(cost: Cost, price: Price) -> float:
    match price:
        case "trainable":
            return float(cost.trainable)
        case "seconds":
            return cost.seconds
        case _:
            assert_never(price)


def _draw_band(axes: "Axes", found: Band, style: Style) -> None:
    axes.plot(
        found.steps,
        found.mean,
        color=style.colour,
        linestyle=style.line,
        label=style.label,
        marker=style.marker,
        markersize=4,
        markevery=max(1, len(found.steps) // 8),
        markerfacecolor=style.colour if style.filled else "none",
    )
    if any(found.spread):
        axes.fill_between(
            found.steps, found.low, found.high, color=style.colour, alpha=0.16, linewidth=0
        )


def _draw_point(axes: "Axes", point: Point) -> None:
    style = point.style
    if point.x is None:
        axes.axhline(point.y, color=style.colour, linestyle=style.line, linewidth=1.2)
        return
    axes.errorbar(
        [point.x],
        [point.y],
        yerr=[point.spread],
        fmt=style.marker,
        color=style.colour,
        markerfacecolor=style.colour if style.filled else "none",
        markersize=7,
        capsize=4,
        elinewidth=1.2,
    )


def draw_learning_rates(
    found: Mapping[float, TrainedRun], path: Path, *, select: str, best: float, title: str
) -> None:
    """Draw the validation loss and the selection metric over the learning rate, as PNG.

    Args:
        found: the runs by their multipliers.
        select: the metric that prompts are selected by.
        best: the multiplier to highlight.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415  # slow to import, and only needed here

    points = sorted(found.values(), key=lambda trained: trained.rate)
    names = ["loss"] if select == "loss" else ["loss", select]
    figure = Figure(figsize=(5 * len(names), 4), layout="constrained")
    frames = figure.subplots(1, len(names), squeeze=False)[0]
    for frame, name in zip(frames, names, strict=True):
        values = [trained.validation[name] for trained in points]
        frame.plot([p.rate for p in points], values, marker="o", color="#33527a")
        chosen = found[best]
        frame.plot(
            [chosen.rate], [chosen.validation[name]], marker="o", markersize=11, color="#b5482f"
        )
        frame.set_xscale("log")
        frame.set_xlabel("learning rate")
        frame.set_ylabel(f"validation {name}")
        frame.grid(alpha=0.3)
    figure.suptitle(title, parse_math=False)
    figure.savefig(path, dpi=120, format="png")
