"""Rows from Python: texts, mappings, data frames, data sets, Arrow tables.

`iterate_rows` reads any of them row by row; `to_table` makes the table that training reads. Neither
imports pandas, polars or datasets to check a type: a program with a data frame has imported the
library already.
"""

import math
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Never, Protocol, TypeAlias, runtime_checkable

import numpy as np

from softprompt.data.table import (
    Table,
    check_columns,
    check_duplicate_names,
    check_names,
    make_table,
    name_classes,
)
from softprompt.errors import DataError

Row: TypeAlias = Mapping[str, object]

_ARROW_ROWS = 2048
_SUPPORTED = (
    "Give one text, one mapping of fields, a list or another iterable of these, a pandas or polars "
    "data frame, a datasets.Dataset or a pyarrow Table"
)


@runtime_checkable
class ArrowStream(Protocol):
    """A table of another library that can be read as Arrow's record batches."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """The stream of Arrow's PyCapsule interface."""
        ...


if TYPE_CHECKING:
    RowsLike: TypeAlias = str | Row | Iterable[str | Row] | ArrowStream
else:
    # Any value is accepted here, so that a wrong one gets an error message of this module.
    RowsLike: TypeAlias = object


def iterate_rows(
    data: RowsLike, *, fields: Iterable[str] | None = None, lists: Collection[str] = ()
) -> Iterator[Row]:
    """Read rows one by one, from any of the supported types.

    Missing values (None, NaN, ``pandas.NA``, null) become None, numpy's scalars become Python's,
    and class labels of a data set become their names. A stream is read lazily.

    Args:
        data: one text (one row), one mapping (one row), a list, generator or other iterable of
            texts and mappings, a pandas or polars data frame, a Series of texts, a
            ``datasets.Dataset`` or ``IterableDataset``, a pyarrow ``Table``, or any other table
            with Arrow's stream interface.
        fields: the fields of the template; a text is the value of the only field. Without them
            texts are refused.
        lists: those of the fields that may be lists: a mapping that has one is one row, and a list
            in a list is the value of the only field.

    Returns:
        The rows, as mappings from field names to values.

    Raises:
        DataError: the data has another type (raised at the call), or a row is neither a mapping
            nor a text for a single field (raised when the row is reached).

    Examples:
        >>> list(iterate_rows(["Fine.", {"text": "Dull.", "year": float("nan")}], fields=["text"]))
        [{'text': 'Fine.'}, {'text': 'Dull.', 'year': None}]
        >>> list(iterate_rows("Fine.", fields=["text"]))
        [{'text': 'Fine.'}]
    """
    names = None if fields is None else tuple(dict.fromkeys(fields))
    # Outside the generator, so that errors are raised at the call.
    items = _read_items(data, names, lists)
    only = names[0] if names is not None and len(names) == 1 and names[0] in lists else None
    if only is not None:
        items = ({only: item} if isinstance(item, list | tuple) else item for item in items)
    return (_convert_row(item, names, index=index) for index, item in enumerate(items))


def to_table(
    data: RowsLike,
    *,
    columns: Iterable[str] | None = None,
    where: str = "the data",
    flexible: Collection[str] = (),
) -> Table:
    """Make a table of rows, from any of the supported types.

    Args:
        data: as for `iterate_rows`, except texts, which have no column name. Columns such as
            ``{"text": […], "label": […]}`` are refused: ``datasets.Dataset.from_dict`` reads them.
        columns: the columns to keep, each of which must have a value in every row; all columns by
            default.
        where: the name of the data in messages.
        flexible: the columns whose cells may be lists, records or empty.

    Returns:
        The table; class labels are their names, and a field that a row lacks is None there.

    Raises:
        DataError: the data has another type or no rows, lacks a column or a value, or mixes text
            and numbers in a column.

    Examples:
        >>> table = to_table([{"text": "Fine.", "stars": 4}, {"text": "Dull."}])
        >>> table["stars"][:]
        [4, None]
    """
    needed = None if columns is None else list(dict.fromkeys(columns))
    if _is_instance(data, "datasets", "Dataset"):
        table = name_classes(_as_any(data).with_format(None))
    else:
        rows = list(iterate_rows(data))
        names = list(dict.fromkeys(name for row in rows for name in row))
        if rows and needed is not None:
            check_names(needed, names, where=where)
        table = make_table(
            {name: [row.get(name) for row in rows] for name in needed or names}, where=where
        )
    if len(table) == 0:
        msg = f"{where} has no rows. Give at least one."
        raise DataError(msg)
    if needed is None:
        return table
    check_columns(table, needed, where=where, flexible=flexible)
    return table.select_columns(needed)


