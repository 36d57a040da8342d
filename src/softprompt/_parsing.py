"""JSON and TOML from outside: whatever a file has, a value or a ValueError in plain words."""

import json
import math
import tomllib
from collections import Counter
from collections.abc import Mapping
from typing import Any

# More levels than any file has that is read here; a program's own stack has about 1,000.
MAX_DEPTH = 100
TOO_DEEP = f"it is nested more than {MAX_DEPTH} levels deep"
# A float has at most 309 before its point.
_MAX_DIGITS = 400


def parse_json(text: str, *, decoder: json.JSONDecoder | None = None) -> object:
    """Parse JSON whose keys are unique, and whose numbers and depth are within reason.

    Args:
        text: one value.
        decoder: of `make_json_decoder`; by default one that refuses ``NaN`` and the like.

    Returns:
        The parsed value.

    Raises:
        ValueError: it is not JSON (then a ``json.JSONDecodeError``), has a duplicate key, a number
            that is not finite or has hundreds of digits, or is nested too deeply.

    Examples:
        >>> parse_json('{"a": [1, 2.5]}')
        {'a': [1, 2.5]}
        >>> parse_json('{"a": 1, "a": 2}')
        Traceback (most recent call last):
        ValueError: the key 'a' appears twice
    """
    if text.startswith("\ufeff"):
        fault = "Unexpected UTF-8 BOM"
        raise json.JSONDecodeError(fault, text, 0)
    try:
        content: object = (decoder or _STRICT).decode(text)
    except RecursionError as error:
        raise ValueError(TOO_DEEP) from error
    check_depth(content)
    return content


def make_json_decoder(constants: Mapping[str, object] | None = None) -> json.JSONDecoder:
    """A decoder of JSON whose keys are unique, and whose numbers are within reason.

    Args:
        constants: what ``NaN``, ``Infinity`` and ``-Infinity`` stand for, which JSON does not have;
            by default they are refused.
    """
    return json.JSONDecoder(
        object_pairs_hook=_make_object,
        parse_constant=constants.__getitem__ if constants else _reject_constant,
        parse_float=_parse_finite,
        parse_int=_parse_int,
    )


def check_depth(value: object, most: int = MAX_DEPTH) -> None:
    """Check that a value can be written and compared again, which takes a call for each level.

    Args:
        value: plain data.
        most: the most levels of lists and tables.

    Raises:
        ValueError: it is nested more deeply.
    """
    level = [value]
    for _ in range(most + 1):
        tables = [v for v in level if isinstance(v, dict | list | tuple)]
        if not tables:
            return
        level = [
            v for table in tables for v in (table.values() if isinstance(table, dict) else table)
        ]
    raise ValueError(TOO_DEEP)


def parse_toml(text: str) -> dict[str, Any]:
    """Parse TOML whose numbers and depth are within reason.

    Args:
        text: a whole file.

    Raises:
        ValueError: it is not TOML, has a number of thousands of digits, or is nested too deeply.
    """
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except RecursionError as error:
        raise ValueError(TOO_DEEP) from error
    except ValueError as error:  # of `int`, whose message is for programmers
        msg = "a number has thousands of digits"
        raise ValueError(msg) from error
    check_depth(content)
    return content


def _make_object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    content = dict(pairs)
    if len(content) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        msg = f"the key {counts.most_common(1)[0][0]!r} appears twice"
        raise ValueError(msg)
    return content


def _reject_constant(word: str) -> None:
    msg = f"{word} is not a number in JSON"
    raise ValueError(msg)


def _parse_int(word: str) -> int:
    if len(word) > _MAX_DIGITS:  # Python itself refuses more than 4,300
        msg = f"a number has {len(word):,} digits"
        raise ValueError(msg)
    return int(word)


def _parse_finite(word: str) -> float:
    number = float(word)
    if not math.isfinite(number):
        msg = f"{word} overflows a float"
        raise ValueError(msg)
    return number


_STRICT = make_json_decoder()
