"""The labels of a data set, and whether another part of it has the same ones."""

from collections import Counter
from collections.abc import Iterable

from softprompt.data.rows import Rows, check_columns
from softprompt.errors import DataError


def labels_of(rows: Rows, column: str) -> tuple[str, ...]:
    """The distinct labels of a column.

    Args:
        rows: the data to learn from.
        column: where the labels stand; numbers become their text (1 is "1").

    Returns:
        The labels, sorted.

    Raises:
        DataError: the column is missing or has empty cells, has one label only, or has two labels
            that differ in surrounding whitespace alone.
    """
    counts = _counts(rows, column, where="the training data")
    _check_distinct(counts, column)
    if len(counts) == 1:
        msg = (
            f"all {len(rows)} rows of the training data have the label {next(iter(counts))!r} in "
            f"column {column!r}. At least two labels are needed to tell apart."
        )
        raise DataError(msg)
    return tuple(sorted(counts))


def check_labels(rows: Rows, column: str, *, known: Iterable[str], split: str) -> None:
    """Make sure that another part of the data has no label that training does not have.

    Args:
        rows: the part.
        column: where the labels stand.
        known: the labels of the training data.
        split: the part's name, for messages.

    Raises:
        DataError: a label is not known.
    """
    labels = sorted(known)
    counts = _counts(rows, column, where=f"the {split} data")
    unseen = {label: count for label, count in sorted(counts.items()) if label not in labels}
    if unseen:
        msg = (
            f"column {column!r} of the {split} data has labels that the training data has not: "
            f"{_listed(unseen)}. Known labels: {', '.join(labels)}. "
            "Correct them, leave those rows out, or split the data anew."
        )
        raise DataError(msg)


def _counts(rows: Rows, column: str, *, where: str) -> Counter[str]:
    check_columns(rows, [column], where=where)
    return Counter(str(value) for value in rows[column])


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{la!r} ({n} row{'' if n == 1 else 's'})" for la, n in counts.items())


def _check_distinct(counts: Counter[str], column: str) -> None:
    alike: dict[str, dict[str, int]] = {}
    for label, count in sorted(counts.items()):
        alike.setdefault(label.strip(), {})[label] = count
    for stripped, group in alike.items():
        if len(group) > 1:
            msg = (
                f"labels in column {column!r} differ in whitespace alone: {_listed(group)}. "
                f"Write all of them as {stripped!r}."
            )
            raise DataError(msg)
