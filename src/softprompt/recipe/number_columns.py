"""Columns of numbers: which there are, and which are too many to be labels."""

import re
from collections.abc import Collection, Sequence

from softprompt.data import Table
from softprompt.data.table import has_numbers_only, is_missing, to_text

# With fewer, numbers may be labels that are not repeated yet.
_MIN_ROWS = 10
_FEWEST_NUMBERS = 2
_WHOLE = re.compile(r"[+-]?\d+(\.0*)?")


def count_values(table: Table, names: Sequence[str]) -> dict[str, int]:
    """The number of different values of columns.

    Args:
        table: the data.
        names: the columns.
    """
    return {n: len({value for value in table[n][:] if not is_missing(value)}) for n in names}


def list_whole_numbers(table: Table) -> list[str]:
    """The columns of whole numbers, as text too, and of truth values.

    Args:
        table: the data.
    """
    kinds = {name: str(table.data.schema.field(name).type) for name in table.column_names}
    return [
        name
        for name, kind in kinds.items()
        if kind.startswith(("int", "uint", "bool"))
        or (_is_number(table, name, kind) and not _has_fractions(table, name))
    ]


def _is_number(table: Table, name: str, kind: str) -> bool:
    is_text = kind in {"string", "large_string"}
    return kind in {"float", "double"} or (is_text and has_numbers_only(table, name))


def _has_fractions(table: Table, name: str) -> bool:
    cells = (value for value in table[name][:] if not is_missing(value))
    return not all(_WHOLE.fullmatch(to_text(value)) for value in cells)


def find_number_column(table: Table, names: Collection[str]) -> str | None:
    """The column of numbers that are too many to be labels.

    Args:
        table: the data.
        names: that such a column may have.
    """
    for name in table.column_names:
        if _has_numbers_to_estimate(table, name, names) and _has_fractions_or_many(table, name):
            return str(name)
    return None


def _has_fractions_or_many(table: Table, name: str) -> bool:
    """Whether numbers are not whole, or hardly repeated: stars from 1 to 5 are labels."""
    distinct = count_values(table, [name])[name]
    is_varied = distinct > _FEWEST_NUMBERS
    return is_varied and (distinct > len(table) // 2 or _has_fractions(table, name))


def _has_numbers_to_estimate(table: Table, name: str, names: Collection[str]) -> bool:
    kind = str(table.data.schema.field(name).type)
    is_number = kind.startswith("int") or _is_number(table, name, kind)
    return is_number and name.strip().lower() in names and len(table) >= _MIN_ROWS
