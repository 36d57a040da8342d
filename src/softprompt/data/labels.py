"""The labels of a column: which there are, whether they are known, and which may be the same."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from softprompt.data.table import Table, check_columns, format_counts, quote_text, to_text
from softprompt.errors import DataError

_NO_VALUES = {"nan", "none", "null", "na", "n/a", "<na>", "nat"}
# The most labels that a message lists.
_MAX_LISTED = 20


def collect_labels(rows: Table, column: str) -> tuple[str, ...]:
    """The distinct labels of a column.

    Args:
        rows: the training data.
        column: the column of the labels; numbers become text (1 is "1").

    Returns:
        The labels, sorted.

    Raises:
        DataError: the column is missing or has empty cells, has only one label, or has two labels
            that differ only in surrounding whitespace.
    """
    counts = _count_labels(rows, column, where="the training data")
    _check_whitespace(counts, column)
    if len(counts) == 1:
        msg = (
            f"all {len(rows)} rows of the training data have the label {next(iter(counts))!r} in "
            f"column {column!r}. At least two different labels are needed."
        )
        raise DataError(msg)
    return tuple(sorted(counts))


def check_labels(rows: Table, column: str, *, known: Iterable[str], split: str) -> None:
    """Check that another split has no labels that are not in the training data.

    Args:
        rows: the rows of the split.
        column: the column of the labels.
        known: the labels of the training data.
        split: the name of the split, for messages.

    Raises:
        DataError: a label is not known.
    """
    counts = _count_labels(rows, column, where=f"the {split} data")
    unseen = {label: counts[label] for label in sorted(counts.keys() - {*known})}
    if unseen:
        msg = (
            f"column {column!r} of the {split} data has labels that the training data does not "
            f"have: {format_counts(unseen)}. Known labels: {', '.join(sorted(known))}. "
            "Correct them, leave those rows out, or split the data again."
        )
        raise DataError(msg)


def check_choices(rows: Table, column: str, *, choices: Sequence[str], split: str) -> None:
    """Check that every answer is one of the choices, if there are any.

    Args:
        rows: the data.
        column: the column of the answers.
        choices: the possible answers; empty for any text.
        split: the name of the split, for messages.

    Raises:
        DataError: an answer is not one of them.
    """
    answers = [str(answer) for answer in rows[column][:]] if choices else []
    check_answers(answers, column, choices=choices, split=split)


def check_answers(
    answers: Iterable[str], column: str, *, choices: Sequence[str], split: str
) -> None:
    """As `check_choices`, of answers that are read already.

    Args:
        answers: of the rows.
        column: that they are of.
        choices: the possible answers; empty for any text.
        split: the name of the split, for messages.

    Raises:
        DataError: an answer is not one of them.
    """
    unknown = sorted({*answers} - {*choices}) if choices else []
    if unknown:
        msg = (
            f"column {column!r} of the {split} data has {', '.join(map(repr, unknown[:5]))}, but "
            f"the choices are {', '.join(map(repr, choices[:20]))}. Correct them, leave those rows "
            "out, or list them in choices."
        )
        raise DataError(msg)


def _count_labels(rows: Table, column: str, *, where: str) -> Counter[str]:
    check_columns(rows, [column], where=where)
    return Counter(map(to_text, rows[column][:]))


def _check_whitespace(counts: Counter[str], column: str) -> None:
    """Check that no two labels differ only in surrounding whitespace."""
    for group in _group_labels(counts, str.strip):
        msg = (
            f"labels in column {column!r} differ only in whitespace: {format_counts(group)}. "
            f"Write all of them as {next(iter(group)).strip()!r}, or join them in the recipe: "
            f"{_format_value_map(column, join_labels(counts, str.strip))}"
        )
        raise DataError(msg)


def describe_labels(counts: Mapping[str, int], column: str) -> list[str]:
    """Describe labels that may be the same one, or none.

    Args:
        counts: the number of rows of each label.
        column: the column of the labels.

    Returns:
        A sentence or two for each group of labels that differ only in case or spacing, with the
        ``data.value_map`` that joins all groups, and one for labels that look like missing values.
    """
    groups = [format_counts(group) for group in _group_labels(counts, fold_label)]
    notes = [f"labels in column {column!r} differ only in case or spacing: {g}" for g in groups]
    if notes:
        value_map = _format_value_map(column, join_labels(counts, fold_label))
        notes[-1] += f". If they are the same, join them in the recipe: {value_map}"
    missing = {label: n for label, n in counts.items() if label.strip().casefold() in _NO_VALUES}
    if missing:
        notes.append(
            f"labels in column {column!r} look like missing values: {format_counts(missing)}. If "
            "they are, leave those rows out"
        )
    return notes


def fold_label(label: str) -> str:
    """A label without what people write differently: case, spacing and forms of characters."""
    return " ".join(unicodedata.normalize("NFKC", label).split()).casefold()


def join_labels(counts: Mapping[str, int], fold: Callable[[str], str]) -> dict[str, str]:
    """The values of ``data.value_map`` that join labels.

    Args:
        counts: the number of rows of each label.
        fold: which is the same for labels that are to be joined.

    Returns:
        For every label the commonest one of its group, without spaces around it.
    """
    commonest: dict[str, str] = {}
    for label in sorted(counts, key=lambda label: (-counts[label], label)):
        commonest.setdefault(fold(label), label.strip())
    return {label: commonest[fold(label)] for label in sorted(counts)}


def _group_labels(counts: Mapping[str, int], fold: Callable[[str], str]) -> list[Mapping[str, int]]:
    """The groups of several labels that are the same when they are folded."""
    groups: dict[str, dict[str, int]] = {}
    for label, count in sorted(counts.items()):
        groups.setdefault(fold(label), {})[label] = count
    return [group for group in groups.values() if len(group) > 1]


def _format_value_map(column: str, names: Mapping[str, str]) -> str:
    """The line of a recipe; of many labels only those that get another name."""
    pairs = [f"{quote_text(label)} = {quote_text(name)}" for label, name in names.items()]
    if len(pairs) > _MAX_LISTED:
        changed = [f"{quote_text(n)} = {quote_text(m)}" for n, m in names.items() if n != m]
        pairs = [*changed, "and every other label as it is"]
    return f"data.value_map = {{ {quote_text(column)} = {{ {', '.join(pairs)} }} }}"
