"""Shorten the texts of a row that is too long, at token boundaries."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from softprompt.data.tokenizer import Token

# Far more characters than a token has on average, in any language or code.
CHARS_PER_TOKEN = 32
# Cutting a text changes the tokens at its end only, so twice as many as are needed are enough.
_SPARE = 2


@dataclass(frozen=True)
class TokenizedRun:
    """The tokens of a run, and the range of characters ``[start, end)`` of each of its fields."""

    tokens: tuple[Token, ...]
    spans: Mapping[int, tuple[int, int]]


def is_long(text: str, *, most: int) -> bool:
    """Whether a text has far more characters than a row can have tokens.

    Args:
        text: of a field.
        most: the most tokens of a row.
    """
    return len(text) > CHARS_PER_TOKEN * most


def clip_text(text: str, *, most: int, count: Callable[[str], int]) -> str:
    """Cut a text that is far longer than a row, before all of it is tokenised.

    What is left has at least twice the tokens of a row, so that those which are kept, the first
    ones, are far from the cut.

    Args:
        text: of a field.
        most: the most tokens of a row.
        count: counts the tokens of a text.

    Returns:
        The text itself, if it is not that long, or if its characters become few tokens, as white
        space does.

    Examples:
        >>> len(clip_text("word " * 100_000, most=10, count=lambda text: len(text.split())))
        319
        >>> len(clip_text(" " * 5000 + "word", most=10, count=lambda text: len(text.split())))
        5004
    """
    end = CHARS_PER_TOKEN * most
    while end < len(text):
        if count(text[:end]) >= _SPARE * most:
            return text[:end].rstrip()
        end *= 2
    return text


def shorten_values(
    values: Sequence[str], runs: Iterable[TokenizedRun], *, excess: int, whole: int | None = None
) -> list[str]:
    """Truncate texts at token boundaries to remove about ``excess`` tokens.

    A truncated text may have other tokens than before, so the caller counts again.

    Args:
        values: the text of every field.
        runs: the tokens of the texts.
        excess: the number of tokens to remove.
        whole: the field that is not shortened.

    Returns:
        The texts; at least one that was not empty is shorter.
    """
    starts: list[list[int]] = [[] for _ in values]
    for run in runs:
        spans = list(run.spans.items())  # one behind the other
        ends = [end for _, (_, end) in spans]
        for token in run.tokens:
            for field, (begin, _) in islice(spans, bisect_right(ends, token.start), None):
                if begin >= token.end:
                    break
                if field != whole:
                    starts[field].append(max(0, token.start - begin))
    if not any(starts):  # no token has characters
        return [value if field == whole else "" for field, value in enumerate(values)]
    counts = shorten_longest_first([len(places) for places in starts], excess)
    return [
        value if count == len(places) else value[: places[count]].rstrip()
        for value, places, count in zip(values, starts, counts, strict=True)
    ]


def shorten_longest_first(counts: Sequence[int], excess: int) -> list[int]:
    """Take ``excess`` away one by one, each from the largest count (the last of equal ones).

    Args:
        counts: the numbers of tokens.
        excess: the number of tokens to remove.

    Returns:
        The remaining numbers of tokens.

    Examples:
        >>> shorten_longest_first([9, 3, 5], 7)
        [4, 3, 3]
    """
    excess = min(excess, sum(counts))
    levels = range(1, max(counts, default=0) + 1)
    # The highest one that takes enough away; what it takes too much is given back.
    level = bisect_right(levels, -excess, key=lambda top: -sum(max(0, n - top) for n in counts))
    remaining = [min(count, level) for count in counts]
    taken_last = [at for at, count in enumerate(counts) if count > level]
    for at in taken_last[: sum(counts) - sum(remaining) - excess]:
        remaining[at] += 1
    return remaining
