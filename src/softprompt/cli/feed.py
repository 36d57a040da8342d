"""Rows to answer: from a table, or from lines as they arrive."""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from threading import Thread

from softprompt.errors import DataError

WINDOW = 2048


@dataclass(frozen=True)
class Numbered:
    """A row and where it stands.

    Args:
        place: for messages, such as ``line 3``.
        raw: a text, a line of JSON (bytes are not decoded yet) or a mapping.
    """

    place: str
    raw: str | bytes | Mapping[str, object]

    def content(self) -> str | Mapping[str, object]:
        """The row as a model takes it; a line that begins with ``{`` is a JSON object.

        Raises:
            DataError: the line is not UTF-8 or not JSON.
        """
        if not isinstance(self.raw, bytes):
            return self.raw
        line = _decoded(self.raw)
        return _object(line) if line.lstrip().startswith("{") else line


def is_table(source: str) -> bool:
    """Whether a file is to be read as a table; anything else, and stdin, is read line by line."""
    from softprompt.data.files import FORMATS, format_of

    return source != "-" and format_of(Path(source)) in FORMATS


def from_table(source: str, fields: Sequence[str]) -> Iterator[list[Numbered]]:
    """The rows of a table, some at a time.

    Raises:
        DataError: it cannot be read, or lacks a column.
    """
    from softprompt.data import check_columns, read

    table = read(source)
    check_columns(table, fields, where=source)
    table = table.select_columns([*fields])
    for start in range(0, len(table), WINDOW):
        part = table.select(range(start, min(start + WINDOW, len(table)))).to_list()
        yield [Numbered(f"row {start + n}", row) for n, row in enumerate(part, 1)]


def from_texts(source: str) -> Iterator[Numbered]:
    """The lines of a file, or of stdin if it is ``-``.

    Raises:
        DataError: there is no such file.
    """
    if source == "-":
        yield from _lines(sys.stdin.buffer)
        return
    path = Path(source).expanduser()
    if not path.is_file():
        msg = f"there is no file {source}. Give one, or - to read lines from stdin."
        raise DataError(msg)
    with path.open("rb") as file:
        yield from _lines(file)


def windows(rows: Iterator[Numbered]) -> Iterator[list[Numbered]]:
    """Whatever has arrived, at once: a slow writer is answered row by row, a fast one in bulk."""
    arrived: Queue[Numbered | BaseException | None] = Queue(maxsize=2 * WINDOW)

    def bring() -> None:
        try:
            for row in rows:
                arrived.put(row)
            arrived.put(None)
        except BaseException as error:  # noqa: BLE001  # told by the reader
            arrived.put(error)

    Thread(target=bring, daemon=True).start()
    while True:
        window, end = _taken(arrived)
        if window:
            yield window
        match end:
            case BaseException():
                raise end
            case True:
                return
            case _:
                pass


def _taken(
    arrived: "Queue[Numbered | BaseException | None]",
) -> tuple[list[Numbered], BaseException | bool]:
    """Wait for one row, and take what stands behind it; and whether that was all."""
    window: list[Numbered] = []
    while len(window) < WINDOW:
        try:
            item = arrived.get(block=not window)
        except Empty:
            break
        match item:
            case Numbered():
                window.append(item)
            case None:
                return window, True
            case BaseException():
                return window, item
    return window, False


def _lines(file: Iterable[bytes]) -> Iterator[Numbered]:
    for number, line in enumerate(file, 1):
        yield Numbered(f"line {number}", line.rstrip(b"\r\n"))


def _decoded(line: bytes) -> str:
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        msg = (
            f"it is not valid UTF-8: byte 0x{line[error.start]:02x} at place {error.start}. Write "
            "the text in UTF-8."
        )
        raise DataError(msg) from error


def _object(line: str) -> Mapping[str, object]:
    try:
        found: Mapping[str, object] = json.loads(line)
    except json.JSONDecodeError as error:
        msg = (
            f"it begins with a brace but is not valid JSON: {error.msg} at column {error.colno}. "
            'Write an object such as {"text": "…"}, or {"text": "{…"} for a text with a brace.'
        )
        raise DataError(msg) from error
    return found
