"""The rows of a data set, and whether the columns that are needed are there and whole."""

from collections import Counter
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, TypeAlias

from softprompt.errors import DataError

if TYPE_CHECKING:
    import datasets

# A name and not the class: `datasets` takes seconds to import, and only readers need it.
Rows: TypeAlias = "datasets.Dataset"

# What arrow calls columns of text and of numbers.
_PLAIN = ("string", "large_string", "bool", "int", "uint", "float", "double", "halffloat", "null")


def check_columns(rows: Rows, names: Iterable[str], *, where: str) -> None:
    """Make sure that columns exist, hold text or numbers, and have a value in every row.

    Args:
        rows: the data.
        names: the columns that are needed.
        where: what to call the data in a message, such as ``reviews.csv``.

    Raises:
        DataError: a column is missing, holds lists or records, or has empty cells.
    """
    needed = list(dict.fromkeys(names))
    missing = [name for name in needed if name not in rows.column_names]
    if missing:
        raise DataError(_missing(missing, rows.column_names, where=where))
    for name in needed:
        kind = str(rows.data.schema.field(name).type)
        if not kind.startswith(_PLAIN):
            msg = (
                f"column {name!r} of {where} holds {kind}, but only text and numbers can be read. "
                "Make one text column of it first."
            )
            raise DataError(msg)
        _check_whole(rows, name, where=where)


def named(rows: Rows, names: Mapping[str, Mapping[str, str]], *, where: str) -> Rows:
    """The same rows, some of whose columns hold other words: names for 0 and 1, say.

    Args:
        rows: the data.
        names: for each such column, the new word for every value's text; several may get the same.
        where: what to call the data in a message.

    Raises:
        DataError: there is no such column, or a value of it has no name.
    """
    check_columns(rows, names, where=where)
    for column, words in names.items():
        values = [str(value) for value in rows[column]]
        without = Counter(value for value in values if value not in words)
        if without:
            count = sorted(without.items())
            listed = ", ".join(f"{v!r} ({n} row{'' if n == 1 else 's'})" for v, n in count)
            msg = (
                f"column {column!r} of {where} has values without a name: {listed}. "
                f"data.names.{column} has names for {', '.join(map(repr, words))}. Add the others."
            )
            raise DataError(msg)
        renamed = [words[value] for value in values]
        rows = rows.remove_columns(column).add_column(column, renamed)
    return rows


def _missing(missing: list[str], present: list[str], *, where: str) -> str:
    what = "column" if len(missing) == 1 else "columns"
    close = {name: get_close_matches(name, present, n=1) for name in missing}
    hints = [f"{near[0]!r} for {name!r}" for name, near in close.items() if near]
    hint = f" Did you mean {', '.join(hints)}?" if hints else " Rename a column or the field."
    named = ", ".join(repr(name) for name in missing)
    return f"{where} has no {what} {named}. It has: {', '.join(sorted(present))}.{hint}"


def _check_whole(rows: Rows, name: str, *, where: str) -> None:
    # The arrow table may hold more rows than a selection of it: it can only say that all is well.
    if rows.data.column(name).null_count == 0:
        return
    empty = [index for index, value in enumerate(rows[name]) if value is None]
    if empty:
        count = "1 row has" if len(empty) == 1 else f"{len(empty)} rows have"
        msg = (
            f"{count} no value in column {name!r} of {where} ({len(rows)} rows); the first is row "
            f"{empty[0]} (counted from 0). Fill the cells or leave those rows out."
        )
        raise DataError(msg)
