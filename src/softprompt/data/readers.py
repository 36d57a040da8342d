"""Readers of local files: csv, tsv, json, jsonl, CoNLL's columns and parquet, also compressed.

Nothing is cached on disk, so an edited file is read again and the user's folders stay clean. Text
is parsed here, not by the library ``datasets``, because an error message needs the line number, and
because a cell stays the text that it is: ``NA`` and ``None`` can be labels, ``3.1`` and ``3.10``
are two.
"""

import bz2
import codecs
import csv
import gzip
import io
import lzma
import os
import re
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import psutil

from softprompt._memory import pause_garbage_collection
from softprompt._paths import is_file, is_present
from softprompt.data.conll import CONLL_FORMATS, read_conll
from softprompt.data.json_records import read_records
from softprompt.data.table import (
    Table,
    check_duplicate_names,
    is_missing,
    make_table,
    name_classes,
    to_text,
)
from softprompt.errors import DataError, MissingPackageError, format_unknown, summarize_error

FORMATS = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".xlsx", *CONLL_FORMATS)
_OPENERS: Mapping[str, Callable[[Path], io.BufferedIOBase]] = {
    ".gz": gzip.GzipFile,
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
}
# The longer mark first: that of UTF-32 begins with that of UTF-16.
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_SEPARATORS = (",", ";", "\t", "|")
_EXCEL_SEPARATOR = re.compile(r"sep=(.)\r?\n")
# What reading takes for each byte of text, at least: the bytes, their text, and its cells twice.
_MEMORY_PER_BYTE = 4
_PART = 1 << 24
# So many bytes or characters show whether it is UTF-16.
_BEGINNING = 1000
# A column with more values is not one of labels.
_MAX_LABELS = 50

NumberedCells = tuple[int, list[str]]


@dataclass(frozen=True)
class TextFormat:
    """How text files are written; what is None is recognised.

    Args:
        separator: the character between the cells of csv and tsv files. None: that of the suffix;
            or the one of ``, ; |`` and tab that the first line has instead.
        encoding: of all files of text, such as ``cp1252``; None: UTF-8, or what a byte order mark
            says.
        header: whether the first line of csv, tsv and xlsx files has the names of the columns. If
            not, they are called ``column_1``, ``column_2`` and so on. None: it has; a first line
            that seems to be a row is refused.

    Examples:
        >>> TextFormat(separator=";", encoding="cp1252").header is None
        True
    """

    separator: str | None = None
    encoding: str | None = None
    header: bool | None = None


AS_IT_SEEMS = TextFormat()


def detect_format(path: Path) -> str:
    """The extension of a file's format, without that of a compression; "" if it has none."""
    uncompressed = path.with_suffix("") if path.suffix.lower() in _OPENERS else path
    return uncompressed.suffix.lower()


@pause_garbage_collection()
def read_file(
    path: Path, *, text_format: TextFormat = AS_IT_SEEMS, sheet: str | None = None
) -> Table:
    """Read one table.

    Args:
        path: the file.
        text_format: how a file of text is written.
        sheet: of a workbook; may be left out if only one has rows.

    Returns:
        Its rows, in memory.

    Raises:
        DataError: the file is missing or damaged, has an unknown format, or has no rows.
        MissingPackageError: the reader of workbooks is not installed.
    """
    _check_exists(path)
    match detect_format(path):
        case ".csv":
            columns = _read_separated(path, ",", text_format)
        case ".tsv":
            columns = _read_separated(path, "\t", text_format)
        case ".json" | ".jsonl" | ".ndjson":
            text = _read_text(path, text_format.encoding)
            records = read_records(path, text, may_be_list=detect_format(path) == ".json")
            columns = _collect_columns(records)
        case suffix if suffix in CONLL_FORMATS:
            text = _read_text(path, text_format.encoding)
            columns = read_conll(
                path, text, is_conllu=suffix == ".conllu", separator=text_format.separator
            )
        case ".parquet":
            return _read_parquet(path)
        case ".xlsx":
            columns = _name_cells(path, _read_sheet(path, sheet), header=text_format.header)
        case other:
            msg = (
                f"{path}: {format_unknown('file format', other, options=FORMATS)} "
                f"Files of text may also end in {', '.join(_OPENERS)}."
            )
            raise DataError(msg)
    return _make_file_table(path, columns)


