"""The words of a row, and which of its tokens they become."""

import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from softprompt.data.layout import FixedTokens
from softprompt.data.rendering import Renderer
from softprompt.data.shortening import TokenizedRun
from softprompt.data.windows import WindowRenderer
from softprompt.data.words import Characters, split_words

# Apostrophes and hyphens, which belong to the word between letters.
_INNER = "'-\u2019\u2010"
# Commas, full stops, closing brackets and closing quotation marks.
_CLOSING = ("Po", "Pe", "Pf")


class FieldSpan(NamedTuple):
    """The characters ``[start, end)`` of a field of a row."""

    field: str
    start: int
    end: int


class PlacedToken(NamedTuple):
    """A token of a rendered row that has characters of a field.

    Args:
        position: in the row.
        id: of the token.
        span: its characters; of a token with characters of several fields, those of the first.
    """

    position: int
    id: int
    span: FieldSpan


def divide_text(text: str) -> list[Characters]:
    """Find the words of a text, which have the apostrophes and hyphens between their letters.

    Otherwise they are those of `split_words`.

    Args:
        text: any text.

    Returns:
        The range of characters ``[start, end)`` of each word, in order.

    Examples:
        >>> text = "It isn't well-made - no."
        >>> [text[start:end] for start, end in divide_text(text)]
        ['It', "isn't", 'well-made', '-', 'no', '.']
    """
    words: list[Characters] = []
    is_joined = False  # the last word ends with an apostrophe or a hyphen
    for start, end in split_words(text):
        touches = bool(words) and words[-1][1] == start
        if touches and is_joined and text[start].isalnum():
            words[-1] = (words[-1][0], end)
            is_joined = False
            continue
        is_inner = touches and text[start:end] in _INNER and text[words[-1][0]].isalnum()
        is_joined = is_inner and end < len(text) and text[end].isalnum()
        if is_joined:
            words[-1] = (words[-1][0], end)
        else:
            words.append((start, end))
    return words


def place_tokens(renderer: Renderer, row: Mapping[str, object]) -> list[PlacedToken]:
    """The tokens of a rendered row that have characters of its fields.

    Args:
        renderer: of the row.
        row: texts or numbers, by the names of the template's fields.

    Returns:
        The tokens, in their order; those of the template's own text are left out.

    Raises:
        DataError: a field is missing, or neither a text nor a number.
    """
    runs, _ = renderer.fit(row)
    return _place(renderer, runs)


def place_window_tokens(
    windows: WindowRenderer, row: Mapping[str, object]
) -> list[list[PlacedToken]]:
    """The tokens of each window of a row that have characters of its fields.

    Args:
        windows: the renderer of windows.
        row: as for `place_tokens`.

    Returns:
        Those of each window, in the order of the windows.

    Raises:
        DataError: as `place_tokens` does.
    """
    divided = windows.divide(row)
    return [
        _place(
            windows.renderer,
            divided.runs,
            left_out={
                windows.segment: frozenset(divided.tokens) - {*_take(divided.tokens, window)}
            },
        )
        for window in divided.windows
    ]


def _take(tokens: range, window: range) -> range:
    return tokens[window.start : window.stop]


def _place(
    renderer: Renderer,
    runs: Mapping[int, TokenizedRun],
    *,
    left_out: Mapping[int, frozenset[int]] | None = None,
) -> list[PlacedToken]:
    """The tokens of runs, without some of them by their index in a run."""
    names, placed, position = renderer.template.field_places, list[PlacedToken](), 0
    for index, part in enumerate(renderer.segments):
        if isinstance(part, FixedTokens):
            position += len(part.ids)
            continue
        absent = (left_out or {}).get(index, frozenset())
        for token in (t for at, t in enumerate(runs[index].tokens) if at not in absent):
            for number, (begin, end) in runs[index].spans.items():
                start, stop = max(token.start, begin), min(token.end, end)
                if start < stop:
                    span = FieldSpan(names[number], start - begin, stop - begin)
                    placed.append(PlacedToken(position, token.id, span))
                    break
            position += 1
    return placed


class RowWords:
    """The words of a row that the backbone reads, so divided that no token has parts of two.

    Args:
        texts: of the fields, by their names.
        tokens: of the row; of a row that is rendered in several ways, those of all of them.
        words: of fields whose words were given, the range of characters of each; those of other
            fields are found by `divide_text`.

    Attributes:
        spans: the words, field by field; words that a token joins are one, and words that were cut
            off are left out.
    """

    def __init__(
        self,
        texts: Mapping[str, str],
        tokens: Iterable[PlacedToken],
        *,
        words: Mapping[str, Sequence[Characters]] | None = None,
    ) -> None:
        given = words or {}
        by_field: dict[str, list[FieldSpan]] = {name: [] for name in texts}
        for token in tokens:
            by_field[token.span.field].append(token.span)
        self.spans = tuple(
            FieldSpan(name, *bounds)
            for name, spans in by_field.items()
            for bounds in _join_words(given.get(name) or divide_text(texts[name]), spans)
        )
        self._first = {
            name: next((at for at, span in enumerate(self.spans) if span.field == name), None)
            for name in texts
        }
        self._ends = {
            name: [span.end for span in self.spans if span.field == name] for name in texts
        }

    def find(self, span: FieldSpan) -> int | None:
        """The number of the word that a token's characters are of; of white space, the next word's.

        Args:
            span: of a token.

        Returns:
            The number, in ``spans``; None if the field has no words.
        """
        first, ends = self._first[span.field], self._ends[span.field]
        if first is None:
            return None
        return first + min(bisect_right(ends, span.start), len(ends) - 1)


def _join_words(words: Sequence[Characters], spans: Iterable[FieldSpan]) -> Iterator[Characters]:
    """Join the words that a token has characters of, and leave out those without any token."""
    ends = [end for _, end in words]
    seen, joined = set[int](), set[int]()
    for span in spans:
        first = bisect_right(ends, span.start)
        touched = []
        while first < len(words) and words[first][0] < span.end:
            touched.append(first)
            first += 1
        seen.update(touched)
        joined.update(touched[:-1])
    start: int | None = None
    for at, (begin, end) in enumerate(words):
        if at in seen:
            start = begin if start is None else start
        if start is not None and at not in joined:
            yield start, end
            start = None


def remove_word(text: str, *, start: int, end: int) -> str:
    """A text without one of its words, and without a space that it leaves over.

    Args:
        text: the text.
        start: the word's first character.
        end: its last character plus one.

    Examples:
        >>> remove_word("a good film", start=2, end=6), remove_word("a film, dull", start=2, end=6)
        ('a film', 'a, dull')
    """
    before, after = text[:start], text[end:]
    if before[-1:].isspace() and (not after or _can_follow_word(after[0])):
        return before[:-1] + after
    return after[1:] if not before and after[:1].isspace() else before + after


def _can_follow_word(character: str) -> bool:
    """Whether a character stands behind a word without a space before it, or is a space."""
    return character.isspace() or unicodedata.category(character) in _CLOSING
