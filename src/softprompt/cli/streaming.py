"""Read the rows to predict: from a table, or line by line as they arrive."""

import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import TYPE_CHECKING, cast

from softprompt._parsing import make_json_decoder, parse_json
from softprompt._paths import expand_user, is_file
from softprompt.errors import DataError

if TYPE_CHECKING:
    from softprompt.data import TextFormat

# The most rows of a group.
WINDOW = 2048
# As in files of rows; NaN is a missing value.
_DECODER = make_json_decoder({"NaN": None, "Infinity": math.inf, "-Infinity": -math.inf})


@dataclass(frozen=True)
class InputRow:
    """A row and its place in the input.

    Args:
        place: for messages, such as ``line 3``.
        raw: a text, a mapping, or the bytes of a line, which is a text or a JSON object.
        encoding: of the bytes.
    """

    place: str
    raw: str | bytes | Mapping[str, object]
    encoding: str = "utf-8"

    def read_content(self) -> str | Mapping[str, object]:
        """The row as a model takes it; a line that starts with ``{`` is a JSON object.

        Raises:
            DataError: the line is not in its encoding, or not JSON.
        """
        if not isinstance(self.raw, bytes):
            return self.raw
        line = _decode(self.raw, self.encoding)
        return _parse_object(line) if line.lstrip().startswith("{") else line


def is_table(source: str) -> bool:
    """Whether a file is to be read as a table; anything else, and stdin, is read line by line."""
    from softprompt.data.readers import FORMATS, detect_format

    return source != "-" and detect_format(Path(source)) in FORMATS


def read_table_rows(
    source: str,
    fields: Sequence[str],
    *,
    text_format: "TextFormat",
    flexible: Sequence[str] = (),
) -> Iterator[list[InputRow]]:
    """The rows of a table with all its columns, in groups of at most ``WINDOW``.

    Raises:
        DataError: it cannot be read, or lacks a column.
    """
    from softprompt.data import check_columns, read_data

    table = read_data(source, text_format=text_format)
    check_columns(table, fields, where=source, flexible=flexible)
    for start in range(0, len(table), WINDOW):
        part = table.select(range(start, min(start + WINDOW, len(table)))).to_list()
        yield [InputRow(f"row {start + n}", row) for n, row in enumerate(part, 1)]


def read_text_rows(source: str, encoding: str | None = None) -> Iterator[InputRow]:
    """The lines of a file, or of stdin if it is ``-``; in UTF-8 by default.

    Raises:
        DataError: there is no such file, or no such encoding whose lines end as those of UTF-8.
    """
    encoding = encoding or "utf-8"
    _check_encoding(encoding)
    if source == "-":
        if sys.stdin is None:
            msg = "standard input is closed, so - has no lines. Give a file, or pipe lines to it."
            raise DataError(msg)
        yield from _number_lines(sys.stdin.buffer, encoding)
        return
    path = expand_user(source)
    if not is_file(path):
        msg = f"there is no file {source}. Give one, or - to read lines from stdin."
        raise DataError(msg)
    with path.open("rb") as file:
        yield from _number_lines(file, encoding)


def group_rows(rows: Iterator[InputRow]) -> Iterator[list[InputRow]]:
    """Group the rows that have arrived: a slow input gives single rows, a fast one groups."""
    queue: Queue[InputRow | BaseException | None] = Queue(maxsize=2 * WINDOW)

    def read() -> None:
        try:
            for row in rows:
                queue.put(row)
            queue.put(None)
        except BaseException as error:  # noqa: BLE001  # raised again by the consumer
            queue.put(error)

    Thread(target=read, daemon=True).start()
    while True:
        group, end = _take_arrived(queue)
        if group:
            yield group
        match end:
            case BaseException():
                raise end
            case True:
                return
            case _:
                pass


def _take_arrived(
    queue: "Queue[InputRow | BaseException | None]",
) -> tuple[list[InputRow], BaseException | bool]:
    """Wait for a row, and take all that have arrived after it.

    Returns:
        The rows; and the error of the reader, or whether the input has ended.
    """
    group: list[InputRow] = []
    while len(group) < WINDOW:
        try:
            item = queue.get(block=not group)
        except Empty:
            break
        match item:
            case InputRow():
                group.append(item)
            case None:
                return group, True
            case BaseException():
                return group, item
    return group, False


def _number_lines(file: Iterable[bytes], encoding: str) -> Iterator[InputRow]:
    for number, line in enumerate(file, 1):
        yield InputRow(f"line {number}", line.rstrip(b"\r\n"), encoding)


def _check_encoding(encoding: str) -> None:
    try:
        line_end = "\n".encode(encoding)
    except (LookupError, ValueError):
        line_end = b""
    if line_end != b"\n":
        msg = (
            f"lines cannot be read as {encoding!r}: it is not an encoding of text in which a line "
            "ends as in UTF-8. Give another one, such as cp1252, or save the text as UTF-8."
        )
        raise DataError(msg)


def _decode(line: bytes, encoding: str) -> str:
    try:
        return line.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        msg = (
            f"it is not valid {encoding.upper()}: byte 0x{line[error.start]:02x} at position "
            f"{error.start}. Encode the text in UTF-8, or name its encoding by --encoding."
        )
        raise DataError(msg) from error


def _parse_object(line: str) -> Mapping[str, object]:
    try:
        row = parse_json(line, decoder=_DECODER)
    except json.JSONDecodeError as error:
        msg = (
            f"it starts with a brace but is not valid JSON: {error.msg} at column {error.colno}. "
            'Write an object such as {"text": "…"}, or {"text": "{…"} for a text with a brace.'
        )
        raise DataError(msg) from error
    except ValueError as error:
        msg = f"it cannot be read: {error}. Correct it."
        raise DataError(msg) from error
    return cast("Mapping[str, object]", row)  # it starts with a brace