def as_row(row: str | Sequence[str] | Row, columns: Iterable[str]) -> Row:
    """Make a mapping of a row that may be a text, or a list of words.

    Args:
        row: a mapping of fields, or a text or a list if there is a single field.
        columns: the names of the template's fields.

    Returns:
        The row as a mapping.

    Raises:
        DataError: the row is a text, but there are several fields.
    """
    if isinstance(row, Mapping):
        return row
    fields = tuple(dict.fromkeys(columns))
    if len(fields) != 1:
        msg = (
            f"a row has the fields {', '.join(fields)}, but a single text was given. "
            'Give all of them: {"' + '": …, "'.join(fields) + '": …}.'
        )
        raise DataError(msg)
    return {fields[0]: row}


def _read_items(
    data: object, names: tuple[str, ...] | None, lists: Collection[str]
) -> Iterable[object]:
    """The rows before conversion; an error if the data has an unsupported type."""
    for package, classes, read in _READERS:
        if _is_instance(data, package, *classes):
            return read(data, names)
    match data:
        case str():
            return [data]
        case Mapping():
            if not any(_is_list_of_texts(data.get(name)) for name in lists):
                _check_single_row(data)
            return [data]
        case ArrowStream():
            return _read_arrow(data)
        case _:
            return _read_iterable(data)


def _convert_row(item: object, names: tuple[str, ...] | None, *, index: int) -> Row:
    """Convert a row to a mapping with plain Python values."""
    if isinstance(item, str):
        if names is None:
            msg = (
                f"row {index} (counted from 0) is a text, which has no column. Give a mapping, "
                'such as {"text": …, "label": …}.'
            )
            raise DataError(msg)
        return as_row(str(item), names)
    if _is_instance(item, "pandas", "Series"):
        item = _as_any(item).to_dict()
    if not isinstance(item, Mapping):
        texts = "" if names is None or len(names) > 1 else ", or a text"
        example = ", ".join(f'"{name}": …' for name in names or ("text", "label"))
        msg = (
            f"row {index} (counted from 0) is of type {type(item).__name__}, but a row is a "
            f"mapping of fields, such as {{{example}}}{texts}."
        )
        raise DataError(msg)
    return {str(name): _convert_value(value) for name, value in item.items()}


def _convert_value(value: object) -> object:
    """Convert a value to a plain Python value; None if it is missing."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray):  # of a list, as pandas reads it from Parquet
        value = value.tolist()
    if isinstance(value, float | Decimal) and math.isnan(value):
        return None
    pandas = sys.modules.get("pandas")
    if pandas is not None and (value is pandas.NA or value is pandas.NaT):
        return None
    return value


def _is_instance(value: object, package: str, *names: str) -> bool:
    """Whether a value has one of these classes of a package that may not be installed."""
    module = sys.modules.get(package)
    return module is not None and isinstance(value, tuple(vars(module)[name] for name in names))


def _as_any(value: object) -> Any:  # noqa: ANN401  # its library may not be installed
    return value


def _read_data_set(data: Any, _names: object) -> Iterator[object]:  # noqa: ANN401
    """The rows of a (streaming) data set, with the names of class labels."""
    classes = {
        column: feature.names
        for column, feature in (data.features or {}).items()
        if _is_instance(feature, "datasets", "ClassLabel")
    }
    for row in data.with_format(None):
        labels = {
            column: None if (label := row[column]) is None or label < 0 else names[label]
            for column, names in classes.items()
        }
        yield {**row, **labels}


def _read_data_frame(frame: Any, _names: object) -> Iterator[object]:  # noqa: ANN401
    names = [str(name) for name in frame.columns]
    check_duplicate_names(names, where="the data")
    columns = (frame.iloc[:, index] for index in range(len(names)))
    return (dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True))


def _read_series(series: Any, names: tuple[str, ...] | None) -> Iterable[object]:  # noqa: ANN401
    """The rows of a column of texts; one row if the index has the template's fields."""
    if names and {*names} <= {*series.index}:
        return [series]
    return _read_column(series, names)


