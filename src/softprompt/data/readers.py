"""Readers of local files: csv, tsv, json, jsonl and parquet, also compressed.

Nothing is cached on disk, so an edited file is read again and the user's folders stay clean. Text
is parsed here, not by the library ``datasets``, because an error message needs the line number, and
because ``NA`` and ``None`` can be labels.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import BinaryIO, cast

from softprompt.data.table import Table, check_duplicate_names, make_table
from softprompt.errors import DataError, format_unknown

FORMATS = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet")
_OPENERS: Mapping[str, Callable[[Path], BinaryIO]] = {
    ".gz": lambda path: cast("BinaryIO", gzip.open(path)),  # noqa: SIM115  # the caller closes it
    ".bz2": lambda path: cast("BinaryIO", bz2.open(path)),  # noqa: SIM115  # the caller closes it
    ".xz": lambda path: cast("BinaryIO", lzma.open(path)),  # noqa: SIM115  # the caller closes it
}
# Python writes these words for numbers that JSON does not have; NaN is a missing value.
_CONSTANTS = {"NaN": None, "Infinity": math.inf, "-Infinity": -math.inf}
_INTEGER = re.compile(r"0|-?[1-9]\d{0,17}")
_FLOAT = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")


def detect_format(path: Path) -> str:
    """The extension of a file's format, without that of a compression; "" if it has none."""
    uncompressed = path.with_suffix("") if path.suffix.lower() in _OPENERS else path
    return uncompressed.suffix.lower()


def read_file(path: Path) -> Table:
    """Read one table.

    Args:
        path: the file.

    Returns:
        Its rows, in memory.

    Raises:
        DataError: the file is missing or damaged, has an unknown format, or has no rows.
    """
    _check_exists(path)
    match detect_format(path):
        case ".csv":
            columns = _read_separated(path, ",")
        case ".tsv":
            columns = _read_separated(path, "\t")
        case ".json" | ".jsonl" | ".ndjson":
            columns = _collect_columns(_read_records(path))
        case ".parquet":
            return _read_parquet(path)
        case other:
            msg = (
                f"{path}: {format_unknown('file format', other, options=FORMATS)} "
                f"All but .parquet may also end in {', '.join(_OPENERS)}."
            )
            raise DataError(msg)
    return _make_file_table(path, columns)


def _check_exists(path: Path) -> None:
    if path.is_file():
        return
    if path.is_dir():
        msg = f"{path} is a folder. Name one file in it ({', '.join(FORMATS)})."
    elif not path.parent.is_dir():
        msg = f"there is no file {path}: its folder {path.parent} does not exist either."
    else:
        names = [entry.name for entry in path.parent.iterdir()]
        close = get_close_matches(path.name, names, n=3, cutoff=0.5)
        hint = (
            f"Did you mean {' or '.join(close)}?" if close else "No file there has a similar name."
        )
        msg = f"there is no file {path} (looked in {path.parent.resolve()}). {hint}"
    raise DataError(msg)


def _read_bytes(path: Path) -> bytes:
    opener = _OPENERS.get(path.suffix.lower())
    if opener is None:
        return path.read_bytes()
    try:
        with opener(path) as stream:
            return stream.read()
    except (OSError, EOFError, lzma.LZMAError) as error:
        msg = f"{path} cannot be unpacked ({error}). It is damaged, or not a {path.suffix} file."
        raise DataError(msg) from error


def _read_text(path: Path) -> str:
    raw = _read_bytes(path)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The position does not count a byte order mark.
        start = error.start + len(raw) - len(error.object)
        line = raw.count(b"\n", 0, start) + 1
        msg = (
            f"{path} is not valid UTF-8: byte 0x{raw[start]:02x} at offset {start} (line {line}) "
            f"cannot be read. Save the file as UTF-8."
        )
        raise DataError(msg) from error
    if not text.strip():
        raise DataError(_describe_no_rows(path))
    return text


def _describe_no_rows(path: Path) -> str:
    return f"{path} has no rows. At least one row is needed."