def _check_exists(path: Path) -> None:
    if is_file(path):
        return
    if is_present(path) and not path.is_dir():
        msg = f"{path} is not a file but a device or a pipe. Save the rows to a file."
    elif is_present(path):
        msg = f"{path} is a folder. Name one file in it ({', '.join(FORMATS)})."
    elif not is_present(path.parent):
        msg = f"there is no file {path}: its folder {path.parent} does not exist either."
    elif not os.access(path.parent, os.R_OK | os.X_OK):
        msg = f"you may not look into the folder {path.parent}. Give its files to this user."
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
        try:
            with path.open("rb") as stream:
                return _read_within_memory(path, stream)
        except OSError as error:
            msg = f"{path} cannot be read: {error.strerror}. Give a file that this user may read."
            raise DataError(msg) from error
    try:
        with opener(path) as stream:
            return _read_within_memory(path, stream)
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        msg = f"{path} cannot be unpacked ({error}). It is damaged, or not a {path.suffix} file."
        raise DataError(msg) from error


def _read_within_memory(path: Path, stream: io.BufferedIOBase) -> bytes:
    """The rest of a file, which may be small until it is unpacked.

    Raises:
        DataError: its rows do not fit into memory.
        OSError: it cannot be read.
    """
    most = psutil.virtual_memory().available // _MEMORY_PER_BYTE
    size = 0
    parts: list[bytes] = []
    while part := stream.read(_PART):
        size += len(part)
        if size > most:
            msg = (
                f"{path} has more than {most:,} bytes of text, and more rows than fit into the "
                "free memory. Divide the file, or write it as parquet."
            )
            raise DataError(msg)
        parts.append(part)
    return b"".join(parts)


