"""Write rows to a file: csv, tsv, jsonl or parquet. The file appears only when it is complete."""

import csv
import json
import math
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from softprompt._io import name_temporary, replace_file
from softprompt._paths import expand_user, is_present
from softprompt.data.inputs import Row
from softprompt.errors import DataError, format_unknown

WRITTEN_FORMATS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
_FLAT = (".csv", ".tsv", ".parquet")


def check_writable(
    path: Path, *, sources: Iterable[str] = (), formats: Collection[str] = WRITTEN_FORMATS
) -> None:
    """Check, before the work, that results can be written to a file.

    Args:
        path: of the file; it may exist, and is then replaced.
        sources: files that must not be replaced, since rows are read from them; other names are
            ignored.
        formats: the suffixes that it may have.

    Raises:
        DataError: the format is unknown, the folder does not exist or cannot be written to, or the
            file is one of the sources.
    """
    if path.suffix.lower() not in formats:
        msg = f"{path}: {format_unknown('file format', path.suffix, options=formats)}"
        raise DataError(msg)
    if is_present(path) and path.is_dir():
        msg = f"{path} is a folder, but results are written to a file. Give the name of a file."
        raise DataError(msg)
    if not is_present(path.parent):
        msg = f"there is no folder {path.parent} to write {path.name} to. Make it first."
        raise DataError(msg)
    if not os.access(path.parent, os.W_OK):
        msg = f"you may not write to the folder {path.parent}. Choose a file in another one."
        raise DataError(msg)
    try:
        name_temporary(path).exists()
    except OSError as error:  # of a name that is too long
        msg = f"{path} cannot be written: {error.strerror}. Choose another name."
        raise DataError(msg) from error
    same = [name for name in sources if is_present(path) and _is_same_file(path, name)]
    if same:
        msg = f"{path} holds the rows that are read, and would be replaced. Choose another name."
        raise DataError(msg)


def is_flat(path: Path) -> bool:
    """Whether a file has columns of plain values, and so no column of records."""
    return path.suffix.lower() in _FLAT


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write rows, with all columns that any of them has.

    A column of a parquet file whose values have different types becomes text.

    Args:
        path: of the file, whose suffix decides the format. An existing file is replaced.
        rows: at least one.

    Raises:
        OSError: the file cannot be written; an existing file is then unchanged.
    """
    suffix = path.suffix.lower()
    with replace_file(path) as fresh:
        match suffix:
            case ".parquet":
                _write_parquet(fresh, rows)
            case ".csv" | ".tsv":
                _write_separated(fresh, rows, separator="," if suffix == ".csv" else "\t")
            case _:
                lines = (dump_row(row) + "\n" for row in rows)
                fresh.write_text("".join(lines), "utf-8", errors="backslashreplace")


def dump_row(row: Row) -> str:
    """A row as one line of JSON; a value that JSON does not have, such as a date, is text.

    NaN is null, as it is a missing value in every format that is read.
    """
    plain = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}
    return json.dumps(plain, ensure_ascii=False, default=str)


def _is_same_file(path: Path, name: str) -> bool:
    try:
        return path.samefile(expand_user(name))
    except (OSError, ValueError):  # not a file
        return False


def _list_columns(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _write_separated(path: Path, rows: Sequence[Row], *, separator: str) -> None:
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.DictWriter(file, _list_columns(rows), delimiter=separator, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({name: _to_cell(value) for name, value in row.items()})


def _to_cell(value: object) -> object:
    """A value as a cell: as JSON has it, but texts and numbers as they are."""
    match value:
        case None:
            return ""
        case bool() | list() | tuple() | Mapping():
            return json.dumps(value, ensure_ascii=False, default=str)
        case _:
            return value


def _write_parquet(path: Path, rows: Sequence[Row]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    columns = {}
    for name in _list_columns(rows):
        values = [row.get(name) for row in rows]
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowException, UnicodeError, OverflowError, TypeError, ValueError):
            columns[name] = pa.array([None if v is None else _to_text(v) for v in values])
    parquet.write_table(pa.table(columns), path)


def _to_text(value: object) -> str:
    text = value if isinstance(value, str) else str(_to_cell(value))
    return text.encode("utf-8", "backslashreplace").decode()
