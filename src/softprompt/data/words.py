"""The words of a row, and which of its tokens they become."""

import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from softprompt.data.rendering import FixedTokens, Renderer, list_fields

# Scripts that write no space between words, by the beginnings of their characters' names.
_WITHOUT_SPACES = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
_FIRST_WITHOUT_SPACES = 0x0E00
# Apostrophes and hyphens, which belong to the word between letters.
_INNER = "'-\u2019\u2010"
_LETTERS, _MARKS = "LN", "M"
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


def split_words(text: str) -> list[tuple[int, int]]:
    """Divide a text into words, punctuation marks and symbols.

    A word is a run of letters, digits and their marks, with apostrophes and hyphens between them.
    Where a script writes no spaces between words, each letter is one. Everything but white space is
    in some word.

    Args:
        text: any text.

    Returns:
        The first character of each, and its last plus one.

    Examples:
        >>> text = "It isn't well-made, 100 % dull."
        >>> [text[start:end] for start, end in split_words(text)]
        ['It', "isn't", 'well-made', ',', '100', '%', 'dull', '.']
    """
    words: list[tuple[int, int]] = []
    at = 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        end = _find_word_end(text, at)
        words.append((at, end))
        at = end
    return words


def _find_word_end(text: str, start: int) -> int:
    end = start + 1
    runs_on = _is_letter(text[start]) and not _is_without_spaces(text[start])
    while end < len(text):
        is_inner = text[end] in _INNER and end + 1 < len(text)
        follower = text[end + 1] if is_inner else text[end]
        goes_on = runs_on and _is_letter(follower) and not _is_without_spaces(follower)
        if goes_on:
            end += 1 + is_inner
        elif unicodedata.category(text[end]).startswith(_MARKS):
            end += 1
        else:
            break
    return end


def _is_letter(character: str) -> bool:
    return unicodedata.category(character)[0] in _LETTERS or character == "_"


def _is_without_spaces(character: str) -> bool:
    if ord(character) < _FIRST_WITHOUT_SPACES:
        return False
    return unicodedata.name(character, "").startswith(_WITHOUT_SPACES)


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
    names, placed, position = list_fields(renderer.template), list[PlacedToken](), 0
    for index, part in enumerate(renderer.segments):
        if isinstance(part, FixedTokens):
            position += len(part.ids)
            continue
        for token in runs[index].tokens:
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

    Attributes:
        spans: the words, field by field; words that a token joins are one, and words that were cut
            off are left out.
    """

    def __init__(self, texts: Mapping[str, str], tokens: Iterable[PlacedToken]) -> None:
        by_field: dict[str, list[FieldSpan]] = {name: [] for name in texts}
        for token in tokens:
            by_field[token.span.field].append(token.span)
        self.spans = tuple(
            FieldSpan(name, *bounds)
            for name, spans in by_field.items()
            for bounds in _join_words(split_words(texts[name]), spans)
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


def _join_words(
    words: Sequence[tuple[int, int]], spans: Iterable[FieldSpan]
) -> Iterator[tuple[int, int]]:
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
