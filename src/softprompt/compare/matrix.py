"""Confusion matrices of an arm, added up over its seeds."""

from collections.abc import Sequence
from dataclasses import dataclass

from softprompt.compare.statistics import Summary

# A matrix of more labels is no picture any more.
MOST_LABELS = 12


@dataclass(frozen=True)
class Cell:
    """How often a label was answered with another.

    Args:
        count: over all seeds.
        share: of the rows with that true label; 0 where there are none.
        right: whether the answer is the truth.
    """

    count: int
    share: float
    right: bool


@dataclass(frozen=True)
class Matrix:
    """Who was taken for whom by an arm.

    Args:
        arm: its name.
        answered: the columns.
        rows: of each true label, its cells.
    """

    arm: str
    answered: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


def matrix(summary: Summary) -> Matrix | None:
    """The matrix of an arm, added up over its seeds; None for free text.

    A column that some seeds lack, for answers that are no label, counts as none of theirs.
    """
    tables = [o.confusion for o in summary.outcomes if o.confusion is not None]
    if not tables:
        return None
    columns = max((table.predicted_labels for table in tables), key=len)
    sums = {label: dict.fromkeys(columns, 0) for label in tables[0].labels}
    for table in tables:
        for label, counts in zip(table.labels, table.counts, strict=True):
            for column, count in zip(table.predicted_labels, counts, strict=True):
                sums[label][column] += count
    rows = ((label, _cells(label, counts)) for label, counts in sums.items())
    return Matrix(summary.arm, columns, tuple(rows))


def matrices(found: Sequence[Summary]) -> list[Matrix]:
    """Those of all arms that have one, in their order."""
    return [made for made in map(matrix, found) if made is not None]


def _cells(label: str, counts: dict[str, int]) -> tuple[Cell, ...]:
    total = max(1, sum(counts.values()))
    return tuple(Cell(n, n / total, right=column == label) for column, n in counts.items())
