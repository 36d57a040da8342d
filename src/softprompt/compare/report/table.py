"""Summaries as tables: scores and costs as text and in Markdown; confusion matrices."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from softprompt.compare.results import Cost
from softprompt.compare.statistics import Difference, Summary

_GIGA, _MEGA, _KILO = 1e9, 1e6, 1e3
# A larger matrix is not readable.
MOST_LABELS = 12


def format_header(measure: str) -> tuple[str, ...]:
    """The names of the columns.

    Args:
        measure: the name of the score.
    """
    return (
        "",
        measure,
        "seeds",
        "vs best baseline (95 % CI)",
        "trainable",
        "% trainable",
        "saved",
        "seconds",
        "memory",
        "rows/s",
        "learning rate",
    )


def sort_by_score(summaries: Sequence[Summary]) -> list[Summary]:
    """The variants by their scores, the best first."""
    return sorted(summaries, key=lambda summary: summary.mean, reverse=True)


def format_rows(summaries: Sequence[Summary]) -> list[list[str]]:
    """The cells of each variant under `format_header`, the best first."""
    return [_format_row(summary) for summary in sort_by_score(summaries)]


def format_markdown(summaries: Sequence[Summary], *, measure: str) -> str:
    """The table in Markdown; baselines are in italics.

    Args:
        summaries: of the variants and baselines.
        measure: the name of the score.
    """
    names = format_header(measure)
    rules = ["---", *["--:"] * (len(names) - 1)]
    rows = format_rows(summaries)
    for cells, summary in zip(rows, sort_by_score(summaries), strict=True):
        if summary.is_baseline:
            cells[0] = f"*{cells[0]}*"
    lines = [[cell.replace("|", r"\|") for cell in cells] for cells in (names, rules, *rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _format_row(summary: Summary) -> list[str]:
    spread = "" if summary.spread is None else f" ± {100 * summary.spread:.1f}"
    costs = [result.cost for result in summary.results if result.cost is not None]
    rates = sorted({result.rate for result in summary.results if result.rate is not None})
    seeds = "" if summary.results[0].seed is None else str(summary.seeds)
    return [
        " ".join(summary.variant.split()),
        f"{100 * summary.mean:.1f}{spread} %",
        seeds,
        _format_difference(summary.difference),
        *_format_costs(costs),
        ", ".join(f"{rate:g}" for rate in rates),
    ]


def _format_costs(costs: Sequence[Cost]) -> list[str]:
    if not costs:
        return [""] * 6
    last = costs[-1]
    memory, speed = max(c.memory for c in costs), fmean(c.speed for c in costs)
    return [
        f"{last.trainable:,}",
        f"{last.trainable / (last.parameters + last.added):.3%}",
        format_bytes(last.size),
        f"{fmean(c.seconds for c in costs):.0f}",
        format_bytes(memory) if memory else "",
        f"{speed:.1f}" if speed else "",
    ]


def format_bytes(size: int) -> str:
    """Bytes in units of 10^3, 10^6 or 10^9."""
    for unit, name in ((_GIGA, "GB"), (_MEGA, "MB"), (_KILO, "kB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} B"


def _format_difference(difference: Difference | None) -> str:
    if difference is None:
        return ""
    low, high = 100 * difference.low, 100 * difference.high
    return f"{100 * difference.mean:+.1f} ({low:+.1f} to {high:+.1f})"


@dataclass(frozen=True)
class Cell:
    """How often rows of one label were predicted as another, or the same.

    Args:
        count: summed over all seeds.
        share: of the rows with that true label, 0 to 1; 0 without rows.
        right: whether the predicted label is the true one.
    """

    count: int
    share: float
    right: bool


@dataclass(frozen=True)
class Matrix:
    """The confusion matrix of a variant.

    Args:
        variant: its name.
        answered: the predicted labels, which are the columns.
        rows: the true labels, each with its cells.
    """

    variant: str
    answered: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


def sum_confusions(summary: Summary) -> Matrix | None:
    """The confusion matrix of a variant, summed over its seeds; None for free text.

    A column that only some seeds have, for answers that are not a label, is 0 for the others.
    """
    confusions = [result.confusion for result in summary.results if result.confusion is not None]
    if not confusions:
        return None
    columns = max((confusion.predicted_labels for confusion in confusions), key=len)
    sums = {label: dict.fromkeys(columns, 0) for label in confusions[0].labels}
    for confusion in confusions:
        for label, counts in zip(confusion.labels, confusion.counts, strict=True):
            for column, count in zip(confusion.predicted_labels, counts, strict=True):
                sums[label][column] += count
    rows = ((label, _make_cells(label, counts)) for label, counts in sums.items())
    return Matrix(summary.variant, columns, tuple(rows))


def make_matrices(summaries: Sequence[Summary]) -> list[Matrix]:
    """The confusion matrices of all variants that have one, in their order."""
    return [matrix for matrix in map(sum_confusions, summaries) if matrix is not None]


def _make_cells(label: str, counts: dict[str, int]) -> tuple[Cell, ...]:
    total = max(1, sum(counts.values()))
    return tuple(Cell(n, n / total, right=column == label) for column, n in counts.items())
