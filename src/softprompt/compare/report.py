"""Summaries as a table: for the terminal and in Markdown."""

from collections.abc import Sequence
from statistics import fmean

from softprompt.compare.statistics import Difference, Summary

HEAD = ("", "right", "seeds", "over the best control", "trained", "bytes", "seconds", "rate")


def rows_of(found: Sequence[Summary]) -> list[list[str]]:
    """The cells of each arm under :data:`HEAD`, the best first."""
    return [_row(summary) for summary in sorted(found, key=lambda s: s.mean, reverse=True)]


def markdown(found: Sequence[Summary]) -> str:
    """The table in Markdown."""
    lines = [HEAD, ["---"] * len(HEAD), *rows_of(found)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _row(summary: Summary) -> list[str]:
    spread = "" if summary.spread is None else f" ± {100 * summary.spread:.1f}"
    right = f"{100 * summary.mean:.1f}{spread} %"
    if not summary.trained:
        return [summary.arm, right, *[""] * (len(HEAD) - 2)]
    last = summary.outcomes[-1]
    rates = sorted({outcome.rate for outcome in summary.outcomes if outcome.rate is not None})
    return [
        summary.arm,
        right,
        str(summary.seeds),
        _over(summary.difference),
        f"{last.trainable:,}",
        f"{last.size:,}",
        f"{fmean(outcome.seconds for outcome in summary.outcomes):.0f}",
        ", ".join(f"{rate:g}" for rate in rates),
    ]


def _over(difference: Difference | None) -> str:
    if difference is None:
        return ""
    low, high = 100 * difference.low, 100 * difference.high
    return f"{100 * difference.mean:+.1f} ({low:+.1f} to {high:+.1f})"
