"""Spans of characters in a text, and the spans of words that they are."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from softprompt.data.tag_schemes import TagSpan
from softprompt.data.words import Characters
from softprompt.errors import DataError

_EXAMPLE = '{"start": 0, "end": 5, "label": "PER"} or [0, 5, "PER"]'


class TextSpan(NamedTuple):
    """A span of characters.

    Args:
        label: its type.
        start: its first character, counted from 0 in Unicode characters, not in bytes.
        end: one after its last character.
    """

    label: str
    start: int
    end: int


def read_text_spans(value: object, *, text: str, where: str) -> tuple[TextSpan, ...]:
    """Read the spans of a row.

    Args:
        value: a list of mappings with ``start``, ``end`` and ``label``, or of lists of the three.
        text: their text.
        where: the row, for messages, such as ``row 3 of train.jsonl``.

    Returns:
        The spans, in the order of the text.

    Raises:
        DataError: a span has another form, is not inside of the text, or overlaps another one.

    Examples:
        >>> read_text_spans([[0, 4, "LOC"]], text="Rome is old", where="row 0")
        (TextSpan(label='LOC', start=0, end=4),)
    """
    if not isinstance(value, list | tuple):
        msg = (
            f"the spans of {where} are a {type(value).__name__}, but a list is needed. Write each "
            f"as {_EXAMPLE}; a row without spans has an empty list."
        )
        raise DataError(msg)
    spans = sorted((_read_span(item, text, where=where) for item in value), key=_get_borders)
    for before, span in pairwise(spans):
        if span.start < before.end:
            msg = (
                f"{_describe(before, text)} and {_describe(span, text)} of {where} overlap, but a "
                "word has one tag. Leave one of them out."
            )
            raise DataError(msg)
    return tuple(spans)


def _get_borders(span: TextSpan) -> Characters:
    return span.start, span.end


def _read_span(item: object, text: str, *, where: str) -> TextSpan:
    match item:
        case {"start": int() as start, "end": int() as end, "label": str() as label, **others} if (
            all(other is None for other in others.values())
        ):
            pass
        case [int() as start, int() as end, str() as label] if isinstance(item, list | tuple):
            pass
        case _:
            msg = f"{item!r} of {where} is not a span. Write each as {_EXAMPLE}."
            raise DataError(msg)
    span = TextSpan(label, start, end)
    if not label.strip() or isinstance(start, bool) or isinstance(end, bool):
        msg = f"{item!r} of {where} is not a span. Write each as {_EXAMPLE}."
        raise DataError(msg)
    if not 0 <= start < end <= len(text):
        msg = (
            f"the span {start} to {end} ({label}) of {where} is not inside of its text, which has "
            f"{len(text)} characters. Count characters of Unicode from 0, not bytes; the end is "
            "one after the last character."
        )
        raise DataError(msg)
    return span


def _describe(span: TextSpan, text: str) -> str:
    return f"the span {span.start} to {span.end} ({span.label}, {text[span.start : span.end]!r})"


class MatchedSpans(NamedTuple):
    """Spans of words.

    Args:
        spans: the spans, in order.
        widened: those spans of characters that were made longer, to whole words.
    """

    spans: tuple[TagSpan, ...]
    widened: tuple[TextSpan, ...]


def match_spans(
    spans: Sequence[TextSpan],
    words: Sequence[Characters],
    *,
    text: str,
    where: str,
    widen: bool = False,
) -> MatchedSpans:
    """Find the words of spans of characters.

    White space at the ends of a span is not part of it.

    Args:
        spans: in the order of the text, without overlaps.
        words: the range of characters of each word, in order.
        text: of both.
        where: the row, for messages.
        widen: whether a span that ends inside of a word is made longer, instead of refused.

    Returns:
        The spans of words, one for each span of characters, and those that were made longer.

    Raises:
        DataError: a span has no word, begins or ends inside of one, or needs the same word as
            another span.
    """
    starts, ends = [start for start, _ in words], [end for _, end in words]
    found: list[TagSpan] = []
    widened: list[TextSpan] = []
    for span in spans:
        first, last = bisect_right(ends, span.start), bisect_left(starts, span.end)
        if first >= last:
            msg = f"{_describe(span, text)} of {where} has no word. Correct its borders."
            raise DataError(msg)
        if starts[first] < span.start or ends[last - 1] > span.end:
            begins = starts[first] < span.start
            inside = words[first if begins else last - 1]
            if not widen:
                msg = (
                    f"{_describe(span, text)} of {where} {'begins' if begins else 'ends'} inside "
                    f"of the word {text[slice(*inside)]!r}. Correct its borders, or let such "
                    "spans be widened to whole words."
                )
                raise DataError(msg)
            widened.append(span)
        if found and first < found[-1].end:
            other = spans[len(found) - 1]
            msg = (
                f"{_describe(other, text)} and {_describe(span, text)} of {where} are in one word, "
                "but a word has one tag. Leave one of them out."
            )
            raise DataError(msg)
        found.append(TagSpan(span.label, first, last))
    return MatchedSpans(tuple(found), tuple(widened))


def locate_span(span: TagSpan, words: Sequence[Characters]) -> TextSpan:
    """The characters of a span of words.

    Args:
        span: of words.
        words: the range of characters of each word.

    Examples:
        >>> locate_span(TagSpan("PER", 1, 3), [(0, 2), (3, 6), (7, 11)])
        TextSpan(label='PER', start=3, end=11)
    """
    return TextSpan(span.label, words[span.start][0], words[span.end - 1][1])
