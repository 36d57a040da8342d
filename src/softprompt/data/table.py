"""Tables of rows: their columns and cells, and checks on both."""

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pyarrow as pa

from softprompt.errors import DataError

if TYPE_CHECKING:
    import datasets


# A string instead of the class: `datasets` takes seconds to import, and only readers need it.
Table: TypeAlias = "datasets.Dataset"

_FLOATS = ("float", "double", "halffloat")
_TEXTS = ("string", "large_string")
# What the names of Arrow's types of text and numbers begin with.
_SCALARS = (*_TEXTS, "bool", "int", "uint", "null", *_FLOATS)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
# Beyond it a float does not stand for one whole number.
_EXACT = 2.0**53


def to_text(value: object) -> str:
    """The text of a cell, the same whatever the other cells of its column are.

    A text is not changed. A number that is whole has no point, since whole numbers become floats
    in a column with a fraction or a gap. A list or a record becomes JSON.

    Args:
        value: a text, a number, a truth value, a list or a record.

    Returns:
        The text.

    Raises:
        DataError: the value is missing.

    Examples:
        >>> to_text(2.0), to_text(2), to_text(2.5), to_text("2.50"), to_text(["a", "b"])
        ('2', '2', '2.5', '2.50', '["a", "b"]')
    """
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple | Mapping):
        return json.dumps(value, ensure_ascii=False)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        msg = "a cell has no value. Give it text or a number."
        raise DataError(msg)
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        return str(int(value))
    return str(value)


# Bytes; a larger table is not copied, but read through the indices.
_MOST_COPIED = 2**30


def iterate_groups(
    rows: Table, columns: Iterable[str], *, size: int = 1000
) -> Iterator[list[dict[str, object]]]:
    """The rows in groups, which is many times faster than one by one.

    Args:
        rows: the data.
        columns: the columns to read.
        size: the rows of a group.

    Yields:
        The rows of a group, as mappings.
    """
    names = sorted({*columns})
    table = rows.select_columns(names)
    for start in range(0, len(table), size):
        cells = table[start : start + size]
        lines = zip(*(cells[name] for name in names), strict=True)
        yield [dict(zip(names, values, strict=True)) for values in lines]


def take_rows(rows: Table, indices: Sequence[int]) -> Table:
    """The rows at some indices, in their order.

    Args:
        rows: the data.
        indices: counted from 0.
    """
    # `datasets` pickles the indices, which takes a hundred times as long for a list.
    places = np.asarray(indices, dtype=np.int64)
    # A selection is read row by row each time, which takes ten times as long as a table does.
    if rows._indices is not None or rows.data.nbytes > _MOST_COPIED:  # noqa: SLF001  # no public way
        return rows.select(places)
    import datasets

    table = rows.data.table.take(pa.array(places))
    return datasets.Dataset(table, info=rows.info.copy(), split=rows.split)


def list_text_columns(rows: Table) -> list[str]:
    """The columns of text, without those that have nothing but numbers.

    Args:
        rows: the data; in a csv file numbers are text, too.

    Returns:
        The names, in the data's order.
    """
    types = {name: str(rows.data.schema.field(name).type) for name in rows.column_names}
    return [n for n in types if types[n] in _TEXTS and not has_numbers_only(rows, n)]


def has_numbers_only(rows: Table, column: str) -> bool:
    """Whether all cells of a text column that are not empty are numbers, and one is.

    Args:
        rows: the data.
        column: a column of text.
    """
    filled = False
    for cell in rows[column][:]:
        if is_missing(cell):
            continue
        if not _NUMBER.fullmatch(str(cell)):
            return False
        filled = True
    return filled


def check_columns(
    rows: Table, names: Iterable[str], *, where: str, flexible: Collection[str] = ()
) -> None:
    """Check that columns exist, contain text or numbers, and have a value in every row.

    Args:
        rows: the data.
        names: the columns that are needed.
        where: the name of the data in messages, such as ``reviews.csv``.
        flexible: those of them that may contain anything, since a task checks their cells.

    Raises:
        DataError: a column is missing, contains lists or records, or has empty cells.
    """
    needed = list(dict.fromkeys(names))
    check_names(needed, rows.column_names, where=where)
    for name in needed:
        if name in flexible:
            continue
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
        values = [to_text(value) for value in rows[column][:]]
        unnamed = Counter(value for value in values if value not in words)
        if unnamed:
            listed = format_counts(dict(sorted(unnamed.items())))
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
        columns: the values by column name, the same number in each. Lists of ``[start, end,
            label]`` become lists of mappings with these names.
        where: the name of the data in messages.

    Returns:
        The table, in memory.

    Raises:
        DataError: a column mixes types, or has values that a table cannot contain.
    """
    import datasets

    columns = {name: [_name_triples(value) for value in values] for name, values in columns.items()}
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
    except Exception as error:  # of Arrow and `datasets`, for values of all kinds
        reason = str(error).rstrip(".")
        msg = (
            f"{where} cannot be converted to a table: {reason}. Write text and plain numbers only."
        )
        raise DataError(msg) from error


def _name_triples(value: object) -> object:
    """A list of spans ``[start, end, label]`` as mappings, since a table's lists have one type."""
    names, types = ("start", "end", "label"), [int, int, str]
    if not isinstance(value, list) or not value:
        return value
    if not all(isinstance(item, list | tuple) and list(map(type, item)) == types for item in value):
        return value
    return [dict(zip(names, item, strict=True)) for item in value]


