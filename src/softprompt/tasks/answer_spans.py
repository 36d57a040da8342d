"""Answers in a context: the best spans over all of its windows, and the score of no answer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from softprompt.errors import DataError


@dataclass(frozen=True, eq=False)
class WindowScores:
    """The scores of one window of a context.

    Args:
        starts: ``[T]``, how likely each of its tokens of the context is the first of the answer, as
            logits or log-probabilities.
        ends: ``[T]``, the same for the last.
        characters: the range ``[start, end)`` of each of these tokens in the context.
        null: the score of no answer: that of start and end at the position that stands for it.
    """

    starts: NDArray[np.float64]
    ends: NDArray[np.float64]
    characters: Sequence[tuple[int, int]]
    null: float

    def __post_init__(self) -> None:
        if not len(self.starts) == len(self.ends) == len(self.characters):
            msg = (
                f"a window has {len(self.starts)} scores of starts, {len(self.ends)} of ends and "
                f"{len(self.characters)} tokens. Give one of each for every token."
            )
            raise DataError(msg)


@dataclass(frozen=True)
class AnswerSpan:
    """A span of a context that may be the answer.

    Args:
        start: its first character in the context.
        end: its last character plus one.
        text: these characters, without white space around them.
        score: of its start and its end together.

    Examples:
        >>> AnswerSpan(3, end=7, text="Rome", score=4.5).text
        'Rome'
    """

    start: int
    end: int
    text: str
    score: float


def find_best_spans(
    windows: Sequence[WindowScores], context: str, *, count: int, max_tokens: int
) -> list[AnswerSpan]:
    """Find the best spans over all windows of a context.

    Where windows overlap, a span has the best of its scores. Of spans with one score the first in
    the text comes first.

    Args:
        windows: of the context.
        context: the whole text.
        count: the most spans.
        max_tokens: the most tokens of a span.

    Returns:
        Distinct spans of the context that are not empty, the best first.

    Raises:
        DataError: ``count`` or ``max_tokens`` is not positive.

    Examples:
        >>> scores = WindowScores(np.array([0.0, 2.0]), np.array([0.0, 1.0]), [(0, 2), (2, 7)], 1.0)
        >>> [span.text for span in find_best_spans([scores], "In Rome", count=2, max_tokens=2)]
        ['Rome', 'In Rome']
    """
    for name, number in (("count", count), ("max_tokens", max_tokens)):
        if number < 1:
            msg = f"spans with {name} = {number} are not possible. Give at least 1."
            raise DataError(msg)
    best: dict[tuple[int, int], float] = {}
    for window in windows:
        found: dict[tuple[int, int], float] = {}
        for score, place in _iterate_spans(window, context, max_tokens=max_tokens):
            if len(found) >= count and score < min(found.values()):
                break
            found.setdefault(place, score)
        for place, score in found.items():
            best[place] = max(score, best.get(place, score))
    ranked = sorted(best.items(), key=lambda item: (-item[1], item[0]))
    return [
        AnswerSpan(start, end, context[start:end], score) for (start, end), score in ranked[:count]
    ]


def _iterate_spans(
    window: WindowScores, context: str, *, max_tokens: int
) -> Iterator[tuple[float, tuple[int, int]]]:
    """The spans of a window, the best first, without white space around them."""
    length = len(window.starts)
    first, last = _list_pairs(length, max_tokens)
    scores = window.starts[first] + window.ends[last]
    for at in np.argsort(-scores, kind="stable"):
        start, end = window.characters[first[at]][0], window.characters[last[at]][1]
        text = context[start:end]
        start += len(text) - len(text.lstrip())
        end = start + len(text.strip())
        if start < end:
            yield float(scores[at]), (start, end)


def _list_pairs(length: int, most: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The first and the last token of every span of at most so many tokens."""
    first, offset = np.meshgrid(np.arange(length), np.arange(min(most, length)), indexing="ij")
    inside = first + offset < length
    return first[inside], (first + offset)[inside]


def get_null_score(windows: Sequence[WindowScores]) -> float:
    """The score of no answer of a whole context: the lowest, since any window may have the answer.

    Args:
        windows: of the context, at least one.

    Returns:
        The score.

    Raises:
        DataError: there are no windows.

    Examples:
        >>> empty = np.empty(0)
        >>> get_null_score([WindowScores(empty, empty, [], null) for null in (2.0, -1.0)])
        -1.0
    """
    if not windows:
        msg = "a context without windows has no score of no answer. Give at least one window."
        raise DataError(msg)
    return min(window.null for window in windows)
