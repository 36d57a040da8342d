"""JSON as its standard has it: Python's own reader also takes NaN and keys that stand twice."""

import json
import math


def strict(raw: bytes) -> object:
    """What a JSON file says.

    Args:
        raw: its content, in UTF-8.

    Raises:
        ValueError: it is no UTF-8, no JSON, has a key twice or a number that is none.
        RecursionError: it is nested too deep.
    """
    found: object = json.loads(
        raw.decode("utf-8"),
        object_pairs_hook=_once,
        parse_constant=_no_number,
        parse_float=_finite,
    )
    return found


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        msg = f"the key {next(name for name in names if names.count(name) > 1)!r} stands twice"
        raise ValueError(msg)
    return table


def _no_number(word: str) -> None:
    msg = f"{word} is no number of JSON's"
    raise ValueError(msg)


def _finite(word: str) -> float:
    number = float(word)
    if not math.isfinite(number):
        msg = f"{word} is beyond all numbers"
        raise ValueError(msg)
    return number