def _read_column(cells: Iterable[object], names: tuple[str, ...] | None) -> Iterable[object]:
    """The rows of a column, which is the template's only field."""
    if names is None:
        msg = (
            "a single column was given, but the rows need names for their columns. Give a data "
            "frame."
        )
        raise DataError(msg)
    if len(names) != 1:
        msg = (
            f"a single column was given, but a row has several fields ({', '.join(names)}). Give a "
            "data frame that has them as columns."
        )
        raise DataError(msg)
    return ({names[0]: cell} for cell in cells)


def _read_array(array: Any, names: tuple[str, ...] | None) -> Iterable[object]:  # noqa: ANN401
    return _read_column(array.to_pylist(), names)


# The known classes by package; no package is imported for the check.
_READERS: tuple[tuple[str, tuple[str, ...], Callable[..., Iterable[object]]], ...] = (
    ("datasets", ("Dataset", "IterableDataset"), _read_data_set),
    ("pandas", ("DataFrame",), _read_data_frame),
    ("pandas", ("Series",), _read_series),
    ("polars", ("Series",), _read_column),
    ("pyarrow", ("Array", "ChunkedArray"), _read_array),
)


def _read_arrow(data: ArrowStream) -> Iterator[object]:
    import pyarrow as pa

    try:
        reader = pa.RecordBatchReader.from_stream(data)
    except (pa.ArrowException, TypeError) as error:
        msg = f"the rows ({type(data).__name__}) cannot be read as a table: {error}. {_SUPPORTED}."
        raise DataError(msg) from error
    check_duplicate_names(reader.schema.names, where="the data")
    return (
        row
        for batch in reader
        for start in range(0, batch.num_rows, _ARROW_ROWS)
        for row in batch.slice(start, _ARROW_ROWS).to_pylist()
    )


def _read_iterable(data: object) -> Iterable[object]:
    if isinstance(data, bytes | bytearray | memoryview | set | frozenset) or _is_instance(
        data, "polars", "LazyFrame"
    ):
        _refuse(data)
    try:
        items: Iterator[object] = iter(_as_any(data))
    except TypeError:
        _refuse(data)
    return items


def _check_single_row(data: Mapping[Any, object]) -> None:
    """Check that a mapping is one row, not several tables or columns."""
    names, values = ", ".join(map(str, data)), list(data.values())
    if values and all(has_several_rows(value) for value in values):
        msg = (
            f"the rows are a mapping of tables ({names}), but one table is needed here. Give one "
            f"of them, such as rows[{next(iter(data))!r}]."
        )
        raise DataError(msg)
    if values and all(_is_column(value) for value in values):
        msg = (
            f"the rows are a mapping of columns ({names}), but a mapping is one row. Give "
            "datasets.Dataset.from_dict(rows), a data frame, or a list with one mapping per row."
        )
        raise DataError(msg)


def _is_list_of_texts(value: object) -> bool:
    """Whether a field's value is a list for one row, not a column of several."""
    return isinstance(value, list | tuple) and not any(isinstance(v, list | tuple) for v in value)


def has_several_rows(value: object) -> bool:
    """Whether a value is several rows, not a field of one."""
    if isinstance(value, list | tuple):
        return bool(value) and isinstance(value[0], Mapping)
    return (
        _is_instance(value, "datasets", "Dataset", "IterableDataset")
        or _is_instance(value, "pandas", "DataFrame")
        or (isinstance(value, ArrowStream) and not _is_column(value))
    )


def _is_column(value: object) -> bool:
    return (
        isinstance(value, list | tuple | np.ndarray)
        or _is_instance(value, "pandas", "Series")
        or _is_instance(value, "polars", "Series")
        or _is_instance(value, "pyarrow", "Array", "ChunkedArray")
    )


def _refuse(data: object) -> Never:
    """Raise a DataError for a value of a wrong type."""
    match data:
        case bytes() | bytearray() | memoryview():
            remedy = "Decode them to a text first: data.decode('utf-8')"
        case set() | frozenset():
            remedy = "A set has no order for its answers. Give sorted(rows)"
        case PurePath():
            remedy = "Read the file first, for example with pandas.read_csv"
        case _ if _is_instance(data, "polars", "LazyFrame"):
            remedy = "Give rows.collect()"
        case _:
            remedy = _SUPPORTED
    msg = f"rows cannot be read from a value of type {type(data).__name__}. {remedy}."
    raise DataError(msg)
