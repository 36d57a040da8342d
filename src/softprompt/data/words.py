"""The words of a text: where they are, and which tokens of its windows stand for them."""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from softprompt.data.windows import Window, WindowRenderer
from softprompt.errors import DataError

# Thai, Lao, Burmese and Khmer; Chinese and Japanese with their punctuation and full width.
UNSPACED_SCRIPTS = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x2E80, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFE30, 0xFE4F),
    (0xFF00, 0xFFEF),
    (0x20000, 0x3FFFF),
)
_ZERO_WIDTH_SPACE = "\u200b"
_SKIN_TONES = ("\U0001f3fb", "\U0001f3ff")
# Every tokenizer has a token for it, if only the unknown one, and none joins it to a word.
_STAND_IN = "*"

_Kind = Literal["gap", "joiner", "mark", "letter", "sign"]
Characters = tuple[int, int]


class WordPiece(NamedTuple):
    """One token of a word.

    Args:
        window: the number of the window that owns it.
        position: its index in the window's ``input_ids``.
    """

    window: int
    position: int


@dataclass(frozen=True)
class WordStates:
    """The words of a row, and which of the states that are read of it are theirs.

    Args:
        text: of the row; words that were given as a list have one space between them.
        words: the range of characters ``[start, end)`` of each word in it.
        pieces: for each word, which of the row's states are those of its tokens, the first one
            first.
        tokens: the range of characters of each state's token, where tokens are grouped; else
            empty.
    """

    text: str
    words: tuple[Characters, ...]
    pieces: tuple[tuple[int, ...], ...]
    tokens: tuple[Characters, ...] = ()

    def list_words(self) -> tuple[str, ...]:
        """The words as text."""
        return tuple(self.text[start:end] for start, end in self.words)


@dataclass(frozen=True)
class RenderedWords:
    """A row in windows, and the tokens of its words.

    Args:
        windows: of the row.
        pieces: the tokens of each word, at least one, in their order. Words that the tokenizer
            joins, such as the dots of an ellipsis, have the same one.
        replaced: the words for which the tokenizer has no token; ``*`` is in their place.
    """

    windows: tuple[Window, ...]
    pieces: tuple[tuple[WordPiece, ...], ...]
    replaced: tuple[int, ...]


def join_words(words: Sequence[str]) -> tuple[str, list[Characters]]:
    """Make a text of words, with one space between them.

    Args:
        words: not empty.

    Returns:
        The text, and the range of characters ``[start, end)`` of each word.

    Examples:
        >>> join_words(["It", "was", "fine"])
        ('It was fine', [(0, 2), (3, 6), (7, 11)])
    """
    places, at = [], 0
    for word in words:
        places.append((at, at + len(word)))
        at += len(word) + 1
    return " ".join(words), places


def split_words(text: str) -> list[Characters]:
    """Find the words of a text.

    Letters and digits in a row are one word, with their marks; every other sign is one alone, as
    is every letter of a script that does not write spaces. White space, control characters and
    signs of no width belong to no word, unless they are between the letters of one.

    Args:
        text: any text.

    Returns:
        The range of characters ``[start, end)`` of each word, in order.

    Examples:
        >>> text = "Dr. Müller's 3.5 km"
        >>> [text[start:end] for start, end in split_words(text)]
        ['Dr', '.', 'Müller', "'", 's', '3', '.', '5', 'km']
    """
    words: list[Characters] = []
    touches = is_open = False  # the last word: it may be continued, by letters too
    for at, character in enumerate(text):
        kind = _classify(character)
        if kind == "gap":
            touches = False
        elif kind != "joiner":
            is_letter = kind == "letter"
            if touches and (kind == "mark" or (is_letter and is_open)):
                words[-1] = (words[-1][0], at + 1)
            else:
                words.append((at, at + 1))
                is_open = is_letter or kind == "mark"
            touches = True
    return words


def _classify(character: str) -> _Kind:
    """What a character does to the word before it."""
    category = unicodedata.category(character)
    if category[0] == "M" or _SKIN_TONES[0] <= character <= _SKIN_TONES[1]:
        return "mark"
    if category == "Cf" and character != _ZERO_WIDTH_SPACE:
        return "joiner"
    if category[0] == "Z" or category in {"Cc", "Cf", "Cs"} or character.isspace():
        return "gap"
    is_letter = character.isalnum() or character == "_"
    code = ord(character)
    is_alone = any(first <= code <= last for first, last in UNSPACED_SCRIPTS)
    return "letter" if is_letter and not is_alone else "sign"


def locate_words(
    windows: Sequence[Window], words: Sequence[Characters]
) -> list[tuple[WordPiece, ...]]:
    """Find the tokens of words.

    Args:
        windows: of a row, whose field has the words.
        words: the range of characters ``[start, end)`` of each word in that field.

    Returns:
        The tokens of each word, each from the window that owns it; none for a word that no token
        stands for.
    """
    pieces: list[WordPiece] = []
    at_character: dict[int, list[int]] = {}
    for number, window in enumerate(windows):
        for token in window.tokens:
            if token.owned:
                for character in range(token.start, token.end):
                    at_character.setdefault(character, []).append(len(pieces))
                pieces.append(WordPiece(number, token.position))
    return [
        tuple(
            pieces[index]
            for index in sorted({i for c in range(start, end) for i in at_character.get(c, ())})
        )
        for start, end in words
    ]


def put_stand_ins(text: str, words: Iterable[Characters]) -> str:
    """A text in which ``*`` stands for each character of some words.

    Args:
        text: any text.
        words: the range of characters of each.
    """
    letters = list(text)
    for start, end in words:
        letters[start:end] = _STAND_IN * (end - start)
    return "".join(letters)


def render_words(
    renderer: WindowRenderer,
    row: Mapping[str, object],
    *,
    text: str,
    words: Sequence[Characters],
) -> RenderedWords:
    """Render a row to windows and find the tokens of its words, of which every one has a token.

    Args:
        renderer: divides the field of the text.
        row: the other fields of the template.
        text: the text of the field.
        words: the range of characters ``[start, end)`` of each word.

    Returns:
        The windows and the tokens. Some tokenizers have no token for some characters, such as a
        mark alone or one of no width: a word of these only is rendered as ``*``, so that it has a
        place, and the characters of the other words stay the same.

    Raises:
        DataError: as `WindowRenderer.render` does; or a word has no characters, or not even ``*``
            has a token.
    """
    if empty := [number for number, (start, end) in enumerate(words) if end <= start]:
        msg = f"word {empty[0]} (counted from 0) is empty. Leave it out, with its tag."
        raise DataError(msg)
    windows = renderer.render({**row, renderer.field: text})
    pieces = locate_words(windows, words)
    replaced = tuple(number for number, found in enumerate(pieces) if not found)
    if replaced:
        with_stand_ins = put_stand_ins(text, [words[number] for number in replaced])
        windows = renderer.render({**row, renderer.field: with_stand_ins})
        pieces = locate_words(windows, words)
    for (start, end), found in zip(words, pieces, strict=True):
        if not found:
            msg = (
                f"the tokenizer has no token for the word {text[start:end]!r}, nor for "
                f"{_STAND_IN!r} in its place. Choose a backbone with an ordinary tokenizer."
            )
            raise DataError(msg)
    return RenderedWords(windows, tuple(pieces), replaced)
