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


# The cost on the horizontal axis of a figure.
Price = Literal["trainable", "seconds"]

# Metrics from 0 to 1, which are drawn as percentages.
_FRACTIONS = {"accuracy", "exact_match", "f1", "macro_f1", "rouge1", "rouge2", "rougeL"}
_LEGEND_FONT_SIZE = 9.5


def draw_curves(curves: Curves, *, styles: Mapping[str, Style], metric: str) -> "Figure":
    """Draw a metric on the validation rows over the steps, with a band of ±1 deviation.

    Args:
        curves: by variant, one for each seed: points of step and value.
        styles: of the variants.
        metric: its name.
    """
    bands = {variant: average_curves(runs) for variant, runs in curves.items() if any(runs)}
    with make_axes(legend=len(bands)) as (figure, axes):
        for variant, band in bands.items():
            _draw_band(axes, band, styles[variant])
        axes.set_xlabel("step")
        axes.set_ylabel(f"{metric}, validation rows")
        axes.xaxis.set_major_formatter(lambda value, _: format_short(value))
        if metric in _FRACTIONS:
            use_percent(axes)
        if metric == "loss":
            crop_starts(axes, [*bands.values()])
        figure.legend(
            loc="outside lower center",
            ncols=2,
            fontsize=_LEGEND_FONT_SIZE,
            handlelength=2.8,
            frameon=False,
        )
    return figure


def draw_against(
    summaries: Sequence[Summary], *, styles: Mapping[str, Style], price: Price, measure: str
) -> "Figure":
    """Draw the score on the test rows against the cost, ±1 deviation over seeds.

    A variant without cost is a horizontal line; one far from all others is named above the frame.

    Args:
        summaries: of variants and baselines.
        styles: of the variants.
        price: parameters or seconds; the axis is logarithmic if they differ much.
        measure: the name of the score.
    """
    points = [
        Point(styles[s.variant], get_price(s, price), s.mean, 0.0 if s.spread is None else s.spread)
        for s in summaries
    ]
    with make_axes() as (figure, axes):
        visible = crop_outliers(axes, points)
        for point in visible:
            _draw_point(axes, point)
        axes.set_xlabel("trained parameters" if price == "trainable" else "seconds of training")
        axes.set_ylabel(f"{measure}, test rows")
        use_percent(axes)
        use_log_scale(axes, [point.x for point in points if point.x is not None])
        label_points(figure, axes, points=visible)
    return figure


def draw_leads(summaries: Sequence[Summary], *, styles: Mapping[str, Style]) -> "Figure":
    """Draw the differences from the best baseline in points, with their 95 % intervals.

    Args:
        summaries: from top to bottom; those without a difference are left out.
        styles: of the variants.
    """
    shown = [(styles[s.variant], s.difference) for s in summaries if s.difference is not None]
    with make_axes(height=max(2.4, 0.9 + 0.38 * len(shown))) as (figure, axes):
        axes.axvline(0, color=FAINT, linewidth=1.2, linestyle="--")
        for row, (style, difference) in enumerate(shown):
            ends = (difference.low, difference.mean, difference.high)
            low, mean, high = (100 * value for value in ends)
            axes.errorbar(
                [mean],
                [row],
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
    return fmean(_get_cost(cost, price) for cost in costs) if costs else None


def _get_cost(cost: Cost, price: Price) -> float:
    match price:
        case "trainable":
            return float(cost.trainable)
        case "seconds":
            return cost.seconds
        case _:
            assert_never(price)


def _draw_band(axes: "Axes", band: Band, style: Style) -> None:
    axes.plot(
        band.steps,
        band.mean,
        color=style.colour,
        linestyle=style.line,
        label=style.label,
        marker=style.marker,
        markersize=4,
        markevery=max(1, len(band.steps) // 8),
        markerfacecolor=style.colour if style.filled else "none",
    )
    if any(band.spread):
        axes.fill_between(
            band.steps, band.low, band.high, color=style.colour, alpha=0.16, linewidth=0
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
    runs: Mapping[float, TrainedRun], path: Path, *, select: str, best: float, title: str
) -> None:
    """Draw the validation loss and the selection metric over the learning rate, as PNG.

    Args:
        runs: by their multipliers.
        path: of the file to write.
        select: the metric that prompts are selected by.
        best: the multiplier to highlight.
        title: of the figure.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415  # slow to import, and only needed here

    points = sorted(runs.values(), key=lambda trained: trained.rate)
    names = ["loss"] if select == "loss" else ["loss", select]
    figure = Figure(figsize=(5 * len(names), 4), layout="constrained")
    frames = figure.subplots(1, len(names), squeeze=False)[0]
    for frame, name in zip(frames, names, strict=True):
        values = [trained.validation[name] for trained in points]
        frame.plot([p.rate for p in points], values, marker="o", color="#33527a")
        best_run = runs[best]
        frame.plot(
            [best_run.rate],
            [best_run.validation[name]],
            marker="o",
            markersize=11,
            color="#b5482f",
        )
        frame.set_xscale("log")
        frame.set_xlabel("learning rate")
        frame.set_ylabel(f"validation {name}")
        frame.grid(alpha=0.3)
    figure.suptitle(title, parse_math=False)
    figure.savefig(path, dpi=120, format="png")