def _read_separated(path: Path, separator: str) -> dict[str, list[object]]:
    """The columns of a csv or tsv file; an empty cell is a missing value."""
    lines = _parse_lines(path, _read_text(path), separator=separator)
    _, names = lines[0]
    check_duplicate_names(names, where=str(path))
    for number, cells in lines:
        if len(cells) != len(names):
            msg = (
                f"line {number} of {path} has {len(cells)} cells, but the header has {len(names)} "
                f"columns ({', '.join(names)}). Put cells that contain the separator in quotes."
            )
            raise DataError(msg)
    return {
        name: _convert_cells([cells[i] for _, cells in lines[1:]]) for i, name in enumerate(names)
    }


def _parse_lines(path: Path, text: str, *, separator: str) -> list[tuple[int, list[str]]]:
    """The rows that are not blank, each with the number of its last line."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    limit = csv.field_size_limit(sys.maxsize)  # a document may be longer than the 128 Ki default
    try:
        return [(reader.line_num, cells) for cells in reader if cells]
    except csv.Error as error:
        msg = (
            f"line {reader.line_num} of {path} cannot be read: {error}. Inside a quoted cell, "
            'write a quote as "".'
        )
        raise DataError(msg) from error
    finally:
        csv.field_size_limit(limit)


def _convert_cells(cells: Sequence[str]) -> list[object]:
    """Convert cells to numbers if all of them are plain numbers (007 and NA are text)."""
    filled = [cell for cell in cells if cell]
    if filled and all(_INTEGER.fullmatch(cell) for cell in filled):
        return [int(cell) if cell else None for cell in cells]
    if filled and all(_FLOAT.fullmatch(cell) for cell in filled):
        return [float(cell) if cell else None for cell in cells]
    return [cell or None for cell in cells]


def _read_records(path: Path) -> list[dict[str, object]]:
    """The objects of a json list, or of a file with one object per line."""
    text = _read_text(path)
    if detect_format(path) == ".json" and text.lstrip().startswith("["):
        items = [(1, item) for item in cast("list[object]", _parse_json(path, text, first=1))]
    else:
        # Not splitlines(): a JSON string may contain U+2028 and other line separators.
        lines = enumerate(text.split("\n"), 1)
        items = [(at, _parse_json(path, line, first=at)) for at, line in lines if line.strip()]
    for number, item in items:
        if not isinstance(item, dict):
            msg = (
                f"line {number} of {path} is of type {type(item).__name__}, but an object "
                'such as {"text": "…", "label": "…"} is needed.'
            )
            raise DataError(msg)
    return [item for _, item in items if isinstance(item, dict)]


def _parse_json(path: Path, text: str, *, first: int) -> object:
    """Parse ``text``, which begins on line ``first`` of the file."""
    try:
        return cast("object", json.loads(text, parse_constant=_CONSTANTS.__getitem__))
    except json.JSONDecodeError as error:
        msg = (
            f"line {first + error.lineno - 1} of {path} is not valid JSON: {error.msg} at column "
            f"{error.colno}. Write one object per line, or a .json file with one list of objects."
        )
        raise DataError(msg) from error


def _collect_columns(records: Sequence[Mapping[str, object]]) -> dict[str, list[object]]:
    """The columns of records; a key that a record lacks is a missing value."""
    names = dict.fromkeys(name for record in records for name in record)
    return {name: [record.get(name) for record in records] for name in names}


def _make_file_table(path: Path, columns: Mapping[str, list[object]]) -> Table:
    if not columns or not next(iter(columns.values())):
        raise DataError(_describe_no_rows(path))
    return make_table(columns, where=str(path))


def _read_parquet(path: Path) -> Table:
    import datasets
    import pyarrow as pa
    from pyarrow import parquet

    try:
        rows = datasets.Dataset(parquet.read_table(path))
    except (pa.ArrowException, OSError) as error:
        msg = f"{path} is not a readable parquet file ({error}). Write it again."
        raise DataError(msg) from error
    except ValueError as error:  # from `datasets`, which does not know all types of columns
        reason = str(error).rstrip(".")
        msg = f"a column of {path} cannot be read: {reason}. Write the file without this column."
        raise DataError(msg) from error
    if len(rows) == 0:
        raise DataError(_describe_no_rows(path))
    return rows