def _read_text(path: Path, encoding: str | None) -> str:
    raw = _read_bytes(path)
    marked = next((name for mark, name in _BYTE_ORDER_MARKS.items() if raw.startswith(mark)), None)
    try:
        text = raw.decode(marked or encoding or "utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise DataError(_describe_undecodable(path, raw, error, encoding)) from error
    except (LookupError, ValueError) as error:
        msg = (
            f"data.encoding is {encoding!r}, which is not an encoding of text. Set it to one, such "
            "as utf-8, cp1252, utf-16 or shift_jis."
        )
        raise DataError(msg) from error
    if "\x00" in text[:_BEGINNING]:
        msg = f"{path} has zero bytes between its characters. {_suggest_encoding(raw, 0)}"
        raise DataError(msg)
    if not text.strip():
        raise DataError(_describe_no_rows(path))
    return text


def _describe_undecodable(
    path: Path, raw: bytes, error: UnicodeDecodeError, encoding: str | None
) -> str:
    """Which byte cannot be read, and what its line is in the commonest other encoding."""
    # The position does not count a byte order mark.
    start = error.start + len(raw) - len(error.object)
    line = raw.count(b"\n", 0, start) + 1
    fault = (
        f"{path} is not valid {error.encoding.upper()}: byte 0x{raw[start]:02x} at offset {start} "
        f"(line {line}) cannot be read."
    )
    if encoding is not None:
        return f"{fault} Save the file as UTF-8, or correct data.encoding in the recipe."
    return f"{fault} {_suggest_encoding(raw, start)}"


def _suggest_encoding(raw: bytes, start: int) -> str:
    """What the encoding may be, by what the byte at ``start`` and those around it are in it."""
    begin = max(raw.rfind(b"\n", 0, start) + 1, start - 20)
    sample = raw[begin : start + 20].partition(b"\n")[0].decode("cp1252", "replace").strip()
    name, why = "cp1252", f"Windows, Latin-1, in which it reads {sample!r}"
    if b"\x00" in raw[:_BEGINNING]:
        name = "utf-16-be" if raw.index(b"\x00") % 2 == 0 else "utf-16-le"
        why = "UTF-16 without a byte order mark"
    return (
        "Save the file as UTF-8, or set data.encoding in the recipe (on the command line: "
        f'--encoding); it may be "{name}" ({why}).'
    )


def _describe_no_rows(path: Path) -> str:
    return f"{path} has no rows. At least one row is needed."


def _read_separated(path: Path, usual: str, text_format: TextFormat) -> dict[str, list[object]]:
    """The columns of a csv or tsv file."""
    text = _read_text(path, text_format.encoding)
    declared = _EXCEL_SEPARATOR.match(text)
    if declared is not None:  # Excel's own first line
        text = text[declared.end() :]
    separator = text_format.separator or (declared and declared[1])
    lines = None if separator else _parse_with_another_separator(text, usual)
    lines = lines or _parse_lines(path, text, separator or usual)
    return _name_cells(path, lines, header=text_format.header)


def _name_cells(
    path: Path, lines: Sequence[NumberedCells], *, header: bool | None
) -> dict[str, list[object]]:
    """The columns of lines, of which the first has the names; an empty cell is a missing value."""
    if not lines:
        raise DataError(_describe_no_rows(path))
    rows = lines if header is False else lines[1:]
    names = [f"column_{n}" for n in range(1, len(lines[0][1]) + 1)]
    if header is not False:
        names = list(lines[0][1])
    for number, cells in rows:
        if len(cells) != len(names):
            msg = (
                f"line {number} of {path} has {len(cells)} cells, but the header has {len(names)} "
                f"columns ({', '.join(names)}). Put cells that contain the separator in quotes, or "
                "name another one by data.separator in the recipe (on the command line: "
                "--separator)."
            )
            raise DataError(msg)
    columns = [[cells[at] for _, cells in rows] for at in range(len(names))]
    if header is not False:
        _check_header(path, rows, names=names, is_sure=header is True)
    check_duplicate_names(names, where=str(path))
    return {
        name: [cell or None for cell in cells] for name, cells in zip(names, columns, strict=True)
    }


def _check_header(
    path: Path, rows: Sequence[NumberedCells], *, names: Sequence[str], is_sure: bool
) -> None:
    """Check that the first line is not a row: its label would be a value of its own column."""
    repeated = [number for number, cells in rows if cells == names and len(names) > 1]
    for at, name in enumerate(names):
        values = Counter(cells[at] for _, cells in rows)
        others = values[name] - len(repeated)
        if not is_sure and name and others > 1 and len(values) <= _MAX_LABELS:
            msg = (
                f"the first line of {path} ({', '.join(map(repr, names))}) seems to be a row, not "
                f"the names of the columns: {name!r} is a value of {values[name]} rows. Write the "
                "names into the first line; or set data.header in the recipe, to false if it is a "
                "row (the columns are then column_1, column_2, …), to true if it has the names "
                "(on the command line: --no-header or --header)."
            )
            raise DataError(msg)
    if repeated:
        msg = (
            f"line {repeated[0]} of {path} repeats the names of the columns, as in files that were "
            "joined. Remove that line."
        )
        raise DataError(msg)


def _parse_with_another_separator(text: str, usual: str) -> list[NumberedCells] | None:
    """The rows, divided by another separator than the usual one.

    None if the first line has the usual one, or no other. One that divides all rows equally is
    preferred.
    """
    first, parsed = text.lstrip("\r\n").partition("\n")[0], []
    with suppress(csv.Error):
        if len(_split_cells(first, usual)[0][1]) > 1:
            return None
    for separator in (s for s in _SEPARATORS if s in first and s != usual):
        with suppress(csv.Error):
            parsed.append(_split_cells(text, separator))
    divided = [lines for lines in parsed if len(lines[0][1]) > 1]
    alike = [lines for lines in divided if len({len(cells) for _, cells in lines}) == 1]
    return next(iter(alike or divided), None)


def _parse_lines(path: Path, text: str, separator: str) -> list[NumberedCells]:
    """The rows that are not blank, each with the number of its last line."""
    try:
        return _split_cells(text, separator)
    except csv.Error as error:
        reason, number = error.args
        msg = (
            f"line {number} of {path} cannot be read: {reason}. Inside a quoted cell, "
            'write a quote as "".'
        )
        raise DataError(msg) from error
    except (TypeError, ValueError) as error:
        msg = (
            f"data.separator is {separator!r}, which cannot separate cells. Write one character, "
            'such as ";", or "\\t" for a tab.'
        )
        raise DataError(msg) from error


def _split_cells(text: str, separator: str) -> list[NumberedCells]:
    """The rows that are not blank, each with the number of its last line.

    Raises:
        csv.Error: a row cannot be read; its second argument is the line's number.
        ValueError: the separator is not a valid one.
    """
    if separator in {"\r", "\n", '"'}:
        raise ValueError(separator)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    limit = csv.field_size_limit(sys.maxsize)  # a document may be longer than the 128 Ki default
    try:
        return [(reader.line_num, cells) for cells in reader if cells]
    except csv.Error as error:
        raise csv.Error(str(error), reader.line_num) from error
    finally:
        csv.field_size_limit(limit)


def _read_sheet(path: Path, sheet: str | None) -> list[NumberedCells]:
    """The rows of a sheet that are not empty, each with its number; cells become text."""
    try:
        from openpyxl import load_workbook
    except ImportError as error:
        msg = (
            f"{path} is an Excel workbook, whose reader is not installed. Install it with: pip "
            "install 'softprompt[excel]', or save the sheet as csv."
        )
        raise MissingPackageError(msg) from error
    try:
        workbook = load_workbook(path, read_only=True, data_only=True)
        sheets = {name: _number_cells(workbook[name].values) for name in workbook.sheetnames}
        workbook.close()
    except Exception as error:  # the library raises errors of many kinds
        msg = (
            f"{path} is not a readable Excel workbook ({error}). Save it again, or save it as csv."
        )
        raise DataError(msg) from error
    filled = [name for name, lines in sheets.items() if lines]
    if sheet in sheets:
        return sheets[sheet]
    if sheet in {None, "train"} and len(filled) <= 1:
        return sheets[filled[0]] if filled else []
    example = f"{path}[{filled[0]}]" if filled else ""
    fault = f"has no sheet {sheet!r}; it has" if sheet else "has several sheets:"
    msg = f"{path} {fault} {', '.join(filled)}. Name one of them, such as {example}."
    raise DataError(msg)


def _number_cells(rows: Iterable[Sequence[object]]) -> list[NumberedCells]:
    lines = [
        (number, ["" if is_missing(cell) else to_text(cell) for cell in row])
        for number, row in enumerate(rows, 1)
    ]
    lines = [(number, cells) for number, cells in lines if any(cells)]
    width = max((at for _, cells in lines for at, cell in enumerate(cells, 1) if cell), default=0)
    return [(number, (cells + [""] * width)[:width]) for number, cells in lines]


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
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
        table.validate(full=True)  # text that is not UTF-8 is found only here
    except Exception as error:  # a damaged file leads to errors of many kinds
        msg = f"{path} is not a readable parquet file ({summarize_error(error)}). Write it again."
        raise DataError(msg) from error
    try:
        rows = datasets.Dataset(table)
    except ValueError as error:  # `datasets` does not know all types of columns
        reason = str(error).rstrip(".")
        msg = f"a column of {path} cannot be read: {reason}. Write the file without this column."
        raise DataError(msg) from error
    except Exception as error:  # its own metadata in the file may be anything
        msg = (
            f"what {path} says about its columns for the library datasets cannot be read "
            f"({summarize_error(error)}). Write the file again without it."
        )
        raise DataError(msg) from error
    if len(rows) == 0:
        raise DataError(_describe_no_rows(path))
    return name_classes(rows, where=str(path))
