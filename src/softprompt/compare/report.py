"""Summaries as a table: for the terminal and in Markdown."""

from collections.abc import Sequence
from statistics import fmean

from softprompt.compare.outcome import Cost
from softprompt.compare.statistics import Difference, Summary

_GIGA, _MEGA, _KILO = 1e9, 1e6, 1e3


def head(measure: str) -> tuple[str, ...]:
    """The names of the columns.

    Args:
        measure: what a score is called.
    """
    return (
        "",
        measure,
        "seeds",
        "over the best control",
        "trained",
        "share",
        "kept",
        "seconds",
        "memory",
        "rows/s",
        "rate",
    )


def best_first(found: Sequence[Summary]) -> list[Summary]:
    """The arms by their scores."""
    return sorted(found, key=lambda summary: summary.mean, reverse=True)


def rows_of(found: Sequence[Summary]) -> list[list[str]]:
    """The cells of each arm under :func:`head`, the best first."""
    return [_row(summary) for summary in best_first(found)]


def markdown(found: Sequence[Summary], *, measure: str) -> str:
    """The table in Markdown; controls are in italics.

    Args:
        measure: what a score is called.
    """
    names = head(measure)
    rules = ["---", *["--:"] * (len(names) - 1)]
    rows = rows_of(found)
    for cells, summary in zip(rows, best_first(found), strict=True):
        if summary.control:
            cells[0] = f"*{cells[0]}*"
    lines = [[cell.replace("|", r"\|") for cell in cells] for cells in (names, rules, *rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _row(summary: Summary) -> list[str]:
    spread = "" if summary.spread is None else f" ± {100 * summary.spread:.1f}"
    costs = [outcome.cost for outcome in summary.outcomes if outcome.cost is not None]
    rates = sorted({outcome.rate for outcome in summary.outcomes if outcome.rate is not None})
    seeds = "" if summary.outcomes[0].seed is None else str(summary.seeds)
    return [
        " ".join(summary.arm.split()),
        f"{100 * summary.mean:.1f}{spread} %",
        seeds,
        _over(summary.difference),
        *_cost(costs),
        ", ".join(f"{rate:g}" for rate in rates),
    ]


def _cost(costs: Sequence[Cost]) -> list[str]:
    if not costs:
        return [""] * 6
    last = costs[-1]
    memory, speed = max(c.memory for c in costs), fmean(c.speed for c in costs)
    return [
        f"{last.trainable:,}",
        f"{last.trainable / (last.parameters + last.added):.3%}",
        size_said(last.size),
        f"{fmean(c.seconds for c in costs):.0f}",
        size_said(memory) if memory else "",
        f"{speed:.1f}" if speed else "",
    ]


def size_said(size: int) -> str:
    """Bytes as people say them, of 10^3, 10^6 or 10^9."""
    for unit, name in ((_GIGA, "GB"), (_MEGA, "MB"), (_KILO, "kB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} B"


def _over(difference: Difference | None) -> str:
    if difference is None:
        return ""
    low, high = 100 * difference.low, 100 * difference.high
    return f"{100 * difference.mean:+.1f} ({low:+.1f} to {high:+.1f})"
