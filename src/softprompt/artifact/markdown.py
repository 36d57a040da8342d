"""Pieces of Markdown that say any text as it is, whatever it holds."""

import json
import re
from collections.abc import Iterable, Sequence

_TICKS = re.compile(r"`+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def code(text: str) -> str:
    r"""A text within a line, as code, in which nothing has a meaning.

    Line breaks and other controls are written as JSON does.

    >>> code("a|b"), code("`"), code("a\nb")
    ('`a\\|b`', '`` ` ``', '`a\\nb`')
    """
    plain = _CONTROL.sub(lambda found: json.dumps(found[0])[1:-1], text)
    fence = "`" * (_longest(plain) + 1)
    # Only at a bar does a table look into code; and of a space on each side, one is no part of it.
    inner = plain.replace("|", r"\|") if plain.strip() else json.dumps(plain)
    pad = " " if inner[0] in "` " or inner[-1] in "` " else ""
    return f"{fence}{pad}{inner}{pad}{fence}"


def block(text: str, language: str = "") -> str:
    """A text as a block of code, behind a fence that it cannot close."""
    fence = "`" * max(3, _longest(text) + 1)
    plain = text.replace("\r\n", "\n").replace("\r", "\n")
    return f"{fence}{language}\n{plain}\n{fence}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows of cells, which are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _longest(text: str) -> int:
    return max((len(run) for run in _TICKS.findall(text)), default=0)