def name_classes(rows: Table, *, where: str = "the data") -> Table:
    """Replace class labels of `datasets`, and lists of them, by their names.

    Args:
        rows: the data.
        where: the name of the data in messages.

    Returns:
        The new table; -1, which means an unknown class, becomes None.

    Raises:
        DataError: a class has no name.
    """
    import datasets

    for column, own in list(rows.features.items()):
        is_list = isinstance(own, datasets.List | datasets.LargeList)
        feature = own.feature if is_list else own
        if isinstance(feature, datasets.ClassLabel):
            cells = rows[column][:]
            ids = [i for cell in cells for i in cell or ()] if is_list else cells
            highest = max((i for i in ids if i is not None), default=-1)
            if highest >= len(feature.names):
                msg = (
                    f"column {column!r} of {where} has the class {highest}, but only "
                    f"{len(feature.names)} names for classes. Write it with all names, or with the "
                    "labels themselves."
                )
                raise DataError(msg)
            names = {i: feature.names[i] for i in {*ids} if i is not None and i >= 0}
            labels = (
                [None if cell is None else [*map(names.get, cell)] for cell in cells]
                if is_list
                else [*map(names.get, ids)]
            )
            rows = rows.remove_columns(column).add_column(column, labels)
    return rows


def _describe_missing(missing: Sequence[str], present: Sequence[str], *, where: str) -> str:
    noun = "column" if len(missing) == 1 else "columns"
    close = {name: get_close_matches(name, present, n=1) for name in missing}
    hints = [f"{matches[0]!r} for {name!r}" for name, matches in close.items() if matches]
    hint = f" Did you mean {', '.join(hints)}?" if hints else " Rename a column or the field."
    listed = ", ".join(repr(name) for name in missing)
    return f"{where} has no {noun} {listed}. It has: {', '.join(sorted(present))}.{hint}"


def drop_gaps(rows: Table, columns: Sequence[str], *, where: str) -> Table:
    """Leave out rows without a value in one of some columns.

    Args:
        rows: the data.
        columns: the columns.
        where: the name of the data in messages.

    Returns:
        The other rows.

    Raises:
        DataError: a column is missing, or no row is left.
    """
    check_names(columns, rows.column_names, where=where)
    lines = zip(*(rows[name][:] for name in columns), strict=True)
    kept = [index for index, cells in enumerate(lines) if not any(map(is_missing, cells))]
    if not columns or len(kept) == len(rows):
        return rows
    if not kept:
        msg = (
            f"no row of {where} has a value in {' and '.join(map(repr, columns))}, which "
            "data.drop_missing names. Fill some cells, or correct the names."
        )
        raise DataError(msg)
    return take_rows(rows, kept)


def _check_complete(rows: Table, name: str, *, where: str) -> None:
    """Check that a column has a value in every row."""
    if not _may_have_gaps(rows, name):
        return
    cells = rows[name][:]
    empty = [index for index, value in enumerate(cells) if is_missing(value)]
    if empty:
        count = "1 row has" if len(empty) == 1 else f"{len(empty)} rows have"
        blank = any(isinstance(cells[index], str) for index in empty)
        msg = (
            f"{count} no value in column {name!r} of {where} ({len(rows)} rows); the first is row "
            f"{empty[0]} (counted from 0). {'Blank text is not a value. ' * blank}Fill the cells "
            f"or leave those rows out (in a recipe: data.drop_missing = [{quote_text(name)}])."
        )
        raise DataError(msg)


def _may_have_gaps(rows: Table, name: str) -> bool:
    """Whether a column may lack values.

    The Arrow table may have more rows than this selection, so this is only a hint.
    """
    import pyarrow.compute as pc

    column = rows.data.column(name)
    kind = str(column.type)
    if column.null_count or kind.startswith(_FLOATS):
        return True
    if kind not in _TEXTS:
        return kind.startswith(_TEXTS)  # a view, which Arrow cannot trim
    return bool(pc.any(pc.equal(pc.utf8_trim_whitespace(column), "")).as_py())


def is_missing(value: object) -> bool:
    """Whether a cell has no value: null, NaN, or text that is empty or blank.

    Args:
        value: of the cell.
    """
    match value:
        case None:
            return True
        case float():
            return math.isnan(value)
        case str():
            return not value.strip()
        case _:
            return False


def format_counts(counts: Mapping[str, int]) -> str:
    """Values, each with the number of its rows."""
    return ", ".join(f"{v!r} ({n} row{'' if n == 1 else 's'})" for v, n in counts.items())


def quote_text(text: str) -> str:
    """A text as TOML writes it, in which JSON's strings are valid."""
    return json.dumps(text, ensure_ascii=False)


def get_text(row: Mapping[str, object], name: str) -> str:
    """The text of a field of a row.

    Args:
        row: texts or numbers by name.
        name: of the field.

    Returns:
        The text; a number becomes text.

    Raises:
        DataError: the field is missing, has no value, is neither a text nor a number, or has half
            a character.
    """
    if name not in row:
        msg = (
            f"the row has no field {name!r}, which the template needs. "
            f"It has: {', '.join(sorted(row)) or 'nothing'}."
        )
        raise DataError(msg)
    match row[name]:
        case str() as text:
            pass
        case missing if is_missing(missing):
            msg = f"the field {name!r} has no value. Give it text (it may be empty) or a number."
            raise DataError(msg)
        case bool() | int() | float() as value:
            text = to_text(value)
        case other:
            msg = f"the field {name!r} is a {type(other).__name__}. Give it text or a number."
            raise DataError(msg)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        msg = (
            f"the field {name!r} has half a character at index {error.start} (the lone surrogate "
            f"U+{ord(text[error.start]):04X}). Give it valid Unicode."
        )
        raise DataError(msg) from error
    return text
