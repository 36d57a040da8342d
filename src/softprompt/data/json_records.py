"""Rows in JSON: one object per line, one after the other, a list of them, or SQuAD's form."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from softprompt._parsing import TOO_DEEP, check_depth, make_json_decoder, parse_json
from softprompt.data.squad import is_squad, list_squad_rows
from softprompt.errors import DataError

_TEXT = re.compile(r"\S")
# Endings of files that have one object per line.
_LINES = {".jsonl", ".ndjson"}
# Python writes words for numbers that JSON does not have; NaN is a missing value.
_DECODER = make_json_decoder({"NaN": None, "Infinity": math.inf, "-Infinity": -math.inf})


def read_records(path: Path, text: str, *, may_be_list: bool) -> list[dict[str, object]]:
    """The objects of a list, of a file with one object per line, or one after the other.

    Of a file of SQuAD they are its questions.

    Args:
        path: of the file.
        text: its content.
        may_be_list: whether a file of one line may be a list of objects.

    Raises:
        DataError: it is not JSON, or has other values than objects.
    """
    start = text.lstrip()
    # Not splitlines(): a JSON string may contain U+2028 and other line separators.
    lines = [(at, line) for at, line in enumerate(text.split("\n"), 1) if line.strip()]
    if start.startswith("[") and (len(lines) > 1 or may_be_list):
        items = [(1, item) for item in cast("list[object]", _parse_json(path, text, first=1))]
    elif start.startswith("{") and lines[0][1].rstrip().endswith(("{", "[", ",")):
        items = _parse_objects(path, text)
    else:
        items = [(at, _parse_json(path, line, first=at)) for at, line in lines]
    for number, item in items:
        if not isinstance(item, dict):
            msg = (
                f"line {number} of {path} is of type {type(item).__name__}, but an object "
                'such as {"text": "…", "label": "…"} is needed.'
            )
            raise DataError(msg)
    records = [item for _, item in items if isinstance(item, dict)]
    if len(records) == 1 and is_squad(records[0]):
        return list_squad_rows(path, records[0])
    if len(records) == 1:
        _check_one_row(path, records[0])
    return records


def _parse_objects(path: Path, text: str) -> list[tuple[int, object]]:
    """Objects that are written over several lines, each with the number of its first line."""
    items: list[tuple[int, object]] = []
    number, end = 1, 0
    while (at := _find_text(text, end)) < len(text):
        number += text.count("\n", end, at)
        item: object
        try:
            item, end = _DECODER.raw_decode(text, at)
            check_depth(item)
        except (ValueError, RecursionError) as error:
            raise DataError(_describe_fault(path, error, first=number, is_whole=True)) from error
        items.append((number, item))
        number += text.count("\n", at, end)
    return items


def _find_text(text: str, start: int) -> int:
    """The index of the next character that is not white space; the length if there is none."""
    found = _TEXT.search(text, start)
    return found.start() if found else len(text)


def _check_one_row(path: Path, record: Mapping[str, object]) -> None:
    """Check that a single object is a row, not a whole table in another form."""
    values = list(record.values())
    rows = [name for name, value in record.items() if _is_list_of_rows(value)]
    # In a file of one object per line it is a row, as of one conversation.
    if rows and not _LINES.intersection(map(str.lower, path.suffixes)):
        msg = (
            f"{path} is one object, whose rows seem to be the list under {rows[0]!r}. Save that "
            "list alone, or one object per line."
        )
        raise DataError(msg)
    # One row of words and tags is as a table of as many rows, except for its names.
    is_tagged = any({"tags", f"{word}_tags"} & {*record} for word in ("ner", "pos", "chunk"))
    is_tagged = is_tagged and bool({"words", "tokens"} & {*record})
    for kind in (list, dict):
        sizes = {len(value) if isinstance(value, kind) else -1 for value in values}
        if len(values) > 1 and len(sizes) == 1 and max(sizes) > 1 and not is_tagged:
            msg = (
                f"{path} is one object with a {kind.__name__} for each column "
                f"({', '.join(record)}). Save one object per row instead, in pandas by "
                "to_json(path, orient='records', lines=True)."
            )
            raise DataError(msg)


def _is_list_of_rows(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) for v in value)


def _parse_json(path: Path, text: str, *, first: int) -> object:
    """Parse ``text``, which begins on line ``first`` of the file."""
    try:
        return parse_json(text, decoder=_DECODER)
    except ValueError as error:
        raise DataError(_describe_fault(path, error, first=first)) from error


def _describe_fault(path: Path, error: Exception, *, first: int, is_whole: bool = False) -> str:
    """The fault of a value.

    Args:
        path: of the file.
        error: of the parser.
        first: the line that the value begins on.
        is_whole: whether the parser has the whole file, and not only the value.
    """
    if isinstance(error, json.JSONDecodeError):
        line = error.lineno if is_whole else first + error.lineno - 1
        return (
            f"line {line} of {path} is not valid JSON: {error.msg} at column {error.colno}. Write "
            "one object per line, or a .json file with one list of objects."
        )
    fact = TOO_DEEP if isinstance(error, RecursionError) else error
    return f"in the JSON that begins on line {first} of {path}: {fact}. Correct it."
