"""Tables of rows: their columns and labels, and checks on both."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, TypeAlias

from softprompt.errors import DataError

if TYPE_CHECKING:
    import datasets


# A string instead of the class: `datasets` takes seconds to import, and only readers need it.
Table: TypeAlias = "datasets.Dataset"

_FLOATS = ("float", "double", "halffloat")
# What the names of Arrow's types of text and numbers begin with.
_SCALARS = ("string", "large_string", "bool", "int", "uint", "null", *_FLOATS)


def check_columns(rows: Table, names: Iterable[str], *, where: str) -> None:
    """Check that columns exist, contain text or numbers, and have a value in every row.

    Args:
        rows: the data.
        names: the columns that are needed.
        where: the name of the data in messages, such as ``reviews.csv``.

    Raises:
        DataError: a column is missing, contains lists or records, or has empty cells.
    """
    needed = list(dict.fromkeys(names))
    check_names(needed, rows.column_names, where=where)
    for name in needed:
        kind = str(rows.data.schema.field(name).type)
        if not kind.startswith(_SCALARS):
            msg = (
                f"column {name!r} of {where} has the type {kind}, but only text and numbers can be "
                "read. Make one text column of it first."
            )
            raise DataError(msg)
        _check_complete(rows, name, where=where)


def check_names(needed: Sequence[str], present: Sequence[str], *, where: str) -> None:
    """Check that columns exist.

    Args:
        needed: the names of the columns that are needed.
        present: the names of the columns of the data.
        where: the name of the data in messages.

    Raises:
        DataError: a column is missing.
    """
    missing = [name for name in needed if name not in present]
    if missing:
        raise DataError(_describe_missing(missing, present, where=where))


def map_values(rows: Table, names: Mapping[str, Mapping[str, str]], *, where: str) -> Table:
    """Replace the values of columns, such as 0 and 1 by names.

    Args:
        rows: the data.
        names: the new name of every value's text, by column; several values may get the same name.
        where: the name of the data in messages.

    Returns:
        The new table.

    Raises:
        DataError: a column is missing, or one of its values has no new name.
    """
    check_columns(rows, names, where=where)
    for column, words in names.items():
        values = [str(value) for value in rows[column]]
        unnamed = Counter(value for value in values if value not in words)
        if unnamed:
            listed = _format_counts(dict(sorted(unnamed.items())))
            msg = (
                f"column {column!r} of {where} has values without a name: {listed}. "
                f"data.value_map.{column} has names for {', '.join(map(repr, words))}. Add the "
                "others."
            )
            raise DataError(msg)
        renamed = [words[value] for value in values]
        rows = rows.remove_columns(column).add_column(column, renamed)
    return rows


def check_duplicate_names(names: Sequence[str], *, where: str) -> None:
    """Check that no two columns have the same name.

    Args:
        names: the names of the columns.
        where: the name of the data in messages.

    Raises:
        DataError: two columns have the same name.
    """
    if len({*names}) < len(names):
        duplicate = next(name for name in names if names.count(name) > 1)
        msg = f"{where} has two columns called {duplicate!r}. Rename one of them."
        raise DataError(msg)


def make_table(columns: Mapping[str, list[object]], *, where: str) -> Table:
    """Make a table from columns.

    Args:
        columns: the values by column name, the same number in each.
        where: the name of the data in messages.

    Returns:
        The table, in memory.

    Raises:
        DataError: a column mixes types, or has values that a table cannot contain.
    """
    import datasets

    for name, values in columns.items():
        types = {type(value) for value in values if value is not None}
        if len(types) > 1 and types != {int, float}:
            first_rows = {
                t.__name__: next(i for i, v in enumerate(values) if type(v) is t) for t in types
            }
            listed = ", ".join(f"{name} (row {row})" for name, row in sorted(first_rows.items()))
            msg = f"column {name!r} of {where} mixes {listed}. Write all its values in one form."
            raise DataError(msg)
    try:
        return datasets.Dataset.from_dict(dict(columns))
    except (ValueError, TypeError, OverflowError) as error:
        reason = str(error).rstrip(".")
        msg = (
            f"{where} cannot be converted to a table: {reason}. Write text and plain numbers only."
        )
        raise DataError(msg) from error


def name_classes(rows: Table) -> Table:
    """Replace class labels of `datasets` by their names.

    Args:
        rows: the data.

    Returns:
        The new table; -1, which means an unknown class, becomes None.
    """
    import datasets

    for column, feature in list(rows.features.items()):
        if isinstance(feature, datasets.ClassLabel):
            ids = rows[column]
            labels = [feature.names[i] if i is not None and i >= 0 else None for i in ids]
            rows = rows.remove_columns(column).add_column(column, labels)
    return rows


def _describe_missing(missing: Sequence[str], present: Sequence[str], *, where: str) -> str:
    noun = "column" if len(missing) == 1 else "columns"
    close = {name: get_close_matches(name, present, n=1) for name in missing}
    hints = [f"{matches[0]!r} for {name!r}" for name, matches in close.items() if matches]
    hint = f" Did you mean {', '.join(hints)}?" if hints else " Rename a column or the field."
    listed = ", ".join(repr(name) for name in missing)
    return f"{where} has no {noun} {listed}. It has: {', '.join(sorted(present))}.{hint}"


def _check_complete(rows: Table, name: str, *, where: str) -> None:
    """Check that a column has a value in every row; NaN is a missing value, as in pandas."""
    column = rows.data.column(name)
    # The Arrow table may have more rows than this selection, so nulls there are only a hint.
    if column.null_count == 0 and not str(column.type).startswith(_FLOATS):
        return
    empty = [index for index, value in enumerate(rows[name]) if _is_missing(value)]
    if empty:
        count = "1 row has" if len(empty) == 1 else f"{len(empty)} rows have"
        msg = (
            f"{count} no value in column {name!r} of {where} ({len(rows)} rows); the first is row "
            f"{empty[0]} (counted from 0). Fill the cells or leave those rows out."
        )
        raise DataError(msg)


def _is_missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


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
    labels = sorted(known)
    counts = _count_labels(rows, column, where=f"the {split} data")
    unseen = {label: count for label, count in sorted(counts.items()) if label not in labels}
    if unseen:
        msg = (
            f"column {column!r} of the {split} data has labels that the training data does not "
            f"have: {_format_counts(unseen)}. Known labels: {', '.join(labels)}. "
            "Correct them, leave those rows out, or split the data again."
        )
        raise DataError(msg)


def _count_labels(rows: Table, column: str, *, where: str) -> Counter[str]:
    check_columns(rows, [column], where=where)
    return Counter(str(value) for value in rows[column])


def _format_counts(counts: Mapping[str, int]) -> str:
    """Values, each with the number of its rows."""
    return ", ".join(f"{v!r} ({n} row{'' if n == 1 else 's'})" for v, n in counts.items())


def _check_whitespace(counts: Counter[str], column: str) -> None:
    """Check that no two labels differ only in surrounding whitespace."""
    groups: dict[str, dict[str, int]] = {}
    for label, count in sorted(counts.items()):
        groups.setdefault(label.strip(), {})[label] = count
    for stripped, group in groups.items():
        if len(group) > 1:
            msg = (
                f"labels in column {column!r} differ only in whitespace: {_format_counts(group)}. "
                f"Write all of them as {stripped!r}."
            )
            raise DataError(msg)
